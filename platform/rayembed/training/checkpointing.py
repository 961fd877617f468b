"""What is stored to continue a stage: trainable weights, Adam moments, and the cursor into the plan.

Files of a checkpoint folder, all written by rank 0:
    trainable.safetensors    fp32 master weights of the adapters and the pooling head
    moments.safetensors      Adam moments, named "moment.parameter"
    state.json               stage, next step, the SHA-256 of the two files above and one of its own content

`state.json` is written last, so that a folder without one was not written to its end.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import atomic_write, file_digest

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


def write_training_state(folder: Path, state: TrainingState) -> None:
    """Write the files of a checkpoint folder.

    Raises:
        OSError: the disk is full or fails.
    """
    for name, tensors in ((WEIGHTS_FILE, state.weights), (MOMENTS_FILE, state.moments)):
        try:
            save_file(tensors, folder / name)
        except SafetensorError as error:
            raise OSError(str(error)) from error
    digests = {name: file_digest(folder / name) for name in (WEIGHTS_FILE, MOMENTS_FILE)}
    content = {
        "stage": state.stage,
        "next_step": state.next_step,
        "optimizer_steps": state.optimizer_steps,
        "sha256": digests,
    }
    content["state_sha256"] = _content_digest(content)
    atomic_write(folder / STATE_FILE, json.dumps(content, indent=2) + "\n")


def load_training_state(folder: Path) -> TrainingState:
    """Read a checkpoint folder and compare its digests.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    state = check_training_state(folder)
    return TrainingState(
        stage=state["stage"],
        next_step=state["next_step"],
        optimizer_steps=state["optimizer_steps"],
        weights=load_file(folder / WEIGHTS_FILE),
        moments=load_file(folder / MOMENTS_FILE),
    )


def check_training_state(folder: Path) -> dict[str, Any]:
    """Compare the digests of a checkpoint folder; returns the content of its `state.json`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"training checkpoint {folder} has no {STATE_FILE}, so it was not written to its end; remove it "
            "and run the same command again"
        )
    try:
        state = json.loads(path.read_text())
        digest = state.pop("state_sha256")
    except (ValueError, KeyError, AttributeError):
        state, digest = {}, ""
    if _content_digest(state) != digest:
        raise _damaged(path)
    for name, expected in state["sha256"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != expected:
            raise _damaged(folder / name)
    return state


def next_step(folder: Path) -> int:
    """First step of the plan that a checkpoint has not taken."""
    return json.loads((folder / STATE_FILE).read_text())["next_step"]


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Trainable weights alone, to start the next stage or to export."""
    return load_training_state(folder).weights


def _content_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"training checkpoint file {path} is damaged; remove {path.parent} and run the same command again"
    )
