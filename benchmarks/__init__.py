"""What the figures of docs/figures.md are measured with: a program a file.

Begin with throughput.py. `parts` holds what these programs share or run as children, `gpu` the jobs of gpu_suite.py.
"""
