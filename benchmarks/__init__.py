"""What the claims in the README are measured with."""
