"""One stage of a run as its workers get it: resolved, so that nothing below takes the recipe apart again."""

from dataclasses import dataclass
from pathlib import Path

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
        stream: where the plan and the rows are.
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
