"""Tar shards and a manifest -> uint8 batches on the training device."""
