"""Threads that compute with torch beside the one that runs the model."""

import torch
from threadpoolctl import threadpool_limits


def keep_to_one_processor() -> None:
    """Let torch compute in the calling thread alone; other threads keep their processors.

    GNU OpenMP gives every thread that computes in parallel a pool of its own. As soon as the pools of a
    process have more threads than the machine has processors, all of them go to sleep at every barrier in
    place of waiting actively for a while, which made a training step on two processors 6 to 10 % slower.
    Source: `gomp_throttled_spin_count_var` in libgomp's env.c.
    """
    torch.get_num_threads()  # torch sets a thread up at its first use, which would undo the limit
    threadpool_limits(1, user_api="openmp")
