"""What goes on around the steps of a stage. One file a concern, one line in `trainer.callbacks_of`."""

from dataclasses import dataclass, field
from typing import Any

import torch

from rayembed.data.collate import TrainingBatch
from rayembed.training.resources import StepTimer
from rayembed.training.stage import Stage
from rayembed.training.step import BadBatch, StepOutput


@dataclass
class TrainerState:
    """One rank's view of a stage in training.

    Attributes:
        stage: what is trained.
        wrapped: the model, wrapped by DeepSpeed.
        device: of this rank.
        rank: of this process, from 0.
        world_size: number of ranks.
        first_step: where this attempt began.
        timer: phases of the running step.
        leaving: all ranks leave after this step, with a checkpoint. A callback sets it.
        stopped: the stage ends here, without a checkpoint. A callback sets it.
    """

    stage: Stage
    wrapped: Any
    device: torch.device
    rank: int
    world_size: int
    first_step: int
    timer: StepTimer = field(init=False)
    leaving: bool = False
    stopped: bool = False

    def __post_init__(self) -> None:
        self.timer = StepTimer(self.device)


class Callback:
    """One concern of the training loop. All ranks call every method, in the order of the list."""

    def __init__(self, state: TrainerState):
        self.state = state

    def before_step(self, batch: TrainingBatch) -> None:
        """A batch has arrived."""

    def on_step(self, batch: TrainingBatch, output: StepOutput, gradient_norm: float) -> None:
        """The weights have moved."""

    def on_bad_batch(self, batch: TrainingBatch, error: BadBatch) -> None:
        """The batch had no finite loss or gradient, and the weights are as before."""

    def after_step(self, next_step: int) -> None:
        """A step was taken, or left out for a bad batch."""

    def close(self) -> None:
        """Training has ended, in whatever way."""
