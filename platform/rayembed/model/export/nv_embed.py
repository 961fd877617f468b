"""The folder of the published NV-Embed models, read and written.

Source: names, shapes, configuration keys and defaults of nvidia/NV-Embed-v1 and -v2.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerBase

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import atomic_directory, atomic_write
from rayembed.contract import Contract
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.model.checkpoint import POOLING_FILE, check_tensors, read_configuration, write_manifest
from rayembed.model.configuration import ModelConfig
from rayembed.model.embedding_model import EmbeddingModel
from rayembed.model.export import shards
from rayembed.model.pooling import LatentPoolingConfig

logger = logging.getLogger(__name__)

# Mistral-7B-v0.1, which a sub-configuration that holds only its model type stands for.
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT_DEFAULTS: dict[str, Any] = {
    "num_latents_value": 512,
    "num_cross_heads": 8,
    "output_normalize": True,
    "hidden_dim": 4096,
    "latent_dim": 4096,
    "cross_dim_head": 4096,
}
_FIXED = {"padding_side": "right", "is_mask_instruction": True, "mask_type": "b"}
_FEEDFORWARD_MULTIPLIER = 4  # a constant of the published code, which its configuration does not hold
_BACKBONE = "embedding_model."
_HEAD = "latent_attention_model."


def is_nv_embed(folder: Path) -> bool:
    """Whether the folder is a published NV-Embed; those have modules of sentence-transformers too."""
    path = folder / "config.json"
    return path.is_file() and '"nvembed"' in path.read_text()


def read_nv_embed_configuration(folder: Path) -> tuple[MistralConfig, ModelConfig, bool]:
    """Backbone and model configuration of a published folder, and whether texts end with the end token.

    Raises:
        CheckpointError: no such folder, another model, or a setting that this library cannot compute.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; point to a downloaded NV-Embed folder")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy the folder again") from error
    if content.get("model_type") != "nvembed":
        raise CheckpointError(f"{path} has model_type {content.get('model_type')!r} instead of 'nvembed'")
    text = _TEXT_DEFAULTS | _known(content.get("text_config", {}), _TEXT_DEFAULTS)
    latent = _LATENT_DEFAULTS | _known(content.get("latent_attention_config", {}), _LATENT_DEFAULTS)
    required = _FIXED | {
        "output_normalize": True,
        "hidden_dim": text["hidden_size"],
        "latent_dim": text["hidden_size"],
    }
    for key, value in (_FIXED | content | latent).items():
        if key in required and value != required[key]:
            raise CheckpointError(f"{path}: {key} is {value!r}; only {required[key]!r} can be computed here")
    return _mistral_config(text), _model_config(latent, path), content.get("add_eos", True)


