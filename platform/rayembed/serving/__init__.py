"""The endpoint: an OpenAI-compatible embedding service on Ray Serve."""
