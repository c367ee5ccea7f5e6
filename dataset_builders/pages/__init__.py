"""What a dataset's report shows: counts, sections, pictures. Begin with sections.py."""
