"""Notices that a worker is about to be taken away, and the step after which all ranks leave.

A notice is a draining node of Ray (the autoscaler, `ray drain-node`, or SIGTERM to `ray start --block`, as
Kubernetes sends it) or SIGTERM to a worker itself. What one rank knows, all act on at the same step: they
tell each other in a collective on the CPU that runs beside the step, so that no GPU waits for its host.
"""

import signal
import threading

import ray
import torch
import torch.distributed as dist
from ray.train.v2._internal.execution.context import get_train_context

from rayembed.training.distributed import world_size

_terminated = threading.Event()


class PreemptionNotice:
    """Whether all ranks leave after the running step; made by all ranks inside Ray Train, once a process."""

    def __init__(self) -> None:
        # Only the actor's main thread may handle signals, and training runs in another one.
        ray.get(ray.get_runtime_context().current_actor.execute.remote(_catch_termination))
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._told = torch.zeros((), dtype=torch.int32)
        self._work: dist.Work | None = None

    def ask(self) -> None:
        """Send what this rank was told so far; called by all ranks before the step."""
        self._told = torch.tensor(int(_was_told()), dtype=torch.int32)
        if self._group is not None:
            self._work = dist.all_reduce(self._told, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def given(self) -> bool:
        """Whether some rank was told to leave when it asked; called by all ranks after the step."""
        if self._work is not None:
            self._work.wait()
        return bool(self._told)


def _was_told() -> bool:
    # Ray's public `get_preemption_info` is a barrier of all workers through another process. This is the
    # value that it would send.
    return _terminated.is_set() or get_train_context().preemption_context.preemption_info is not None


def _catch_termination() -> None:
    """Make SIGTERM a notice in place of the end; runs in the main thread of the worker."""
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())
