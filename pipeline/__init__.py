"""Tar shards and a manifest -> uint8 batches on the training device.

Begin with sampling/samples.py, then loader.py. `sampling` is the arithmetic of a sample, on keyed.py's randomness; `storage`
gives the bytes of a clip, `decoding` its frames, `workers` are the processes that do both beside the trainer, `report` shows
where the time goes.
"""
