"""The folder a finished model lives in.

rayembed.json       format, model configuration, digests of the files, versions, provenance
contract.json       tokenisation and pooling contract
backbone/           Hugging Face folder, adapters merged
tokenizer/          Hugging Face tokenizer files
pooling/            model.safetensors of the pooling head (absent for heads without parameters)
recipe.yaml         resolved configuration of the run that made it (absent for converted models)
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import atomic_directory, atomic_write, fetch, file_digest, is_stored
from rayembed.contract import CONTRACT_FILE, Contract
from rayembed.contract.tokenizer import check_vocabulary, load_tokenizer
from rayembed.model.backbone import layers_of, load_backbone
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.packed import WeightFormat, write_packed

MANIFEST_FILE = "rayembed.json"
FORMAT_VERSION = 1
POOLING_FILE = "pooling/model.safetensors"
_MODEL_PARTS = ("backbone", "pooling", "tokenizer")
_VERSIONED_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "mteb")


@dataclass(frozen=True)
class LoadedModel:
    """What a checkpoint folder holds, in memory."""

    embedder: EmbeddingModel
    tokenizer: PreTrainedTokenizerBase
    contract: Contract
    digest: str


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide what a vector looks like."""
    versions = {}
    for name in _VERSIONED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def save_model(
    folder: Path,
    embedder: EmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    contract: Contract,
    *,
    provenance: dict[str, Any] | None = None,
    recipe: str | None = None,
    packed: WeightFormat | None = None,
) -> str:
    """Write a model whose adapters are merged; the folder appears only when it is complete.

    Args:
        folder: where to write; an older folder of that name is replaced.
        embedder: model without adapters.
        tokenizer: its tokenizer.
        contract: its contract.
        provenance: facts to keep, such as base model and training steps.
        recipe: text of the resolved configuration.
        packed: pack the backbone in this format, see `model.packed`; None: an ordinary folder.

    Returns:
        Digest of the model: SHA-256 over the digests of all files that decide a vector.
    """
    with atomic_directory(folder) as temporary:
        digest = write_model(temporary, embedder, tokenizer, contract, provenance=provenance, packed=packed)
        if recipe is not None:
            atomic_write(temporary / "recipe.yaml", recipe)
    return digest


def write_model(
    folder: Path,
    embedder: EmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    contract: Contract,
    *,
    provenance: dict[str, Any] | None = None,
    packed: WeightFormat | None = None,
) -> str:
    """`save_model` into a folder that is there already and may hold other files."""
    adapters = [name for name, _ in embedder.named_parameters() if "lora_" in name]
    assert not adapters, f"merge the adapters before saving, found {adapters[0]}"
    if packed is None:
        embedder.backbone.save_pretrained(folder / "backbone")
    else:
        embedder.backbone.config.save_pretrained(folder / "backbone")
        write_packed(folder / "backbone", embedder.backbone, layers_of(embedder.backbone), packed)
    return write_around_backbone(
        folder, embedder.config, embedder.pooling, tokenizer, contract,
        dimensions=embedder.dimensions, provenance=provenance,
    )  # fmt: skip


def write_around_backbone(
    folder: Path,
    config: ModelConfig,
    pooling: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    contract: Contract,
    *,
    dimensions: int,
    provenance: dict[str, Any] | None = None,
) -> str:
    """Write all of a model but its backbone, which is there already; returns the digest of the model."""
    tokenizer.save_pretrained(folder / "tokenizer")
    contract.save(folder)
    head = {name: tensor.detach().contiguous().cpu() for name, tensor in pooling.state_dict().items()}
    if head:
        (folder / POOLING_FILE).parent.mkdir(exist_ok=True)
        save_file(head, folder / POOLING_FILE)
    return write_manifest(folder, config, dimensions, provenance=provenance)


