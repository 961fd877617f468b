"""Stages of a recipe as workers get them."""

from pathlib import Path

from rayembed.config.run import RunConfig
from rayembed.data.stream import StreamSpec
from rayembed.training.handover import FinishedStage, ModelExport
from rayembed.training.model import ModelSpec
from rayembed.training.stage import Stage


def stage_of(config: RunConfig, base: Path, stream: StreamSpec, run_folder: Path, index: int = 0) -> Stage:
    """A stage whose predecessors ended, though their checkpoints may be missing."""
    finished = [FinishedStage.of(settings, run_folder / settings.name) for settings in config.stages[:index]]
    return Stage(
        settings=config.stages[index],
        training=config.training,
        validation=config.validation,
        model=ModelSpec.of(config, base),
        stream=stream,
        finished=tuple(finished),
        seed=config.seed,
        export=ModelExport.of(config),
        run_name=config.name,
        run_folder=run_folder,
    )
