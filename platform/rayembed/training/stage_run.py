"""One stage as the workers get it."""

from dataclasses import dataclass
from pathlib import Path

from rayembed.config import RunConfig, StageConfig
from rayembed.data.stream import StreamSpec


@dataclass(frozen=True)
class StageRun:
    """One stage as the workers get it.

    Attributes:
        config: the whole run's configuration.
        stage_index: position of the stage.
        base: base model folder or hub id that the stage starts from, merged adapters included.
        original_base: base model of the run.
        stream: where the plan and the sources are.
        previous: checkpoint folders of the stages before, in order.
        run_folder: where metrics go.
    """

    config: RunConfig
    stage_index: int
    base: Path | str
    original_base: Path | str
    stream: StreamSpec
    previous: tuple[Path, ...]
    run_folder: Path

    @property
    def stage(self) -> StageConfig:
        """Configuration of this stage."""
        return self.config.stages[self.stage_index]

    @property
    def steps_before(self) -> int:
        """Steps of all earlier stages."""
        return sum(stage.steps for stage in self.config.stages[: self.stage_index])
