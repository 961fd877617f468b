"""Hard negatives: search with teachers, then filters that keep false negatives out."""
