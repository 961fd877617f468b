"""Texts to vectors for users: `Embedder` in Python, `embed_files` over Ray Data for files of any size."""
