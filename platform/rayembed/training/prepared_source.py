"""One source of a blend -> its rows with negatives, prepared once and shared by stages and runs.

They lie in `<data directory>/prepared/<source>-<digest>/`, where the digest is that of the source's files and
of all settings that decide the rows. Such a folder may be removed at any time: it is prepared again.
"""

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import atomic_directory, atomic_write, clear_disk_errors, file_digest, resolve
from rayembed.config import DataConfig, RunConfig, SourceConfig, StageConfig
from rayembed.data.build import build_any
from rayembed.data.contamination import (
    ContaminationGuard,
    ContaminationReport,
    compared_files,
    compared_sources,
    make_guard,
)
from rayembed.data.contrastive import contrastive_rows, is_symmetric
from rayembed.data.plan import fingerprint
from rayembed.data.prepared import PreparedRows, write_rows
from rayembed.data.sources import SOURCES
from rayembed.data.store import read_tables, split_files
from rayembed.data.texts import text_rows
from rayembed.mining.in_memory import mine_bm25
from rayembed.records.schema import Kind

logger = logging.getLogger(__name__)

PREPARED = "prepared"
ROWS_FILE = "rows.arrow"
CONTAMINATION_FILE = "contamination.json"
_DIGEST_FILE = "rows.sha256"
_LAYOUT = 1  # of the prepared files; raise it when equal sources give other rows


def kind_of(config: RunConfig, name: str) -> Kind:
    """Layout of a source; ConfigError lists the known ones."""
    if name in config.data.sources:
        return config.data.sources[name].kind
    if name in SOURCES:
        return SOURCES[name].kind
    known = sorted([*config.data.sources, *SOURCES])
    raise ConfigError(
        f"unknown source {name!r}; declare it under data.sources or use one of {', '.join(known)}"
    )


def usually_symmetric(config: RunConfig, entry: SourceConfig) -> bool:
    """Whether the instruction of a source usually goes in front of its documents too."""
    source = config.data.sources.get(entry.source) or SOURCES[entry.source]
    return is_symmetric(source.kind, source.task_type, entry.labels)


def made_from(config: RunConfig, stage: StageConfig, entry: SourceConfig) -> dict[str, Any]:
    """All that decides the prepared rows of a source: its files and the settings that are used on them."""
    settings: dict[str, Any] = {"layout": _LAYOUT}
    kind, declared = kind_of(config, entry.source), config.data.sources.get(entry.source)
    if stage.kind != "contrastive":
        settings |= {"texts": stage.texts}
    elif kind == "labels":
        settings |= {"labels": entry.labels, "negatives_per_query": entry.negatives_per_query}
        settings |= {"label_texts": declared.label_texts} if declared and declared.label_texts else {}
    elif entry.mining:
        settings |= {"mining": entry.mining.model_dump(), "negatives_per_query": entry.negatives_per_query}
    if len(settings) > 1:
        settings["seed"] = config.seed
    if kind == "scores" and declared:
        settings["least_score"] = declared.least_score
    if compared := _compared(config):
        settings["contamination"] = config.data.contamination.model_dump(exclude={"enabled", "against"})
        settings["compared"] = compared_files(config.data, compared)
    files = {f"file {file.name}": file_digest(file) for file in _files(config, entry.source)}
    return {**files, "settings": settings}


def prepare_source(
    config: RunConfig, stage: StageConfig, entry: SourceConfig, origin: dict[str, Any]
) -> Path:
    """File with the rows of a source that is `made_from` the origin; makes it where it is missing.

    Raises:
        DataError: the source is unreadable, empty or too small, or its files are no longer those of `origin`.
    """
    folder = resolve(config.data.directory) / PREPARED / f"{entry.source}-{fingerprint(origin)[:16]}"
    if not (folder / ROWS_FILE).is_file():
        if origin != made_from(config, stage, entry):
            raise DataError(
                f"source {entry.source}: the rows prepared at the start of the run are no longer in {folder} "
                "and its files changed; put the files back, or set name to start another run"
            )
        report = ContaminationReport()
        with clear_disk_errors(folder), atomic_directory(folder) as temporary:
            rows = write_rows(_rows(config, stage, entry, report), temporary / ROWS_FILE)
            atomic_write(temporary / CONTAMINATION_FILE, json.dumps(report.as_json(), indent=2) + "\n")
            atomic_write(temporary / _DIGEST_FILE, file_digest(temporary / ROWS_FILE) + "\n")
        logger.info("source %s: %d rows ready; %s", entry.source, rows, report)
    return folder / ROWS_FILE


