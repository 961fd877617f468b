"""Sources of a blend -> their rows with negatives, prepared once and shared by stages and runs.

They lie in `<data directory>/prepared/<source>-<digest>/`, where the digest is that of the source's files and
of all settings that decide the rows. Such a folder may be removed at any time: it is prepared again.

They are prepared file by file, on all CPUs of the cluster: a source that was built in 40 parts has 40 files
of rows. What no file alone can tell, which texts are repeated and which rows are of a class, is then found
with some bytes a row. Inference, duplicates and mining need all rows of their source, so each of these is one
piece of work. Pieces that are complete outlive an error.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import atomic_write, clear_disk_errors, fetch, file_digest, here, resolve
from rayembed.config.blend import SourceConfig
from rayembed.config.data import DataConfig
from rayembed.data.build import build_any, declared_source, on_all_cpus
from rayembed.data.classes import write_classes
from rayembed.data.contamination import (
    ContaminationGuard,
    ContaminationReport,
    compared_files,
    compared_sources,
    make_guard,
)
from rayembed.data.contrastive import ALIKE, contrastive_rows, is_symmetric, text_rows
from rayembed.data.distinct import distinct_texts, group_by_class
from rayembed.data.plan import fingerprint
from rayembed.data.prepared import PreparedRows, RowsFile, write_index, write_rows
from rayembed.data.sources import SOURCES
from rayembed.data.store import read_parquet, split_files
from rayembed.mining.rows import mine_bm25
from rayembed.records.schema import Kind, check_table

logger = logging.getLogger(__name__)

StageTexts = Literal["queries", "documents"]

PREPARED = "prepared"
INDEX_FILE = "rows.json"
CONTAMINATION_FILE = "contamination.json"
_LAYOUT = 3  # of the prepared files; raise it when equal sources give other rows


class EvaluationTexts:
    """The texts of evaluations, which no row to train on may resemble, where the recipe wants that."""

    def __init__(self, data: DataConfig, trained: Sequence[str]):
        """Args:
        data: sources, and with which of them rows are compared.
        trained: names of the sources of all blends of the run.
        """
        self._data = data
        self.names = compared_sources(data, trained)
        self._made: tuple[str, ContaminationGuard] | None = None

    def origin(self) -> dict[str, Any]:
        """All that decides which rows are left out."""
        if not self.names:
            return {}
        settings = {"documents": self._data.contamination.documents}
        return {"contamination": settings, "compared": compared_files(self._data, self.names)}

    def guard(self) -> ContaminationGuard:
        """What finds such rows; read once for all sources, while its files stay the same."""
        if not self.names:
            return ContaminationGuard()
        state = fingerprint(compared_files(self._data, self.names))
        if self._made is None or self._made[0] != state:
            self._made = state, make_guard(self._data, self.names)
        return self._made[1]


@dataclass(frozen=True)
class PreparedSource:
    """One source of a blend as a stage uses it, resolved.

    Attributes:
        entry: of the blend.
        kind: layout of its rows.
        data: how sources are built, and where.
        against: what its rows must not resemble.
        seed: of the run.
        texts: for a stage that learns from single texts, which of them; None: pairs.
        label_texts: for labels, the text of each class.
        least_score: for scored sentences, from where two mean the same.
    """

    entry: SourceConfig
    kind: Kind
    data: DataConfig
    against: EvaluationTexts
    seed: int
    texts: StageTexts | None
    label_texts: dict[str, str] | None
    least_score: float | None

    @classmethod
    def of(
        cls,
        entry: SourceConfig,
        data: DataConfig,
        against: EvaluationTexts,
        seed: int,
        texts: StageTexts | None,
    ) -> "PreparedSource":
        """The source of an entry of a blend; `texts` as the attribute."""
        declared = data.sources.get(entry.source)
        return cls(
            entry=entry,
            kind=kind_of(data, entry.source),
            data=data,
            against=against,
            seed=seed,
            texts=texts,
            label_texts=declared.label_texts if declared else None,
            least_score=declared.least_score if declared else None,
        )

    @property
    def name(self) -> str:
        """As the blend names it."""
        return self.entry.source

    def origin(self) -> dict[str, Any]:
        """All that decides the prepared rows: the source's files and the settings that are used on them."""
        entry = self.entry
        settings: dict[str, Any] = {"layout": _LAYOUT}
        if self.texts is not None:
            settings |= {"texts": self.texts}
        elif self.kind == "labels":
            settings |= {"labels": entry.labels}
            settings |= {"label_texts": self.label_texts} if self.label_texts else {}
        elif entry.mining:
            settings |= {
                "mining": entry.mining.model_dump(),
                "negatives_per_query": entry.negatives_per_query,
                "seed": self.seed,
            }
        if self.kind == "scores" and self.name in self.data.sources:
            settings["least_score"] = self.least_score
        settings |= self.against.origin()
        return {f"file {file.name}": file_digest(file) for file in self._files()} | {"settings": settings}

    def pieces(self, folder: Path) -> "list[SourcePiece]":
        """The work that fills the source's folder; the source is built where that is due."""
        files = self._files()
        parts = [tuple(files)] if self._needs_all_rows() else [(file,) for file in files]
        return [SourcePiece(self, folder, number, part) for number, part in enumerate(parts)]

    def rows(
        self, files: Sequence[Path], guard: ContaminationGuard, report: ContaminationReport
    ) -> Iterator[pa.Table]:
        """Tables of the pair layout from files of the source: from all where it needs all rows.

        What resembles an evaluation is left out and added to the report.
        """
        tables = self._without_evaluation_rows(files, guard, report)
        if self._needs_all_rows():
            tables = iter([pa.concat_tables(tables)])
            self.check(report)
        for table in tables:
            if table.num_rows:
                yield self._made_of(table)

    def check(self, report: ContaminationReport) -> None:
        """Raise DataError where no row is left to train on."""
        if report.dropped.total() == report.rows:
            raise DataError(
                f"source {self.name}: every row resembles a row of {', '.join(self.against.names)}; train on "
                "other data than is evaluated, or change data.contamination"
            )

    def _needs_all_rows(self) -> bool:
        mined = self.entry.mining is not None and self.texts is None
        return self.kind in ("nli", "duplicates") or mined

    def _files(self) -> list[Path]:
        """Files that hold the training rows; the source is built where that is due."""
        return split_files(build_any(self.name, self.data), "train")

    def _without_evaluation_rows(
        self, files: Sequence[Path], guard: ContaminationGuard, report: ContaminationReport
    ) -> Iterator[pa.Table]:
        for file in map(fetch, files):
            table = check_table(read_parquet(file), self.kind, str(file))
            kept, found = guard.clean(table, documents=self.data.contamination.documents)
            report.add(found)
            yield kept

    def _made_of(self, table: pa.Table) -> pa.Table:
        entry = self.entry
        if self.texts is not None and self.kind == "labels":
            return text_rows(table, self.texts)
        table = contrastive_rows(table, self.kind, least_score=self.least_score)
        if self.texts is not None:
            return text_rows(table, self.texts)
        if entry.mining is None or not table.num_rows:
            return table
        mined, report = mine_bm25(
            table,
            negatives_per_query=entry.negatives_per_query,
            top_k=entry.mining.top_k,
            positive_share=entry.mining.positive_share,
            seed=self.seed,
        )
        logger.info("source %s: %s", self.name, report)
        return mined


