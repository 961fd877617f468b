"""From a stage's blend to a plan and the rows that it points into."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.settings import differences
from rayembed.config import RunConfig, SourceConfig, StageConfig
from rayembed.data.plan import PlannedBatch, PlannedSource, plan_batches
from rayembed.data.plan_store import stored_description, write_plan
from rayembed.data.prepared import PreparedRows
from rayembed.data.sources import SOURCES
from rayembed.data.stream import StreamSpec
from rayembed.data.token_cache import cache_tokens
from rayembed.model.checkpoint import load_tokenizer
from rayembed.training.prepared_source import (
    check_negatives,
    kind_of,
    made_from,
    prepare_source,
    rows_digest,
    usually_symmetric,
)

logger = logging.getLogger(__name__)


def check_sources(config: RunConfig) -> None:
    """Refuse a blend that names an unknown source or uses one in a way that its layout does not allow.

    Raises:
        ConfigError: the source, and what to do.
    """
    for stage in config.stages:
        for entry in stage.blend:
            kind = kind_of(config, entry.source)
            problem = _misuse(stage, entry, kind, built_in=entry.source in SOURCES)
            if problem:
                raise ConfigError(f"stage {stage.name}: source {entry.source} {problem}")
            if entry.instruction and entry.symmetric != usually_symmetric(config, entry):
                logger.warning(
                    "stage %s, source %s: symmetric is %s; NV-Embed puts the instruction in front of the "
                    "documents as well where they could change places with the queries, and only there",
                    stage.name,
                    entry.source,
                    str(entry.symmetric).lower(),
                )


def prepare_stage(config: RunConfig, stage_index: int, folder: Path, tokenizer: str) -> StreamSpec:
    """Build, mine and plan a stage; what is there and still fits is reused.

    Args:
        config: the run.
        stage_index: which stage.
        folder: the stage's folder; the plan goes into `plan/` in it.
        tokenizer: where workers load the tokenizer from.

    Raises:
        ConfigError, DataError: a source is unknown, unreadable, empty or too small, or changed since the
            stage was planned.
    """
    stage = config.stages[stage_index]
    plan = folder / "plan"
    origins = _origins(config, stage, plan)
    paths = [prepare_source(config, stage, entry, origins[entry.source]) for entry in stage.blend]
    rows = [PreparedRows.open(path) for path in paths]
    if stage.kind == "contrastive":
        for entry, source in zip(stage.blend, rows, strict=True):
            check_negatives(source, entry)
    description = {
        "sources": origins,
        "rows": {entry.source: rows_digest(path) for entry, path in zip(stage.blend, paths, strict=True)},
        "blend": {
            entry.source: entry.model_dump(include={"weight", "cap", "epochs", "in_batch_negatives"})
            for entry in stage.blend
        },
        "batching": stage.model_dump(
            include={"batch_size", "steps", "batching", "sub_batch_size", "size_temperature"}
        ),
        "seed": config.seed + stage_index,
    }
    stored = stored_description(plan)
    if stored is None:
        planned = [planned_source(*pair) for pair in zip(stage.blend, rows, strict=True)]
        write_plan(plan, _batches(stage, planned, config.seed + stage_index), description)
        logger.info("stage %s: plan of %d steps of %d rows", stage.name, stage.steps, stage.batch_size)
    elif changes := list(differences(stored, description)):
        raise _changed(stage, plan, changes)
    return StreamSpec(
        plan=plan,
        sources=tuple(paths),
        blend=stage.blend,
        contract=config.contract,
        tokenizer=tokenizer,
        seed=config.seed,
        token_caches=_token_caches(config, stage, paths, tokenizer) if config.training.cache_tokens else (),
    )


def _token_caches(
    config: RunConfig, stage: StageConfig, paths: Sequence[Path], tokenizer: str
) -> tuple[Path, ...]:
    loaded = load_tokenizer(tokenizer)
    return tuple(
        cache_tokens(path, entry, config.contract, loaded)
        for path, entry in zip(paths, stage.blend, strict=True)
    )


def planned_source(entry: SourceConfig, rows: PreparedRows) -> PlannedSource:
    """What the plan needs to know of an entry of the blend."""
    return PlannedSource(
        name=entry.source,
        num_rows=len(rows),
        in_batch_negatives=entry.in_batch_negatives,
        weight=entry.weight,
        cap=entry.cap,
        epochs=entry.epochs,
        keys=rows.clash_keys,
    )


def _batches(stage: StageConfig, sources: Sequence[PlannedSource], seed: int) -> Iterator[PlannedBatch]:
    return plan_batches(
        sources,
        batch_size=stage.batch_size,
        steps=stage.steps,
        seed=seed,
        batching=stage.batching,
        sub_batch_size=stage.sub_batch_size,
        size_temperature=stage.size_temperature,
    )


def _misuse(stage: StageConfig, entry: SourceConfig, kind: str, *, built_in: bool) -> str | None:
    if kind == "scores" and built_in:
        return "is for evaluation only; remove it from the blend"
    if stage.kind != "contrastive":
        return None
    if kind == "labels":
        if entry.mining is not None:
            return "has labels, its negatives are other classes; remove mining"
        if entry.labels != "label" and entry.in_batch_negatives and entry.negatives_per_query:
            return (
                "has labels, and with in-batch negatives a row's negatives may be of another row's class; "
                "set in_batch_negatives: false, negatives_per_query: 0, or labels: label"
            )
    elif entry.labels == "label":
        return f"has {kind} and no labels; remove labels: label"
    return None


def _origins(config: RunConfig, stage: StageConfig, plan: Path) -> dict[str, Any]:
    """What each source is made from, which must be what it was when the stage was planned."""
    now = {entry.source: made_from(config, stage, entry) for entry in stage.blend}
    stored = stored_description(plan)
    changes = list(differences(stored["sources"], now)) if stored else []
    if not stored or not changes:
        return now
    if config.training.changed_data == "refuse":
        raise _changed(stage, plan, changes)
    logger.warning(
        "stage %s keeps to the rows of its start, though %s (training.changed_data is keep)",
        stage.name,
        "; ".join(changes),
    )
    return stored["sources"]


def _changed(stage: StageConfig, plan: Path, changes: Sequence[str]) -> DataError:
    return DataError(
        f"stage {stage.name} was planned in {plan} and since then: {'; '.join(changes)}. Put back "
        "what it was; or set training.changed_data=keep to continue on the rows prepared at the start; or "
        "set name to start another run"
    )
