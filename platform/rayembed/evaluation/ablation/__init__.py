"""Ablations: train and evaluate the cells of a declared grid, and test what each choice is worth."""
