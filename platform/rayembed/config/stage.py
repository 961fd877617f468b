"""One stage of training."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from rayembed.common.settings import Frozen, refuse
from rayembed.config.blend import SourceConfig
from rayembed.losses import (
    LOSSES,
    LossConfig,
    MatryoshkaConfig,
    QuantisationConfig,
    StateMatchingConfig,
    VectorDistillationConfig,
)
from rayembed.losses.base import StageKind

_SHORT_KEYS = ("temperature", "document_to_query_weight")


class StageConfig(Frozen):
    """One training stage."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="lower-case letters, digits and hyphens")
    kind: StageKind = Field(
        "contrastive",
        description="contrastive: queries and documents; simcse: single texts; mntp: masked tokens",
    )
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="rows per batch, all workers together")
    learning_rate: float = Field(gt=0, description="highest learning rate, reached after warm-up")
    pooling_learning_rate: float | None = Field(
        None, gt=0, description="learning rate of the pooling head; None: `learning_rate`"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up; then comes the schedule")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="learning rate after warm-up: falls to zero in a line or a cosine, or stays"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="of AdamW, on the matrices of layers; not on norms, biases and latents"
    )
    gradient_clipping: float = Field(1.0, gt=0, description="largest norm of the whole gradient")
    loss: tuple[LossConfig, ...] = Field(
        (),
        description=(
            "one loss, or a list that is added up; empty: the loss of the stage's kind. Instead, "
            "the stage itself may have `temperature` and `document_to_query_weight` of one "
            "infonce loss (simcse: `temperature`)"
        ),
    )
    matryoshka: MatryoshkaConfig | None = Field(None, description="None: full vectors only")
    quantisation: QuantisationConfig | None = Field(None, description="None: fp32 vectors only")
    adapters: Literal["continue", "merge"] = Field(
        "continue",
        description=(
            "adapters of the previous stage: continue trains them further, merge adds them to the"
            " weights and starts new ones"
        ),
    )
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the attention weights")
    texts: Literal["documents", "queries"] = Field(
        "documents", description="for simcse and mntp: which texts to use"
    )
    batching: Literal["blended", "homogeneous", "interleaved"] = Field(
        "blended",
        description=(
            "blended: each batch mixes the sources; homogeneous: one source per batch; "
            "interleaved: sub-batches of one source each"
        ),
    )
    sub_batch_size: int | None = Field(
        None, ge=1, description="for interleaved batches: rows per sub-batch, a divisor of `batch_size`"
    )
    size_temperature: float = Field(
        1.0,
        gt=0,
        description=(
            "without weights, shares are rows ** (1 / size_temperature): 1 follows the sizes, a "
            "high value treats all alike"
        ),
    )
    blend: tuple[SourceConfig, ...] = Field(min_length=1, description="sources, each once")

    @model_validator(mode="before")
    @classmethod
    def _spell_out_loss(cls, raw: Any) -> Any:
        """One loss becomes a list of one, and the short keys become a loss."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        short = {key: raw.pop(key) for key in _SHORT_KEYS if key in raw}
        loss = raw.get("loss") or ()
        if short and loss:
            raise ValueError(f"{', '.join(short)} excludes loss; put it into the loss")
        if isinstance(loss, list | tuple):
            kind = raw.get("kind", "contrastive")
            default = _losses_of(kind)[:1]
            raw["loss"] = loss or [{"type": name, **short} for name in default]
        else:
            raw["loss"] = [loss]
        return raw

    @model_validator(mode="after")
    def _check(self) -> "StageConfig":
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        names = [entry.source for entry in self.blend]
        if len(set(names)) != len(names):
            yield (f"stage {self.name}: a source appears twice in the blend {names}; merge the entries")
        if self.warmup_steps >= self.steps:
            yield (f"stage {self.name}: warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        for entry in self.blend:
            if not entry.in_batch_negatives and entry.negatives_per_query == 0 and self.kind == "contrastive":
                yield (
                    f"stage {self.name}, source {entry.source}: without in-batch negatives and with "
                    "negatives_per_query 0 a row has nothing to learn from; set one of them"
                )
            if entry.mining is not None and self.kind != "contrastive":
                yield (
                    f"stage {self.name}, source {entry.source}: a stage of kind {self.kind} has no hard "
                    "negatives; remove mining"
                )
        yield from self._check_batching()
        yield from self._check_weights()
        yield from self._check_losses()
        if self.kind == "simcse":
            yield from self._check_simcse()

    def _check_batching(self) -> Iterator[str]:
        if (self.batching == "interleaved") != (self.sub_batch_size is not None):
            yield (
                f"stage {self.name}: batching is {self.batching} and sub_batch_size {self.sub_batch_size}; "
                "interleaved batches need it and no others have it"
            )
        if self.sub_batch_size and (
            self.batch_size % self.sub_batch_size or self.sub_batch_size == self.batch_size
        ):
            yield (
                f"stage {self.name}: sub_batch_size {self.sub_batch_size} must divide batch_size "
                f"{self.batch_size} into two parts or more; choose another, or batching homogeneous"
            )

    def _check_weights(self) -> Iterator[str]:
        weighted = [entry.source for entry in self.blend if entry.weight is not None]
        unweighted = [entry.source for entry in self.blend if entry.weight is None]
        if weighted and unweighted:
            yield (
                f"stage {self.name}: sources {', '.join(weighted)} have a weight and {', '.join(unweighted)} "
                "have none; give all of them one, or none for shares by size"
            )
        if weighted and self.size_temperature != 1:
            yield (
                f"stage {self.name}: size_temperature {self.size_temperature:g} has no effect on weights; "
                "remove it or the weights"
            )

    def _check_losses(self) -> Iterator[str]:
        types = [loss.type for loss in self.loss]
        misplaced = sorted(set(types) - set(_losses_of(self.kind)))
        if misplaced:
            yield (
                f"stage {self.name} of kind {self.kind} cannot minimise {misplaced[0]}; it takes "
                f"{', '.join(_losses_of(self.kind))}, or set another kind"
            )
        if len(set(types)) != len(types):
            yield f"stage {self.name}: a loss appears twice in {types}; merge the entries"
        for name in ("matryoshka", "quantisation"):
            if getattr(self, name) and self.kind == "mntp":
                yield f"stage {self.name}: mntp makes no vectors to cut or round; remove {name}"
        if len(self.teachers) > 1:
            yield f"stage {self.name}: a stage has one teacher, not {', '.join(self.teachers)}; name one"
        whole = [loss.type for loss in self.loss if loss.needs_full_width]
        if self.matryoshka and whole:
            yield (
                f"stage {self.name}: {whole[0]} compares whole vectors; remove matryoshka or use "
                "score_distillation"
            )
        if self.sees_other_queries and not any(entry.in_batch_negatives for entry in self.blend):
            yield (
                f"stage {self.name}: document_to_query_weight and query_to_query compare rows with others "
                "and no source has in_batch_negatives; turn that on for one or remove them"
            )

    def _check_simcse(self) -> Iterator[str]:
        for entry in self.blend:
            if not entry.in_batch_negatives:
                yield (
                    f"stage {self.name}, source {entry.source}: the other texts of the batch are the only "
                    "negatives of simcse; set in_batch_negatives: true"
                )
            if entry.instruction and not entry.symmetric:
                yield (
                    f"stage {self.name}, source {entry.source}: simcse encodes the same text twice; "
                    "set symmetric: true or remove the instruction"
                )

    @property
    def teachers(self) -> list[str]:
        """Folders of teachers that the losses name."""
        named = (
            loss.teacher
            for loss in self.loss
            if isinstance(loss, VectorDistillationConfig | StateMatchingConfig)
        )
        return list(dict.fromkeys(named))

    @property
    def sees_other_queries(self) -> bool:
        """Whether a loss needs the vectors of other workers' queries."""
        return any(loss.sees_other_queries for loss in self.loss)


def _losses_of(kind: str) -> list[str]:
    """Names of the losses that a kind of stage can minimise, the default first."""
    return [loss.model_fields["type"].default for loss in LOSSES if loss.kind == kind]
