"""Train, evaluate and serve generalist text embedding models on Ray."""

__version__ = "0.1.0"
