"""A training run whose checkpoints are scored by `rayembed.evaluation`, where its recipe asks for it."""

from pathlib import Path

from rayembed.cli.scoring import scorer_of
from rayembed.config import RunConfig
from rayembed.training.run import train as run_training


def train(config: RunConfig) -> Path:
    """Train a run to its end and return the model folder.

    Raises:
        UserError: anything in the recipe, the data or the machine that stands in the way.
    """
    return run_training(config, scorer_of(config))
