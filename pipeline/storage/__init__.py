"""A dataset where it lies: manifest, shards, caches, on disks and behind URLs. Begin with manifest.py."""
