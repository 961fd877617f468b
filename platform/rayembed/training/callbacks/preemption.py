"""Notices that a worker is about to be taken away, and the step after which all ranks leave.

A notice is a draining node of Ray (the autoscaler, `ray drain-node`, or SIGTERM to `ray start --block`, as
Kubernetes sends it) or SIGTERM to a worker itself. What one rank knows, all act on at the same step: they
tell each other in a collective on the CPU that runs beside the step, so that no GPU waits for its host.
"""

import logging
import signal
from types import FrameType

import torch
import torch.distributed as dist

from rayembed.common.ray_compat import run_in_main_thread, was_told_of_preemption
from rayembed.data.collate import TrainingBatch
from rayembed.training.callbacks import Callback, TrainerState

logger = logging.getLogger(__name__)


class Preemption(Callback):
    """All ranks leave after the running step when one of them was told to."""

    def __init__(self, state: TrainerState):
        super().__init__(state)
        run_in_main_thread(_catch_termination)
        self._group = dist.new_group(backend="gloo") if state.world_size > 1 else None
        self._told = torch.zeros((), dtype=torch.int32)
        self._work: dist.Work | None = None

    def before_step(self, batch: TrainingBatch) -> None:
        """Send what this rank was told so far."""
        self._told = torch.tensor(int(_was_told()), dtype=torch.int32)
        if self._group is not None:
            self._work = dist.all_reduce(self._told, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def after_step(self, next_step: int) -> None:
        """Leave when some rank was told to before the step."""
        if self._work is not None:
            self._work.wait()
        self.state.leaving = bool(self._told)
        if self.state.leaving and self.state.rank == 0:
            logger.warning(
                "stage %s: a worker must go; all leave after step %d", self.state.stage.name, next_step - 1
            )


class _Termination:
    """A handler of SIGTERM that takes note of it; any thread can read it back from `signal`."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def _catch_termination() -> None:
    """Make SIGTERM a notice in place of the end; runs in the main thread of the worker."""
    signal.signal(signal.SIGTERM, _Termination())


def _was_told() -> bool:
    handler = signal.getsignal(signal.SIGTERM)
    return (isinstance(handler, _Termination) and handler.received) or was_told_of_preemption()
