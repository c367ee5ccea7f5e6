"""Actions in time: features and annotations as a dataset, its batches, what a localizer finds in videos, how good that is."""
