"""What a finished stage leaves: weights for the stages after it, and the model folder that is served."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rayembed.common.errors import CheckpointError
from rayembed.common.paths import atomic_directory, atomic_write, fetch, location_of, resolve
from rayembed.config.run import RunConfig
from rayembed.config.stage import StageConfig
from rayembed.config.training import SavedPrecision
from rayembed.contract import Contract
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.contamination import origin_of
from rayembed.data.sources import SOURCES
from rayembed.model.base_model import PACKAGED_MODELS
from rayembed.model.checkpoint import MANIFEST_FILE, read_manifest, write_around_backbone
from rayembed.model.precision import resolve_precision
from rayembed.training.checkpoint import load_weights, next_step
from rayembed.training.distillation import PROJECTION
from rayembed.training.model import ModelSpec, check_weights, trainable_shapes

logger = logging.getLogger(__name__)

_ADAPTER = "lora_"
_HEAD = "pooling."

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FinishedStage:
    """A stage that ended, and the checkpoint that it ended with.

    Attributes:
        name: of the stage.
        kind: of the stage.
        steps: of the stage.
        merges_adapters: whether it began by merging the adapters before it into the base model.
        checkpoint: folder of a training state.
    """

    name: str
    kind: str
    steps: int
    merges_adapters: bool
    checkpoint: Path

    @classmethod
    def of(cls, settings: StageConfig, checkpoint: Path) -> "FinishedStage":
        """A stage of the recipe that ends with the checkpoint."""
        return cls(settings.name, settings.kind, settings.steps, settings.adapters == "merge", checkpoint)


def carried_weights(finished: Sequence[FinishedStage]) -> Weights:
    """Trainable weights as the finished stages leave them: the newest of each name.

    A stage that merged the adapters before it began with new ones, so those are dropped there. A stage that
    trains no pooling head leaves the one before it in place.
    """
    weights: Weights = {}
    for stage in finished:
        weights = starting_from(weights, stage.merges_adapters) | load_weights(stage.checkpoint)
    return weights


def starting_weights(finished: Sequence[FinishedStage], *, merges_adapters: bool) -> Weights:
    """Weights that the next stage begins with, as far as earlier stages decide them."""
    return starting_from(carried_weights(finished), merges_adapters)


def starting_from(weights: Weights, merges_adapters: bool) -> Weights:
    """The weights without adapters where a stage merges those, else all."""
    return {name: value for name, value in weights.items() if not merges_adapters or _ADAPTER not in name}


def merge_into_base(model: ModelSpec, finished: Sequence[FinishedStage], folder: Path) -> ModelSpec:
    """Write a base model with the trained adapters added to its weights; an existing one is kept.

    The sum is taken and stored in fp32, so that nothing of the update is rounded away, part by part.

    Args:
        model: what the finished stages trained.
        finished: the stages whose adapters are merged.
        folder: where to write.

    Returns:
        The same model on the new base.

    Raises:
        CheckpointError: no stage trained adapters.
    """
    if not fetch(folder, weights=False).is_dir():
        empty, weights = model.empty(), carried_weights(finished)
        adapters = {name: value for name, value in weights.items() if _ADAPTER in name}
        if not adapters:
            raise CheckpointError(
                f"no trained adapters to merge into {model.base}; train a stage with lora before it"
            )
        check_weights(trainable_shapes(empty), adapters, "the stages before")
        with atomic_directory(folder) as temporary:
            model.write_backbone(temporary, adapters, torch.float32)
            load_tokenizer(model.original_base).save_pretrained(temporary)
        logger.info("adapters merged into %s", location_of(folder))
    return replace(model, base=folder)


@dataclass(frozen=True)
class ModelExport:
    """What the model folder of a run says besides the weights.

    Attributes:
        base_model: as the recipe names it.
        base_layers: layers of it that are kept; None: all.
        sources: of all blends and of the base model, or what they were derived from, sorted.
        licences: of the base model and the sources, as far as they are known.
        contract: how texts become tokens, with the instructions that the stages train.
        recipe: the resolved recipe, to be noted down.
        precision: number format of the files.
        keeps_ranges: its vectors were trained for the ranges of the base model.
    """

    base_model: str
    base_layers: int | None
    sources: tuple[str, ...]
    licences: dict[str, str]
    contract: Contract
    recipe: str
    precision: SavedPrecision
    keeps_ranges: bool

    @classmethod
    def of(cls, config: RunConfig) -> "ModelExport":
        """What a run's recipe decides of it. A base model that was trained here brings its sources along."""
        base = fetch(resolve(config.base_model), weights=False)
        inherited = read_manifest(base)["provenance"] if (base / MANIFEST_FILE).is_file() else {}
        sources = sorted(
            {origin_of(config.data, entry.source) for stage in config.stages for entry in stage.blend}
            | set(inherited.get("sources", ()))
        )
        contract = trained_contract(config)
        return cls(
            config.base_model,
            config.base_layers,
            tuple(sources),
            inherited.get("licences", {}) | licences(config.base_model, sources),
            contract,
            config.to_yaml(),
            config.training.saved_precision,
            config.stages[-1].quantisation is not None,
        )

    def write(self, model: ModelSpec, finished: Sequence[FinishedStage], folder: Path) -> str:
        """Merge the trained adapters into the base model and write the model folder; returns its digest.

        Sums are taken in fp32, part by part, and written in the recipe's number format.

        Args:
            model: of the last stage.
            finished: the stages to export, in order.
            folder: where to write.

        Raises:
            CheckpointError: a checkpoint is damaged or belongs to another configuration.
        """
        carried = carried_weights(finished)
        weights = {name: value for name, value in carried.items() if not name.startswith(PROJECTION)}
        empty = model.empty()
        check_weights(trainable_shapes(empty), weights, "the last stage")
        torch.manual_seed(model.seed)
        head = model.settings.pooling.build(empty.dimensions, empty.backbone.config.num_hidden_layers)
        trained = {
            name.removeprefix(_HEAD): value for name, value in weights.items() if name.startswith(_HEAD)
        }
        head.load_state_dict(model.head_weights() | trained, strict=False)  # stages may train none
        dtype = resolve_precision(self.precision, torch.device("cpu"))
        provenance = {
            "base_model": self.base_model,
            "base_layers": self.base_layers,
            "stages": [
                {
                    "name": stage.name,
                    "kind": stage.kind,
                    "steps": stage.steps,
                    "kept_step": next_step(stage.checkpoint),
                }
                for stage in finished
            ],
            "sources": list(self.sources),
            "licences": self.licences,
        }
        ranges = model.vector_ranges() if self.keeps_ranges else None
        contract = self.contract.model_copy(update={"vector_ranges": ranges})
        with atomic_directory(folder) as temporary:
            model.write_backbone(temporary / "backbone", weights, dtype)
            tokenizer = load_tokenizer(model.original_base)
            digest = write_around_backbone(
                temporary, model.settings, head.to(dtype), tokenizer, contract,
                dimensions=empty.dimensions, provenance=provenance,
            )  # fmt: skip
            atomic_write(temporary / "recipe.yaml", self.recipe)
        logger.info("model %s is in %s", digest[:12], location_of(folder))
        return digest


def trained_contract(config: RunConfig) -> Contract:
    """The recipe's contract with the instructions that its stages train.

    "query" is the one of the first source that has any. Sources whose documents carried it are symmetric.
    """
    entries = [entry for stage in config.stages for entry in stage.blend]
    instructions = dict(config.contract.instructions)
    symmetric = set(config.contract.symmetric)
    for entry in entries:
        for name in (entry.source, origin_of(config.data, entry.source)):
            if entry.instruction:
                instructions.setdefault(name, entry.instruction)
            if entry.symmetric:
                symmetric.add(name)
        if entry.instruction and not instructions.get("query"):
            instructions["query"] = entry.instruction
    return config.contract.model_copy(
        update={"instructions": instructions, "symmetric": tuple(sorted(symmetric))}
    )


def licences(base_model: str, sources: Sequence[str]) -> dict[str, str]:
    """Licence of the base model and of each source, of those that this library knows."""
    known = {name: SOURCES[name].licence for name in sources if name in SOURCES}
    if base_model in PACKAGED_MODELS:
        known[base_model] = PACKAGED_MODELS[base_model].licence
    return known
