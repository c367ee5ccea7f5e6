"""A run: its folder, its steps, its rehearsal without a step. Begin with run.py."""
