"""One source of a blend -> its rows with negatives, prepared once and shared by stages and runs.

They lie in `<data directory>/prepared/<source>-<digest>/`, where the digest is that of the source's files and
of all settings that decide the rows. Such a folder may be removed at any time: it is prepared again.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import (
    atomic_directory,
    atomic_write,
    clear_disk_errors,
    fetch,
    file_digest,
    resolve,
)
from rayembed.config.blend import SourceConfig
from rayembed.config.data import DataConfig
from rayembed.data.build import build_any, declared_source
from rayembed.data.contamination import (
    ContaminationGuard,
    ContaminationReport,
    compared_files,
    compared_sources,
    make_guard,
)
from rayembed.data.contrastive import contrastive_rows, is_symmetric, text_rows
from rayembed.data.plan import fingerprint
from rayembed.data.prepared import write_rows
from rayembed.data.sources import SOURCES
from rayembed.data.store import read_tables, split_files
from rayembed.mining.rows import mine_bm25
from rayembed.records.schema import Kind

logger = logging.getLogger(__name__)

StageTexts = Literal["queries", "documents"]

PREPARED = "prepared"
ROWS_FILE = "rows.arrow"
CONTAMINATION_FILE = "contamination.json"
_DIGEST_FILE = "rows.sha256"
_LAYOUT = 1  # of the prepared files; raise it when equal sources give other rows


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
            settings |= {"labels": entry.labels, "negatives_per_query": entry.negatives_per_query}
            settings |= {"label_texts": self.label_texts} if self.label_texts else {}
        elif entry.mining:
            settings |= {
                "mining": entry.mining.model_dump(),
                "negatives_per_query": entry.negatives_per_query,
            }
        if len(settings) > 1:
            settings["seed"] = self.seed
        if self.kind == "scores" and self.name in self.data.sources:
            settings["least_score"] = self.least_score
        settings |= self.against.origin()
        return {f"file {file.name}": file_digest(file) for file in self._files()} | {"settings": settings}

    def prepare(self, origin: dict[str, Any]) -> Path:
        """File with the rows that are made from the origin; makes it where it is missing.

        Raises:
            DataError: the source is unreadable, empty or too small, or its files are no longer those of
                `origin`.
        """
        folder = resolve(self.data.directory) / PREPARED / f"{self.name}-{fingerprint(origin)[:16]}"
        if not fetch(folder / ROWS_FILE).is_file():
            if origin != self.origin():
                raise DataError(
                    f"source {self.name}: the rows prepared at the start of the run are no longer in "
                    f"{folder} and its files changed; put the files back, or set name to start another run"
                )
            report = ContaminationReport()
            with clear_disk_errors(folder), atomic_directory(folder) as temporary:
                rows = write_rows(self._rows(report), temporary / ROWS_FILE)
                atomic_write(temporary / CONTAMINATION_FILE, json.dumps(report.as_json(), indent=2) + "\n")
                atomic_write(temporary / _DIGEST_FILE, file_digest(temporary / ROWS_FILE) + "\n")
            logger.info("source %s: %d rows ready; %s", self.name, rows, report)
        return folder / ROWS_FILE

    def _files(self) -> Sequence[Path]:
        """Files that hold the training rows; the source is built where that is due."""
        return split_files(build_any(self.name, self.data), "train")

    def _rows(self, report: ContaminationReport) -> Iterator[pa.Table]:
        """Tables of the pair layout; what resembles an evaluation is left out and added to the report.

        Pairs that bring their negatives pass through file by file. Classes, sentences and mining need all
        rows.
        """
        tables = self._without_evaluation_rows(report)
        if self.texts is not None:
            table = pa.concat_tables(tables)
            if self.kind not in ("labels", "pairs"):
                table = self._with_negatives(table)
            yield text_rows(table, self.texts)
        elif self.kind == "pairs" and self.entry.mining is None:
            yield from tables
        else:
            yield self._with_negatives(pa.concat_tables(tables))

    def _without_evaluation_rows(self, report: ContaminationReport) -> Iterator[pa.Table]:
        guard = self.against.guard()
        for table in read_tables(resolve(self.data.directory), self.name, "train"):
            kept, found = guard.clean(table, documents=self.data.contamination.documents)
            report.add(found)
            yield kept
        if report.dropped.total() == report.rows:
            raise DataError(
                f"source {self.name}: every row resembles a row of {', '.join(self.against.names)}; train on "
                "other data than is evaluated, or change data.contamination"
            )

    def _with_negatives(self, table: pa.Table) -> pa.Table:
        entry = self.entry
        table = contrastive_rows(
            table,
            self.kind,
            labels=entry.labels,
            label_texts=self.label_texts,
            least_score=self.least_score,
            negatives_per_query=entry.negatives_per_query,
            seed=self.seed,
        )
        if self.kind == "labels" or entry.mining is None:
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


def rows_digest(path: Path) -> str:
    """Digest of the rows that `PreparedSource.prepare` made."""
    return fetch(path.parent / _DIGEST_FILE).read_text().strip()
