"""The HTTP paths, one file an interface; each makes a router over the gateway."""
