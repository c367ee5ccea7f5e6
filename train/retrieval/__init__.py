"""Texts that find videos: the text's tower, the loss that draws pairs together, what is held out. Begin in contrastive.py."""
