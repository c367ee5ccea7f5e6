"""Recipes, a file for each stage: a function per table of the papers, or per official script. Begin with book.py."""
