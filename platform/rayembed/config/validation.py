"""Checkpoints that are scored while training goes on."""

from typing import Literal

from pydantic import Field

from rayembed.common.settings import Frozen


class ValidationConfig(Frozen):
    """Scores checkpoints on a few tasks during training, on CPUs and GPUs that training does not use."""

    tasks: tuple[str, ...] = Field(
        min_length=1, description="names of small tasks; the score is the mean of their main scores"
    )
    task_files: tuple[str, ...] = Field((), description="YAML files that declare your own tasks")
    every: int | None = Field(
        None,
        ge=1,
        description=(
            "steps between validations; None: training.checkpoint_every. The last step of a stage"
            " is always validated, stages of kind mntp never"
        ),
    )
    keep: Literal["best", "last"] = Field(
        "best", description="a stage ends with its best or its last checkpoint"
    )
    cpus: float = Field(1, gt=0, description="CPUs of a validation, in addition to those of training")
    gpus: float = Field(0, ge=0, description="GPUs of a validation, in addition to those of training")
