"""What a run's report shows. Begin with sections.py."""
