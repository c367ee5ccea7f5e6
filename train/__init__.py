"""The loop, and what a run leaves behind.

Begin with pretrain.py, then run/run.py. `checkpoint` saves and resumes, `compute` shards the model and takes the step, `run` is
a run and its folder, `watch` guards and measures it, `pages` reports it, `accuracy` says how often a classifier is right.
`demos` is for weights and videos without a run.
"""
