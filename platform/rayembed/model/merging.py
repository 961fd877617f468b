"""A backbone with what was trained added to it, written part by part: no whole model is ever in memory.

Names of trained tensors start with `backbone.`, as in `EmbeddingModel`. For a linear layer `q_proj` with
adapters of rank r, shapes (out, in):
    backbone.q_proj.lora_A.default.weight    A, (r, in)
    backbone.q_proj.lora_B.default.weight    B, (out, r)
    q_proj.weight of the base                W; written is W + alpha / r * B @ A
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import fetch
from rayembed.model.backbone import empty_backbone
from rayembed.model.configuration import LoraSettings
from rayembed.model.export.shards import shapes, weight_files, write
from rayembed.model.nf4 import rounded

_PART_BYTES = 2**31  # of a file that is written


def write_merged(
    base: Path | str,
    folder: Path,
    trained: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None,
    lora: LoraSettings | None = None,
    attention: Literal["bidirectional", "causal"] = "bidirectional",
    layers: int | None = None,
    keeps_zeros: bool = False,
) -> None:
    """Write a base model's backbone as a Hugging Face folder.

    Sums are taken in fp32. What is not trained is copied; linear layers that training held in NF4 are written
    with the values that it computed with.

    Args:
        base: folder or hub id with safetensors.
        folder: where to write.
        trained: weights by name; those of other parts of the model are left out.
        dtype: number format of the files; None: the base's own.
        lora: settings of the adapters in `trained`.
        attention: written into the configuration.
        layers: of the base that are kept; None: all.
        keeps_zeros: adapters change no weight of the base that is zero.

    Raises:
        CheckpointError: the base is incomplete or of another architecture.
    """
    model = empty_backbone(base, attention=attention, layers=layers)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    files = _base_tensors(base, expected, model.base_model_prefix)
    dtype = dtype or _stored_dtype(*next(iter(files.values())))
    model.config.architectures, model.config.dtype = [type(model).__name__], dtype
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    parts = list(_parts(expected, dtype.itemsize))
    scale = lora.alpha / lora.rank if lora else 0.0
    packed = (
        {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if lora and lora.quantization
        else set()
    )
    merged = (
        {name: _merged(name, files, trained, scale, keeps_zeros, name in packed).to(dtype) for name in part}
        for part in parts
    )
    write(folder, merged, len(parts))


def merging_bytes(parameters: int, trained: int) -> int:
    """Most memory of `write_merged`, with interpreter and libraries.

    Args:
        parameters: of the model.
        trained: those of them that come in fp32.
    """
    part = min(4 * parameters, _PART_BYTES)
    return 2**30 + 3 * part + 2 * 4 * trained


def _base_tensors(
    base: Path | str, expected: Mapping[str, tuple[int, ...]], head: str
) -> dict[str, tuple[Path, str]]:
    """Where each tensor is: file, and name in it, which `head` precedes where a language-model head is saved.

    The first BERT models call the weights of a norm gamma and its biases beta.
    """
    folder = fetch(base)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(base), allow_patterns=["*.safetensors", "*.json"]))
    found: dict[str, tuple[Path, str]] = {}
    for file in weight_files(folder):
        for stored, shape in shapes([file]).items():
            modern = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", stored)
            modern = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", modern)
            for name in {modern, modern.removeprefix(f"{head}.")}:
                if expected.get(name) == shape:
                    found[name] = (file, stored)
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise CheckpointError(
            f"{base} lacks {len(missing)} tensors, the first is {missing[0]} of shape "
            f"{expected[missing[0]]}; the folder is incomplete"
        )
    return found


def _stored_dtype(file: Path, name: str) -> torch.dtype:
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name).dtype


def _parts(expected: Mapping[str, tuple[int, ...]], itemsize: int) -> Iterator[list[str]]:
    """Names that go into one file each."""
    part: list[str] = []
    size = 0
    for name, shape in expected.items():
        own = torch.Size(shape).numel() * itemsize
        if part and size + own > _PART_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += own
    yield part


def _merged(
    name: str,
    files: Mapping[str, tuple[Path, str]],
    trained: Mapping[str, torch.Tensor],
    scale: float,
    keeps_zeros: bool,
    is_packed: bool,
) -> torch.Tensor:
    if f"backbone.{name}" in trained:
        return trained[f"backbone.{name}"].contiguous()
    file, stored = files[name]
    with safe_open(file, framework="pt") as tensors:
        weight = tensors.get_tensor(stored)
    if is_packed:
        weight = rounded(weight)
    layer = f"backbone.{name.removesuffix('.weight')}"
    down = trained.get(f"{layer}.lora_A.default.weight")
    if down is None:
        return weight
    update = scale * (trained[f"{layer}.lora_B.default.weight"].float() @ down.float())
    return weight.float() + (update.masked_fill(weight == 0, 0) if keeps_zeros else update)
