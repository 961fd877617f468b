"""What is stored to continue a stage: trainable weights, Adam moments, and the cursor into the plan.

Files of a checkpoint folder, all written by rank 0:
    trainable.safetensors    fp32 master weights of the adapters and the pooling head
    moments.safetensors      Adam moments, named "moment.parameter"
    state.json               stage, next step, and the SHA-256 of the two files above
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rayembed.errors import CheckpointError
from rayembed.paths import atomic_write, file_digest
from rayembed.train.engine import optimizer_steps, read_state

WEIGHTS_FILE = "trainable.safetensors"
MOMENTS_FILE = "moments.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class TrainingState:
    """A stage between two steps.

    Attributes:
        stage: name of the stage.
        next_step: first step of the plan that has not been taken.
        optimizer_steps: steps that the optimizer took; fewer than `next_step` when batches were skipped.
        weights: fp32 trainable weights by parameter name.
        moments: Adam moments by "moment.parameter name".
    """

    stage: str
    next_step: int
    optimizer_steps: int
    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


def save_training_state(folder: Path, engine: Any, *, stage: str, next_step: int, rank: int) -> None:
    """Gather the state on all ranks and write it on rank 0; called by all ranks."""
    weights, moments = read_state(engine)
    if rank == 0:
        write_training_state(
            folder, TrainingState(stage, next_step, optimizer_steps(engine), weights, moments)
        )


def write_training_state(folder: Path, state: TrainingState) -> None:
    """Write the files of a checkpoint folder."""
    save_file(state.weights, folder / WEIGHTS_FILE)
    save_file(state.moments, folder / MOMENTS_FILE)
    digests = {name: file_digest(folder / name) for name in (WEIGHTS_FILE, MOMENTS_FILE)}
    content = {
        "stage": state.stage,
        "next_step": state.next_step,
        "optimizer_steps": state.optimizer_steps,
        "sha256": digests,
    }
    atomic_write(folder / STATE_FILE, json.dumps(content, indent=2) + "\n")


def load_training_state(folder: Path) -> TrainingState:
    """Read a checkpoint folder and compare its digests.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"training checkpoint {folder} has no {STATE_FILE}; it was not written to its end"
        )
    state = json.loads(path.read_text())
    for name, digest in state["sha256"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise CheckpointError(
                f"training checkpoint file {folder / name} is damaged; remove this checkpoint"
            )
    return TrainingState(
        stage=state["stage"],
        next_step=state["next_step"],
        optimizer_steps=state["optimizer_steps"],
        weights=load_file(folder / WEIGHTS_FILE),
        moments=load_file(folder / MOMENTS_FILE),
    )


def next_step(folder: Path) -> int:
    """First step of the plan that a checkpoint has not taken."""
    return json.loads((folder / STATE_FILE).read_text())["next_step"]


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Trainable weights alone, to start the next stage or to export."""
    return load_training_state(folder).weights
