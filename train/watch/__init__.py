"""What is seen of a run while it goes: meters, guard, profiles. Begin with meters.py."""
