"""The step on its device: parallelism, precision, memory, optimizer. Begin with parallel.py."""
