"""One checkpoint out of several of one backbone, tensor by tensor: no whole model is ever in memory.

    soup    weighted mean; weights 1 and 3 give a / 4 + 3 b / 4
    slerp   of two checkpoints, along the arc from each tensor of the first to that of the second: half way
            from (1, 0) to (0, 1) lies (0.71, 0.71), as long as both, where the mean is (0.5, 0.5)

Sources: model soups, arXiv 2203.05482; slerp, Shoemake, SIGGRAPH 1985.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.common.paths import atomic_directory
from rayembed.common.settings import differences
from rayembed.contract import Contract
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.model.checkpoint import POOLING_FILE, read_configuration, write_manifest
from rayembed.model.export.shards import shapes, weight_files, write

Method = Literal["soup", "slerp"]

_SHOWN = 8  # differences of two checkpoints
_WITHOUT_EFFECT = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "architectures")
_ALMOST_PARALLEL = 1e-4  # sine of an angle below which the arc is straight


def soup(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Weighted mean in fp32; the weights add up to 1."""
    mean = tensors[0].float() * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        mean += tensor.float() * weight
    return mean


def slerp(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The point on the arc between two tensors, in fp32; between (almost) parallel ones their mean."""
    first, second = (tensor.float() for tensor in tensors)
    lengths = first.norm() * second.norm()
    angle = torch.arccos(((first * second).sum() / lengths.clamp(min=1e-30)).clamp(-1, 1))
    if lengths == 0 or torch.sin(angle) < _ALMOST_PARALLEL:
        return soup(tensors, weights)
    shares = torch.sin(angle * torch.tensor(weights)) / torch.sin(angle)
    return shares[0] * first + shares[1] * second


def merge_checkpoints(
    checkpoints: Sequence[Path], out: Path, weights: Sequence[float], method: Method = "soup"
) -> str:
    """Write the merged checkpoint; returns its digest.

    Number format, tokenizer and sizes of the files are those of the first checkpoint. The manifest records
    method, weights, and the manifests' own records of the parents.

    Raises:
        CheckpointError: a folder is incomplete or damaged, or two checkpoints differ in more than weights.
        ConfigError: the weights are not one of each checkpoint, from 0 up and not all 0, or slerp gets more
            than two.
    """
    shares = _shares(weights, len(checkpoints))
    if method == "slerp" and len(checkpoints) != 2:
        raise ConfigError(f"slerp takes two checkpoints, not {len(checkpoints)}; soup takes any number")
    check_same_kind(checkpoints)
    manifest, config = read_configuration(checkpoints[0])
    combine = {"soup": soup, "slerp": slerp}[method]
    with atomic_directory(out) as temporary:
        for name in ("tokenizer", "backbone"):
            ignore = shutil.ignore_patterns("*.safetensors*")
            shutil.copytree(checkpoints[0] / name, temporary / name, ignore=ignore)
        # The vectors of the merged weights lie elsewhere.
        Contract.load(checkpoints[0]).model_copy(update={"vector_ranges": None}).save(temporary)
        files = [weight_files(checkpoint / "backbone") for checkpoint in checkpoints]
        write(temporary / "backbone", _merged(files, shares, combine), len(files[0]))
        if (checkpoints[0] / POOLING_FILE).is_file():
            (temporary / POOLING_FILE).parent.mkdir()
            [head] = _merged([[checkpoint / POOLING_FILE] for checkpoint in checkpoints], shares, combine)
            save_file(head, temporary / POOLING_FILE)
        provenance = _provenance(checkpoints, shares, method)
        return write_manifest(temporary, config, manifest["dimensions"], provenance=provenance)


def check_same_kind(checkpoints: Sequence[Path]) -> None:
    """Compare model, backbone, contract, tokenizer and shapes of weights with the first checkpoint's.

    Raises:
        CheckpointError: names what differs.
    """
    first = _described(checkpoints[0])
    for other in checkpoints[1:]:
        if found := list(differences(first, _described(other))):
            more = f"\nand {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise CheckpointError(
                f"{checkpoints[0]} and {other} differ in more than weights and cannot be merged; from the "
                "first to the second,\n" + "\n".join(found[:_SHOWN]) + more
            )


def chosen_weights(
    count: int, method: Method, score: Callable[[Sequence[float]], float]
) -> tuple[float, ...]:
    """Weights of `count` checkpoints with the highest score of those tried.

    A soup is greedy: it begins with the best checkpoint and takes each next one in if that lowers no score,
    all with equal weights. Slerp tries a quarter, a half and three quarters, and each checkpoint alone.
    """
    if method == "slerp":
        return max(((1 - share / 4, share / 4) for share in range(5)), key=score)
    alone = [tuple(float(index == one) for index in range(count)) for one in range(count)]
    scores = {weights: score(weights) for weights in alone}
    best, *rest = sorted(alone, key=scores.__getitem__, reverse=True)
    highest = scores[best]
    for one in rest:
        tried = tuple(a + b for a, b in zip(best, one, strict=True))
        if (found := score(tried)) >= highest:
            best, highest = tried, found
    return best


def _shares(weights: Sequence[float], count: int) -> list[float]:
    total = sum(weights)
    if len(weights) != count or min(weights) < 0 or not 0 < total < float("inf"):
        raise ConfigError(
            f"weights {list(weights)} do not fit {count} checkpoints; give one number from 0 up for each"
        )
    return [weight / total for weight in weights]


def _described(checkpoint: Path) -> dict[str, Any]:
    _, config = read_configuration(checkpoint)
    backbone = json.loads((checkpoint / "backbone" / "config.json").read_text())
    tokenizer: Any = load_tokenizer(checkpoint / "tokenizer")
    files = weight_files(checkpoint / "backbone")
    head = checkpoint / POOLING_FILE
    return {
        "model": config.model_dump(mode="json"),
        "backbone": {key: value for key, value in backbone.items() if key not in _WITHOUT_EFFECT},
        "contract": Contract.load(checkpoint).model_dump(mode="json", exclude={"vector_ranges"}),
        "tokenizer": sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "shapes": shapes(files) | (shapes([head]) if head.is_file() else {}),
    }


def _merged(
    files: Sequence[Sequence[Path]],
    shares: Sequence[float],
    combine: Callable[[Sequence[torch.Tensor], Sequence[float]], torch.Tensor],
) -> Iterator[dict[str, torch.Tensor]]:
    """Merged tensors of one file of the first checkpoint at a time; `files` are each checkpoint's."""
    places: list[Mapping[str, Path]] = [
        {name: file for file in one for name in shapes([file])} for one in files
    ]
    for file in files[0]:
        part = {}
        for name in shapes([file]):
            tensors = [_tensor(place[name], name) for place in places]
            part[name] = combine(tensors, shares).to(tensors[0].dtype)
        yield part


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _provenance(checkpoints: Sequence[Path], shares: Sequence[float], method: Method) -> dict[str, Any]:
    """The first parent's base model, the data of all, and each parent with its weight."""
    manifests = [read_configuration(checkpoint)[0] for checkpoint in checkpoints]
    records = [manifest["provenance"] for manifest in manifests]
    parents = [
        {"checkpoint": str(checkpoint), "digest": manifest["digest"], "weight": share, "provenance": record}
        for checkpoint, manifest, share, record in zip(checkpoints, manifests, shares, records, strict=True)
    ]
    return {
        "base_model": records[0].get("base_model"),
        "base_layers": records[0].get("base_layers"),
        "sources": list(dict.fromkeys(name for record in records for name in record.get("sources", []))),
        "licences": {key: value for record in records for key, value in record.get("licences", {}).items()},
        "merged": {"method": method, "parents": parents},
    }
