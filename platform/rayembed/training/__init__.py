"""Training: the step, the loop around it, DeepSpeed, checkpoints and the launch on Ray Train."""
