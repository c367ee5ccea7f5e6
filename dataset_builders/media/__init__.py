"""One video: looked at, transcoded, decoded whole. Begin with clip_maker.py, which does all three."""
