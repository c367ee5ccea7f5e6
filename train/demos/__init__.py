"""What predict.py and reconstruct.py share, and what they draw: released weights and single files, no dataset and no run."""
