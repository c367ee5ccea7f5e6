"""Annotations and folders -> requests for clips, a source a file. Begin with kinds.py, then folder.py, the shortest."""
