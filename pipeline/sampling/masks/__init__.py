"""Which tokens of a view are hidden: a rule a file, a pure function of the view's key. Begin with rules.py, the table."""