def expected_shapes(text: MistralConfig, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Published name and shape of every tensor of a model of this configuration; allocates nothing."""
    with torch.device("meta"):
        embedder = EmbeddingModel(MistralModel(text), model)
    tensors = {_BACKBONE + name: tensor for name, tensor in embedder.backbone.state_dict().items()}
    tensors |= {_HEAD + name: tensor for name, tensor in embedder.pooling.state_dict().items()}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def import_nv_embed(folder: Path, out: Path, *, max_length: int = 4096) -> str:
    """Write a published folder as a checkpoint of this library, file by file; returns its digest.

    The contract takes the published truncation, which cuts the end token of a text that is too long, and the
    instructions of tasks that the folder has in instructions.json.

    Raises:
        CheckpointError: not such a folder, or a tensor is missing, extra or of another shape.
    """
    text, model, append_eos = read_nv_embed_configuration(folder)
    files = shards.weight_files(folder)
    check_tensors(shards.shapes(files), expected_shapes(text, model), str(folder))
    instructions, symmetric = _published_instructions(folder)
    contract = Contract(
        append_eos=append_eos,
        max_length=max_length,
        truncation="published",
        instructions=instructions,
        symmetric=symmetric,
    )
    with atomic_directory(out) as temporary:
        head = {name: tensor for file in files for name, tensor in shards.read(file, _HEAD).items()}
        (temporary / POOLING_FILE).parent.mkdir()
        save_file(head, temporary / POOLING_FILE)
        text.dtype = head["latents"].dtype
        text.save_pretrained(temporary / "backbone")
        parts = shards.files_with(files, _BACKBONE)
        shards.write(temporary / "backbone", (shards.read(file, _BACKBONE) for file in parts), len(parts))
        load_tokenizer(folder).save_pretrained(temporary / "tokenizer")
        contract.save(temporary)
        provenance = {"base_model": "mistralai/Mistral-7B-v0.1", "imported_from": "nv-embed"}
        return write_manifest(temporary, model, text.hidden_size, provenance=provenance)


def export_nv_embed(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint in the published layout, in the number format that it has.

    The folder holds configuration, weights and tokenizer. The published modelling code is not part of it.

    Raises:
        CheckpointError: the layout cannot hold this model.
    """
    manifest, model = read_configuration(checkpoint)
    text = json.loads((checkpoint / "backbone" / "config.json").read_text())
    pooling = model.pooling
    _require(text["model_type"] == "mistral", f"its backbone is of architecture {text['model_type']!r}")
    _require(model.attention == "bidirectional", "its attention is causal")
    _require(isinstance(pooling, LatentPoolingConfig), f"its pooling head is {pooling.type!r}")
    assert isinstance(pooling, LatentPoolingConfig)
    _require(
        pooling.feedforward_multiplier == _FEEDFORWARD_MULTIPLIER,
        f"its feedforward_multiplier is {pooling.feedforward_multiplier}",
    )
    contract = Contract.load(checkpoint)
    tokenizer = load_tokenizer(checkpoint / "tokenizer")
    _warn_of_differences(contract, tokenizer)
    prefixes = dict.fromkeys(shards.weight_files(checkpoint / "backbone"), _BACKBONE)
    prefixes[checkpoint / POOLING_FILE] = _HEAD
    with atomic_directory(out) as temporary:
        parts = (shards.read(file, "", prefix) for file, prefix in prefixes.items())
        shards.write(temporary, parts, len(prefixes))
        tokenizer.save_pretrained(temporary)
        config = _published_configuration(text, pooling, contract, manifest["dimensions"])
        atomic_write(temporary / "config.json", json.dumps(config, indent=2) + "\n")


def _published_instructions(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Instruction of each task in instructions.json, and the tasks whose documents carry it too.

    `{"NQ": {"query": "Find it", "corpus": ""}, "STS12": {"text": "Compare"}}` puts that of NQ on queries and
    that of STS12 on both sides. A task with another instruction for its documents has no place in a contract
    and is left out.
    """
    path = folder / "instructions.json"
    if not path.is_file():
        return {}, ()
    found: dict[str, str] = {}
    symmetric, left_out = [], []
    try:
        entries = json.loads(path.read_text()).items()
    except (json.JSONDecodeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no table of instructions ({error}); copy it again or delete it"
        ) from error
    for task, sides in entries:
        sides = sides if isinstance(sides, dict) else {"query": sides}
        query = sides.get("query", sides.get("text"))
        document = sides.get("corpus") if "query" in sides else query
        if not isinstance(query, str) or document not in (None, "", query):
            left_out.append(task)
            continue
        found[task] = query
        if query and document == query:
            symmetric.append(task)
    if left_out:
        logger.warning("%s: the instructions of %s are not taken over", path, ", ".join(left_out))
    return found, tuple(symmetric)


def _known(found: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    rope = found.get("rope_parameters") or {}
    return {key: value for key, value in (rope | found).items() if key in defaults}


def _mistral_config(text: dict[str, Any]) -> MistralConfig:
    rope = {"rope_type": "default", "rope_theta": text["rope_theta"]}
    values = {key: value for key, value in text.items() if key != "rope_theta"}
    config = MistralConfig(
        **values, rope_parameters=rope, sliding_window=None, architectures=["MistralModel"]
    )
    config.is_causal = False
    return config


def _model_config(latent: dict[str, Any], path: Path) -> ModelConfig:
    try:
        pooling = LatentPoolingConfig(
            num_latents=latent["num_latents_value"],
            num_heads=latent["num_cross_heads"],
            head_width=latent["cross_dim_head"],
            feedforward_multiplier=_FEEDFORWARD_MULTIPLIER,
            init="published",
        )
    except ValidationError as error:
        raise CheckpointError(f"{path}: latent_attention_config is not readable: {error}") from error
    return ModelConfig(attention="bidirectional", pooling=pooling)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise CheckpointError(
            f"the layout nv-embed cannot hold this model: {problem}; use the layout sentence-transformers"
        )


def _warn_of_differences(contract: Contract, tokenizer: PreTrainedTokenizerBase) -> None:
    if contract.truncation == "keep_eos":
        logger.warning(
            "the published code cuts the end token of texts that are too long; this model keeps it"
        )
    if tokenizer.bos_token_id is None:
        logger.warning("the published pool mask expects a beginning token, which this tokenizer has not")


def _published_configuration(
    text: dict[str, Any], pooling: LatentPoolingConfig, contract: Contract, hidden_size: int
) -> dict[str, Any]:
    dtype = text.get("dtype", "float32")
    text_config = {"model_type": "bidir_mistral"} | _known(text, _TEXT_DEFAULTS)
    latent = {
        "model_type": "latent_attention",
        "num_latents_value": pooling.num_latents,
        "num_cross_heads": pooling.num_heads,
        "output_normalize": True,
        "hidden_dim": hidden_size,
        "latent_dim": hidden_size,
        "cross_dim_head": pooling.head_width or hidden_size,
    }
    return {
        "architectures": ["NVEmbedModel"],
        "model_type": "nvembed",
        "hidden_size": hidden_size,
        "add_eos": contract.append_eos,
        "add_pad_token": True,
        **_FIXED,
        "torch_dtype": dtype,
        "text_config": text_config | {"torch_dtype": dtype},
        "latent_attention_config": latent,
    }
