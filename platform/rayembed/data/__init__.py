"""Training and evaluation data: schemas, splits, built-in sources and their storage on disk."""
