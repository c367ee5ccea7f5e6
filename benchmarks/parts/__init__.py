"""What the programs of this folder's parent share: parts to measure, the stopwatch, results. Begin with stopwatch.py."""
