"""Notices that a worker is about to be taken away, and the step after which all ranks leave.

A notice is a draining node of Ray (the autoscaler, `ray drain-node`, or SIGTERM to `ray start --block`, as
Kubernetes sends it) or SIGTERM to a worker itself. What one rank knows, all act on at the same step: they
tell each other in a collective on the CPU that runs beside the step, so that no GPU waits for its host.
"""

import signal
import threading

import torch
import torch.distributed as dist

from rayembed.common.ray_compat import run_in_main_thread, was_told_of_preemption
from rayembed.training.distributed import world_size

_terminated = threading.Event()


class PreemptionNotice:
    """Whether all ranks leave after the running step; made by all ranks inside Ray Train, once a process."""

    def __init__(self) -> None:
        run_in_main_thread(_catch_termination)
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._told = torch.zeros((), dtype=torch.int32)
        self._work: dist.Work | None = None

    def ask(self) -> None:
        """Send what this rank was told so far; called by all ranks before the step."""
        self._told = torch.tensor(int(_terminated.is_set() or was_told_of_preemption()), dtype=torch.int32)
        if self._group is not None:
            self._work = dist.all_reduce(self._told, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def given(self) -> bool:
        """Whether some rank was told to leave when it asked; called by all ranks after the step."""
        if self._work is not None:
            self._work.wait()
        return bool(self._told)


def _catch_termination() -> None:
    """Make SIGTERM a notice in place of the end; runs in the main thread of the worker."""
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())
