"""What a detection dataset has besides clips: detected people, from files or from a detector, and the tables of boxes."""