def write_manifest(
    folder: Path, config: ModelConfig, dimensions: int, *, provenance: dict[str, Any] | None = None
) -> str:
    """Describe the model's files in its manifest; returns the digest of the model."""
    paths = [path for part in _MODEL_PARTS for path in (folder / part).rglob("*") if path.is_file()]
    files = {
        str(path.relative_to(folder)): {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in sorted([folder / CONTRACT_FILE, *paths])
    }
    digest = _model_digest(config, files)
    manifest = {
        "format_version": FORMAT_VERSION,
        "digest": digest,
        "dimensions": dimensions,
        "model": config.model_dump(),
        "files": files,
        "provenance": provenance or {},
        "versions": installed_versions(),
    }
    atomic_write(folder / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
    return digest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a checkpoint folder whose files are all there in their recorded sizes.

    Raises:
        CheckpointError: no such folder, no manifest, another format version, or a file is missing or cut
            short.
    """
    folder = fetch(folder, weights=False)
    path = folder / MANIFEST_FILE
    if not path.is_file():
        hint = "; convert it with `rayembed import-checkpoint`" if (folder / "modules.json").is_file() else ""
        raise CheckpointError(f"{folder} is not a rayembed checkpoint: it has no {MANIFEST_FILE}{hint}")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy the checkpoint again") from error
    manifest = manifest if isinstance(manifest, dict) else {}
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {manifest.get('format_version')}, this release reads {FORMAT_VERSION}"
        )
    for name, recorded in manifest["files"].items():
        if is_stored(folder):
            break  # a store shows no folder before it is complete
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {folder} is incomplete: {name} is missing; copy it again")
        if file.stat().st_size != recorded["bytes"]:
            raise CheckpointError(
                f"checkpoint file {file} has {file.stat().st_size} bytes instead of {recorded['bytes']}; "
                "copy it again"
            )
    return manifest


def read_configuration(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """Manifest and model configuration of a checkpoint folder.

    Raises:
        CheckpointError: as `read_manifest`, or the configuration is not readable.
    """
    manifest = read_manifest(folder)
    try:
        return manifest, ModelConfig.model_validate(manifest["model"])
    except ValidationError as error:
        raise CheckpointError(f"model configuration of {folder} is not readable: {error}") from error


def checkpoint_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Keys of a recipe, under `contract` and `model`, that make models of the same kind as a checkpoint.

    Raises:
        CheckpointError: as `read_configuration`.
    """
    _, config = read_configuration(folder)
    contract = Contract.load(folder).model_dump(mode="json", exclude={"vector_ranges"})
    return {"contract": contract, "model": config.model_dump(mode="json")}


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Load a checkpoint folder, ready for inference.

    Args:
        folder: checkpoint folder.
        dtype: number format of the weights; auto: as they are stored.
        device: where each weight goes as it is read; the CPU holds no copy of the model.

    Raises:
        CheckpointError: the folder is incomplete, damaged or of another shape.
    """
    folder = fetch(folder)
    manifest, config = read_configuration(folder)
    contract = Contract.load(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    backbone = load_backbone(folder / "backbone", dtype=dtype, attention=config.attention, device=device)
    check_vocabulary(tokenizer, backbone.config.vocab_size, str(folder))
    with torch.device("meta"):
        embedder = EmbeddingModel(backbone, config)
    if embedder.pooling.state_dict():
        path = folder / POOLING_FILE
        load_matching(embedder.pooling, load_file(path, device=str(device)), str(path))
    embedder.pooling.to(backbone.dtype)
    embedder.eval().requires_grad_(False)
    return LoadedModel(embedder, tokenizer, contract, manifest["digest"])


def load_matching(module: torch.nn.Module, tensors: dict[str, torch.Tensor], origin: str) -> None:
    """Make `tensors` the weights of `module`, naming any that is missing, extra or of another shape.

    Raises:
        CheckpointError: names or shapes differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected, origin)
    module.load_state_dict(tensors, assign=True)


def check_tensors(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Compare names and shapes.

    Raises:
        CheckpointError: names the first tensor that is missing, extra or of another shape.
    """
    checks: list[tuple[str, Callable[[str], bool]]] = [
        ("is missing", lambda name: name not in found),
        ("is not expected", lambda name: name not in expected),
        ("has another shape", lambda name: found[name] != expected[name]),
    ]
    for name in sorted(expected.keys() | found.keys()):
        for problem, applies in checks:
            if applies(name):
                raise CheckpointError(
                    f"{origin}: tensor {name} {problem} (file {found.get(name)}, model {expected.get(name)})"
                )


def _model_digest(config: ModelConfig, files: dict[str, dict[str, Any]]) -> str:
    content = {
        "model": config.model_dump(),
        "files": {name: entry["sha256"] for name, entry in files.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
