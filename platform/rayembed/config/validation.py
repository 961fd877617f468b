"""Checkpoints that are scored while training goes on."""

from typing import Literal

from pydantic import Field

from rayembed.common.settings import Frozen


class ValidationConfig(Frozen):
    """Checkpoints are scored on a few tasks while training goes on, beside the workers' CPUs and GPUs."""

    tasks: tuple[str, ...] = Field(
        min_length=1, description="names of tasks, small ones; the score is the mean of their main scores"
    )
    task_files: tuple[str, ...] = Field((), description="YAML files of own tasks that `tasks` may name")
    every: int | None = Field(
        None,
        ge=1,
        description="steps of a stage between validations, a checkpoint is written for each; None: "
        "training.checkpoint_every. The last step of a stage is always validated, stages of kind mntp never",
    )
    keep: Literal["best", "last"] = Field(
        "best", description="which checkpoint a stage ends with: that of the highest score, or the last one"
    )
    cpus: float = Field(1, gt=0, description="CPUs that a validation takes beside those of training")
    gpus: float = Field(0, ge=0, description="GPUs that a validation takes beside those of training")