def rows_digest(path: Path) -> str:
    """Digest of the rows that `prepare_source` made."""
    return (path.parent / _DIGEST_FILE).read_text().strip()


def check_negatives(rows: PreparedRows, entry: SourceConfig) -> None:
    """Refuse rows that would have nothing to be told apart from.

    Raises:
        DataError: how many rows, and what to do.
    """
    if entry.in_batch_negatives or entry.negatives_per_query == 0:
        return
    without = rows.rows_without_negatives()
    if without:
        raise DataError(
            f"source {entry.source}: {without} of {len(rows)} rows have no negatives and in-batch "
            "negatives are off; add `mining: {method: bm25}` to its entry or turn in_batch_negatives on"
        )


def _files(config: RunConfig, name: str) -> Sequence[Path]:
    """Files that hold the training rows; the source is built where that is due."""
    return split_files(build_any(name, config.data), "train")


def _compared(config: RunConfig) -> tuple[str, ...]:
    return compared_sources(config.data, [entry.source for stage in config.stages for entry in stage.blend])


def _rows(
    config: RunConfig, stage: StageConfig, entry: SourceConfig, report: ContaminationReport
) -> Iterator[pa.Table]:
    """Tables of the pair layout; what resembles an evaluation is left out and added to the report.

    Pairs that bring their negatives pass through file by file. Classes, sentences and mining need all rows.
    """
    tables = _without_evaluation_rows(config, entry.source, report)
    if stage.kind != "contrastive":
        table = pa.concat_tables(tables)
        if kind_of(config, entry.source) not in ("labels", "pairs"):
            table = _with_negatives(table, entry, config)
        yield text_rows(table, stage.texts)
        return
    if kind_of(config, entry.source) == "pairs" and entry.mining is None:
        yield from tables
        return
    yield _with_negatives(pa.concat_tables(tables), entry, config)


def _without_evaluation_rows(config: RunConfig, name: str, report: ContaminationReport) -> Iterator[pa.Table]:
    compared = _compared(config)
    state = fingerprint(compared_files(config.data, compared))
    guard = _guard(config.data.model_dump_json(), compared, state) if compared else ContaminationGuard()
    for table in read_tables(resolve(config.data.directory), name, "train"):
        kept, found = guard.clean(table, documents=config.data.contamination.documents)
        report.add(found)
        yield kept
    if report.dropped.total() == report.rows:
        raise DataError(
            f"source {name}: every row resembles a row of {', '.join(compared)}; train on other data than is "
            "evaluated, or change data.contamination"
        )


@functools.lru_cache(maxsize=1)  # the sources of a run are compared with the same texts, one after the other
def _guard(data: str, names: tuple[str, ...], state: str) -> ContaminationGuard:
    return make_guard(DataConfig.model_validate_json(data), names)


def _with_negatives(table: pa.Table, entry: SourceConfig, config: RunConfig) -> pa.Table:
    kind, declared = kind_of(config, entry.source), config.data.sources.get(entry.source)
    table = contrastive_rows(
        table,
        kind,
        labels=entry.labels,
        label_texts=declared.label_texts if declared else None,
        least_score=declared.least_score if declared else 4.0,
        negatives_per_query=entry.negatives_per_query,
        seed=config.seed,
    )
    if kind == "labels" or entry.mining is None:
        return table
    mined, report = mine_bm25(
        table,
        negatives_per_query=entry.negatives_per_query,
        top_k=entry.mining.top_k,
        positive_share=entry.mining.positive_share,
        seed=config.seed,
    )
    logger.info("source %s: %s", entry.source, report)
    return mined
