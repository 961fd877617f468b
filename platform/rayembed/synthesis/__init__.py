"""Synthetic training rows: a language model invents tasks, then a triplet for each of them."""
