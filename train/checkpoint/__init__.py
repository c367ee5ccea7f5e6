"""Checkpoints: written beside the training, verified, mirrored, read on any number of ranks. Begin with state.py."""
