"""Smaller checkpoints: pruned weights, training them again, fewer bits, and a study of what each costs."""
