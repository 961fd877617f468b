"""What every part uses.

errors, logs            mistakes of the user; one log format
settings                the base of all settings, and what differs between two of them
paths, packages         the workspace and atomic files; pinned files of the package index
progress                spans of time as text, progress of long work in the log
ray_cluster, ray_work   connecting to Ray; the one way to do many items of work on it
ray_compat              private and unstable names of Ray, DeepSpeed and mteb
templates               prompts and pages
endpoint_client         OpenAI-compatible endpoints
"""