def kind_of(data: DataConfig, name: str) -> Kind:
    """Layout of a source; ConfigError lists the known ones."""
    if name in data.sources:
        return data.sources[name].kind
    if name in SOURCES:
        return SOURCES[name].kind
    known = sorted([*data.sources, *SOURCES])
    raise ConfigError(
        f"unknown source {name!r}; declare it under data.sources or use one of {', '.join(known)}"
    )


def usually_symmetric(data: DataConfig, entry: SourceConfig) -> bool:
    """Whether the instruction of a source usually goes in front of its documents too."""
    known = entry.source in data.sources
    source = declared_source(data, entry.source) if known else SOURCES[entry.source]
    return is_symmetric(source.kind, source.task_type, entry.labels)


@dataclass(frozen=True)
class SourcePiece:
    """Work on a source: some of its files, or all, to one file of rows."""

    source: PreparedSource
    folder: Path
    number: int
    files: tuple[Path, ...]

    def path(self, suffix: str) -> Path:
        """One of the two files that are written."""
        return here(self.folder) / f"rows-{self.number:05d}{suffix}"


class _PieceWriter:
    """Writes pieces; on an actor the texts of evaluations are read once for all of them."""

    def __init__(self, against: EvaluationTexts):
        self._against = against

    @cached_property
    def _guard(self) -> ContaminationGuard:
        return self._against.guard()

    def __call__(self, piece: SourcePiece) -> dict[str, Any]:
        """The file of the piece and what was left out, written unless that was done before."""
        done = fetch(piece.path(".json"))
        if done.is_file():
            return json.loads(done.read_text())
        report = ContaminationReport()
        with clear_disk_errors(piece.folder):
            rows = piece.source.rows(piece.files, self._guard, report)
            file = write_rows(rows, piece.path(".arrow"))
            found = {"file": asdict(file), "report": report.as_json()}
            atomic_write(done, json.dumps(found))
        return found


