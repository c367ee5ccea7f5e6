"""How often a classifier is right: views become clips in scores.py, clips figures in accuracy.py. Begin there."""
