"""Is a finished dataset still what its manifest says? Begin with recheck.py."""
