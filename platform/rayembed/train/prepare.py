"""From a stage's blend to files that a plan can point into.

Folder of a stage: `sources/<name>.parquet` in the pair layout with negatives filled in, and `plan/`.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.config import RunConfig, SourceConfig, StageConfig
from rayembed.data.build import build_user_source
from rayembed.data.labels import example_based_rows, label_based_rows
from rayembed.data.plan import PlannedSource, fingerprint, plan_batches, stored_fingerprint, write_plan
from rayembed.data.sources import SOURCES
from rayembed.data.store import build_source, read_split, split_files
from rayembed.data.stream import StreamSpec
from rayembed.errors import ConfigError, DataError
from rayembed.mining.in_memory import mine_bm25
from rayembed.paths import atomic_write, file_digest, resolve

logger = logging.getLogger(__name__)


def check_sources(config: RunConfig) -> None:
    """Refuse a blend that names an unknown source or asks for negatives that nothing provides.

    Raises:
        ConfigError: the source, and what to do.
    """
    for stage in config.stages:
        for entry in stage.blend:
            kind = _kind(config, entry.source)
            if kind == "scores":
                raise ConfigError(f"stage {stage.name}: source {entry.source} is for evaluation only")
            if kind == "labels" and entry.mining is not None:
                raise ConfigError(
                    f"stage {stage.name}: source {entry.source} has labels, its negatives are other classes; "
                    "remove mining"
                )


def prepare_stage(config: RunConfig, stage_index: int, folder: Path, tokenizer: str) -> StreamSpec:
    """Build, mine and plan a stage; what is there and still fits is reused.

    Args:
        config: the run.
        stage_index: which stage.
        folder: the stage's folder.
        tokenizer: where workers load the tokenizer from.

    Raises:
        ConfigError, DataError: a source is unknown, unreadable, empty or too small.
    """
    stage = config.stages[stage_index]
    paths = tuple(_prepare_source(config, entry, folder / "sources") for entry in stage.blend)
    plan = folder / "plan"
    _ensure_plan(config, stage, stage_index, paths, plan)
    return StreamSpec(
        plan=plan,
        sources=paths,
        blend=stage.blend,
        contract=config.contract,
        tokenizer=tokenizer,
        seed=config.seed,
    )


def _kind(config: RunConfig, name: str) -> str:
    if name in config.data.sources:
        return config.data.sources[name].kind
    if name in SOURCES:
        return SOURCES[name].kind
    known = sorted([*config.data.sources, *SOURCES])
    raise ConfigError(
        f"unknown source {name!r}; declare it under data.sources or use one of {', '.join(known)}"
    )


def _prepare_source(config: RunConfig, entry: SourceConfig, folder: Path) -> Path:
    """Pair table of one source with negatives, as a Parquet file beside a note of what it was made from."""
    path, note = folder / f"{entry.source}.parquet", folder / f"{entry.source}.json"
    raw, origin = _read_source(config, entry.source)
    made_from = {
        "origin": origin,
        "entry": entry.model_dump(mode="json", exclude={"weight"}),
        "seed": config.seed,
    }
    if path.is_file() and note.is_file() and json.loads(note.read_text()) == made_from:
        return path
    table = _with_negatives(raw, entry, _kind(config, entry.source), config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    pq.write_table(table, temporary, compression="zstd")
    temporary.rename(path)
    atomic_write(note, json.dumps(made_from, indent=2) + "\n")
    logger.info("source %s: %d rows ready", entry.source, table.num_rows)
    return path


def _read_source(config: RunConfig, name: str) -> tuple[pa.Table, str]:
    """Training rows of a source and a digest of where they came from."""
    data_dir = resolve(config.data.directory)
    if name in config.data.sources:
        folder = build_user_source(name, config.data.sources[name], data_dir)
    else:
        folder = build_source(name, data_dir)
    digests: dict[str, object] = {file.name: file_digest(file) for file in split_files(folder, "train")}
    return read_split(data_dir, name, "train"), fingerprint(digests)


def _with_negatives(table: pa.Table, entry: SourceConfig, kind: str, seed: int) -> pa.Table:
    if kind == "labels":
        build = example_based_rows if entry.labels == "example" else label_based_rows
        return build(table, negatives_per_query=entry.negatives_per_query, seed=seed)
    if entry.mining is None or entry.negatives_per_query == 0:
        _check_negatives(table, entry)
        return table
    mined, report = mine_bm25(
        table,
        negatives_per_query=entry.negatives_per_query,
        top_k=entry.mining.top_k,
        positive_share=entry.mining.positive_share,
        seed=seed,
    )
    logger.info("source %s: %s", entry.source, report)
    return mined


def _check_negatives(table: pa.Table, entry: SourceConfig) -> None:
    if entry.in_batch_negatives or entry.negatives_per_query == 0:
        return
    without = sum(not negatives for negatives in table["negatives"].to_pylist())
    if without:
        raise DataError(
            f"source {entry.source}: {without} of {table.num_rows} rows have no negatives and in-batch "
            "negatives are off; add `mining: {method: bm25}` to its entry or turn in_batch_negatives on"
        )


def _ensure_plan(
    config: RunConfig, stage: StageConfig, stage_index: int, paths: Sequence[Path], folder: Path
) -> None:
    wanted = fingerprint(
        {
            "sources": {path.stem: file_digest(path) for path in paths},
            "blend": [[entry.source, entry.weight, entry.in_batch_negatives] for entry in stage.blend],
            "batch_size": stage.batch_size,
            "steps": stage.steps,
            "batching": stage.batching,
            "seed": [config.seed, stage_index],
        }
    )
    stored = stored_fingerprint(folder)
    if stored == wanted:
        return
    if stored is not None:
        raise DataError(
            f"the data or the blend of stage {stage.name} changed since its plan was laid down in {folder}; "
            "continue with the old data, or start a run of another name"
        )
    sources = [_planned(entry, path) for entry, path in zip(stage.blend, paths, strict=True)]
    batches = plan_batches(
        sources,
        batch_size=stage.batch_size,
        steps=stage.steps,
        seed=config.seed + stage_index,
        batching=stage.batching,
    )
    write_plan(folder, batches, wanted)
    logger.info("stage %s: plan of %d steps of %d rows", stage.name, stage.steps, stage.batch_size)


def _planned(entry: SourceConfig, path: Path) -> PlannedSource:
    document_ids = pq.read_table(path, columns=["document_ids"])["document_ids"]
    first_ids = [ids[0].as_py() for ids in document_ids]
    return PlannedSource(
        name=entry.source,
        weight=entry.weight,
        in_batch_negatives=entry.in_batch_negatives,
        target_ids=np.array([int(identifier, 16) for identifier in first_ids], dtype=np.uint64),
    )
