"""Bodies of requests and responses, one file an interface."""