def prepare_sources(
    sources: Sequence[PreparedSource], origins: Mapping[str, dict[str, Any]], now: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Indexes of the rows that are made from the origins; makes what is missing.

    Args:
        sources: of a stage.
        origins: by name of a source; those of a stage that was planned before may be older ones.
        now: origins of the files as they are.

    Raises:
        DataError: a source is unreadable, empty or too small, or its files are no longer those of its origin.
    """
    indexes, pieces = [], []
    for source in sources:
        origin = origins[source.name]
        folder = resolve(source.data.directory) / PREPARED / f"{source.name}-{fingerprint(origin)[:16]}"
        indexes.append(folder / INDEX_FILE)
        if fetch(indexes[-1]).is_file():
            continue
        if origin != now[source.name]:
            raise DataError(
                f"source {source.name}: the rows prepared at the start of the run are no longer in {folder} "
                "and its files changed; put the files back, or set name to start another run"
            )
        pieces += source.pieces(folder)
    if not pieces:
        return tuple(indexes)
    small = all(piece.number == 0 and len(piece.files) == 1 for piece in pieces)
    writer = _PieceWriter(pieces[0].source.against)
    results = on_all_cpus(writer, pieces, "preparing sources", here=small)
    done = zip(pieces, results, strict=True)
    for folder, of_source in groupby(done, key=lambda pair: pair[0].folder):
        _complete(folder, list(of_source))
    return tuple(indexes)


def _complete(folder: Path, done: Sequence[tuple[SourcePiece, dict[str, Any]]]) -> None:
    """Write the index of a source all of whose pieces are there."""
    source, report = done[0][0].source, ContaminationReport()
    files = [RowsFile(**result["file"]) for _, result in done]
    for _, result in done:
        report.add(ContaminationReport.of_json(result["report"]))
    source.check(report)
    if not any(file.rows for file in files):
        least = ALIKE if source.least_score is None else source.least_score
        raise DataError(
            f"source {source.name}: no pair of different sentences has a score of {least:g} or more; set "
            "least_score"
        )
    with clear_disk_errors(folder):
        text = json.dumps(report.as_json(), indent=2) + "\n"
        atomic_write(folder / CONTAMINATION_FILE, text)
        classes: dict[str, Any] = {}
        if source.texts is not None:
            files = _kept(folder, files, distinct_texts(PreparedRows.of(folder, files)))
        elif source.kind == "labels":
            rows = PreparedRows.of(folder, files)
            grouping = group_by_class(rows, source.name, source.entry.labels, source.label_texts)
            files = _kept(folder, files, grouping.keep_R)
            write_classes(folder, grouping.of_row)
            classes = {"labelled": True, "class_texts": grouping.texts}
        write_index(files, folder / INDEX_FILE, **classes)
    logger.info("source %s: %d rows ready; %s", source.name, sum(file.rows for file in files), report)


def _kept(folder: Path, files: Sequence[RowsFile], keep_R: np.ndarray) -> list[RowsFile]:
    """Files without the rows that are left out: where there are none, the same."""
    ends = np.cumsum([file.rows for file in files])
    jobs = [(folder, *job) for job in zip(files, np.split(keep_R, ends[:-1]), strict=True)]
    return list(on_all_cpus(_write_kept, jobs, "leaving out rows", here=len(jobs) == 1 or bool(keep_R.all())))


def _write_kept(job: tuple[Path, RowsFile, np.ndarray]) -> RowsFile:
    folder, file, keep = job
    if keep.all():
        return file
    batches = PreparedRows.of(folder, [file]).batches()
    masks = np.split(keep, np.cumsum([batch.num_rows for batch in batches])[:-1])
    tables = (
        pa.Table.from_batches([batch.filter(pa.array(mask))])
        for batch, mask in zip(batches, masks, strict=True)
    )
    with clear_disk_errors(folder):
        return write_rows(tables, here(folder) / f"kept-{file.name}")
