"""Evidence that it learns: cells of a grid, each a few commands that anyone can run, and the tables made of their figures."""
