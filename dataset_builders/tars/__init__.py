"""Tar files: headers, members, writing, those behind URLs. Begin with writer.py."""
