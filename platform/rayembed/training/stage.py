"""One stage of a run as its workers get it: resolved, so that nothing below takes the recipe apart again."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayembed.common.device import FAKE_GPUS
from rayembed.config.run import ValidationConfig
from rayembed.config.stage import StageConfig
from rayembed.config.training import TrainingConfig
from rayembed.data.stream import StreamSpec
from rayembed.training.handover import FinishedStage, ModelExport
from rayembed.training.model import ModelSpec


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        settings: what it learns, and how.
        training: how training runs.
        validation: which checkpoints are scored; None: none.
        model: what is trained.
        stream: where plan, rows and lanes are.
        finished: the stages before, in order.
        seed: of the run.
        export: how a checkpoint becomes a model folder.
        run_name: for those who watch.
        run_folder: where metrics go.
    """

    settings: StageConfig
    training: TrainingConfig
    validation: ValidationConfig | None
    model: ModelSpec
    stream: StreamSpec
    finished: tuple[FinishedStage, ...]
    seed: int
    export: ModelExport
    run_name: str
    run_folder: Path

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        return self.settings.name

    @property
    def steps_before(self) -> int:
        """Steps of all stages before."""
        return sum(stage.steps for stage in self.finished)

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """What workers compute on, once `training.device` is decided; drills only claim their GPUs."""
        return "cuda" if self.training.device == "cuda" and FAKE_GPUS not in os.environ else "cpu"
