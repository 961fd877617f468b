"""The embedding model: bidirectional decoder, packed attention, pooling heads, checkpoints."""
