"""Completion: fill the entries of a target that dropout lost."""
