"""Safetensors files that together hold one model, read and written one file at a time."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import atomic_write
from rayembed.model.packed import PACKED_FILE

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


def weight_files(folder: Path) -> list[Path]:
    """Files named by the folder's index, or the single file where there is no index.

    Raises:
        CheckpointError: neither is there, or a file that the index names is missing.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError) as error:
            raise CheckpointError(
                f"{index} is not a readable index ({error}); copy the folder again"
            ) from error
    else:
        names = [SINGLE_FILE]
    if (folder / PACKED_FILE).is_file():
        raise CheckpointError(
            f"{folder} has packed weights, which other libraries do not read; take the model that was packed"
        )
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no weight file {name}; copy the folder again")
    return [folder / name for name in names]


def shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, from the headers alone.

    Raises:
        CheckpointError: a file is damaged.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.offset_keys()}
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a readable safetensors file ({error})") from error
    return found


def read(file: Path, prefix: str, replacement: str = "") -> dict[str, torch.Tensor]:
    """Tensors of one file whose names start with `prefix`, which `replacement` takes the place of."""
    with safe_open(file, framework="pt") as tensors:
        return {
            replacement + name.removeprefix(prefix): tensors.get_tensor(name)
            for name in tensors.offset_keys()
            if name.startswith(prefix)
        }


def files_with(files: Iterable[Path], prefix: str) -> list[Path]:
    """Those files that hold a tensor whose name starts with `prefix`."""
    return [file for file in files if any(name.startswith(prefix) for name in shapes([file]))]


def write(folder: Path, parts: Iterable[Mapping[str, torch.Tensor]], num_parts: int) -> None:
    """Write each part as one numbered file and their index, or a single part as the single file.

    Hugging Face folders are laid out like that.
    """
    if num_parts == 1:
        [part] = parts
        save_file(dict(part), folder / SINGLE_FILE, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    total_size = 0
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05d}-of-{num_parts:05d}.safetensors"
        save_file(dict(part), folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
        total_size += sum(tensor.nbytes for tensor in part.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    atomic_write(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
