"""The stages, a file each: what the one loop trains, and on what. Begin with pretraining.py; what a stage is, is
`train/stage.py`."""
