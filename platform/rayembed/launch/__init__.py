"""Training together with the evaluation of its checkpoints, which do not know each other."""
