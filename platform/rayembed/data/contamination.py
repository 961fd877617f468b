"""Training rows that repeat or nearly repeat rows of an evaluation are dropped and counted.

NV-Embed (Lee et al., 2024) removes training rows that resemble the test sets of MTEB.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from rayembed.common.errors import DataError
from rayembed.common.paths import file_digest, resolve
from rayembed.config.data import DataConfig
from rayembed.data.build import build_any
from rayembed.data.sources import SOURCES
from rayembed.data.store import read_split, split_files
from rayembed.records import mteb_tasks

logger = logging.getLogger(__name__)

QUERY_COLUMNS = ("query", "text", "sentence1", "sentence2")
MTEB = "mteb:"  # in front of a task or benchmark of mteb
MOST_NEAR = 100_000
"""Texts of an evaluation that rows may not resemble; to those of a larger one they may only not be equal."""
EXAMPLES = 5  # of dropped rows that a report shows


@dataclass
class ContaminationReport:
    """What the guard found in a source.

    Attributes:
        rows: rows that were looked at.
        dropped: evaluation -> training rows that resemble one of its texts.
        examples: (evaluation, its text, training text) of the first few.
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, other: "ContaminationReport") -> None:
        """Take in what was found in another part of the source."""
        self.rows += other.rows
        self.dropped.update(other.dropped)
        self.examples = (self.examples + other.examples)[:EXAMPLES]

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {"rows": self.rows, "dropped": dict(self.dropped), "examples": self.examples}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "ContaminationReport":
        """What `as_json` gave."""
        return cls(values["rows"], Counter(values["dropped"]), [tuple(found) for found in values["examples"]])

    def __str__(self) -> str:
        found = ", ".join(f"{count} like {name}" for name, count in self.dropped.most_common())
        return f"{self.dropped.total()} of {self.rows} rows resemble evaluation texts and are dropped" + (
            f" ({found})" if found else ""
        )


class ContaminationGuard:
    """The texts of evaluations, to which training rows are compared; see `near_duplicates`."""

    def __init__(self) -> None:
        self._texts = NearDuplicates()
        self._equal: dict[bytes, tuple[str, str]] = {}  # key of a text -> evaluation and text

    def add(self, evaluation: str, texts: Iterable[str]) -> None:
        """Take the texts of an evaluation in."""
        fresh = []
        for text in texts:
            if _WORD.search(text) and (key := _key(text)) not in self._equal:
                self._equal[key] = evaluation, text
                fresh.append(text)
        if len(fresh) > MOST_NEAR:
            logger.warning(
                "contamination guard: %s has %d texts; rows that equal one are dropped, similar ones are not",
                evaluation, len(fresh),
            )  # fmt: skip
            return
        for text in fresh:
            self._texts.add((evaluation, text), text)

    def match(self, text: str) -> tuple[str, str] | None:
        """Evaluation and text that `text` repeats, case and punctuation aside, or nearly repeats, or None."""
        equal = self._equal.get(_key(text))
        return equal or cast(tuple[str, str] | None, self._texts.find(text))

    def clean(self, table: pa.Table, *, documents: bool = False) -> tuple[pa.Table, ContaminationReport]:
        """Leave out the rows of a table, of any layout, that resemble an indexed text.

        Args:
            table: rows of a source.
            documents: compare the positives of pairs too, not only the queries.

        Returns:
            The other rows, and what was found.
        """
        columns = [name for name in QUERY_COLUMNS if name in table.column_names]
        if documents and "positives" in table.column_names:
            columns.append("positives")
        report = ContaminationReport(rows=table.num_rows)
        if not len(self):
            return table, report
        keep = []
        for values in zip(*(table[name].to_pylist() for name in columns), strict=True):
            found = self._first_match(values)
            keep.append(found is None)
            if found is not None:
                report.dropped[found[0]] += 1
                if len(report.examples) < EXAMPLES:
                    report.examples.append(found)
        return (table if all(keep) else table.filter(pa.array(keep))), report

    def _first_match(self, values: Sequence[str | list[str]]) -> tuple[str, str, str] | None:
        texts = (text for value in values for text in ([value] if isinstance(value, str) else value))
        for text in texts:
            if found := self.match(text):
                return *found, text
        return None

    def __len__(self) -> int:
        return len(self._equal)


def evaluation_texts(table: pa.Table, *, documents: bool) -> list[str]:
    """Texts of a test split that no training row may repeat: its queries, and with `documents` its corpus."""
    columns: Mapping[str, list] = {
        name: table[name].to_pylist() for name in QUERY_COLUMNS if name in table.column_names
    }
    texts = [text for column in columns.values() for text in column]
    if documents and "positives" in table.column_names:
        texts += [text for positives in table["positives"].to_pylist() for text in positives]
    return list(dict.fromkeys(texts))


def compared_sources(data: DataConfig, blend: Iterable[str]) -> tuple[str, ...]:
    """Names of what a run must not train on.

    Those of `contamination.against`; without it, the built-in sources that have a test split among those of
    the blend and those that they were derived from. A warning where that is nothing.
    """
    if data.contamination.against is not None:
        return data.contamination.against
    origins = dict.fromkeys(origin_of(data, name) for name in blend)
    found = tuple(name for name in origins if name in SOURCES and SOURCES[name].kind != "scores")
    if not found and origins:
        logger.warning(
            "contamination guard: nothing is compared, as no source of the blend has a test split; set "
            'data.contamination.against to what you evaluate on, such as ["mteb:MTEB(eng, v1)"], or to []'
        )
    return found


def origin_of(data: DataConfig, name: str) -> str:
    """The source whose rows a source was made from in the end, by mining for example; else itself."""
    seen = {name}
    while name in data.sources and (before := data.sources[name].derived_from) and before not in seen:
        seen.add(name := before)
    return name


def make_guard(data: DataConfig, names: Sequence[str]) -> ContaminationGuard:
    """Index what is named, building sources that are not built.

    Of a built-in source and of tasks of mteb the test rows count, of a source that the recipe declares all.

    Raises:
        DataError: an unknown name, or a source that cannot be read.
        ResourceError: a source or task cannot be fetched.
    """
    guard, settings = ContaminationGuard(), data.contamination
    for name in names:
        if name.startswith(MTEB):
            for task in mteb_tasks.tasks_of(name.removeprefix(MTEB), settings.mirror):
                guard.add(task.metadata.name, mteb_tasks.asked_texts(task, documents=settings.documents))
            continue
        build_any(name, data)
        table = read_split(resolve(data.directory), name, _compared_split(data, name))
        guard.add(name, evaluation_texts(table, documents=settings.documents))
    if names and not len(guard):
        raise DataError(f"contamination guard: {', '.join(names)} have no text to compare with")
    logger.info("contamination guard: %d texts of %s", len(guard), ", ".join(names))
    return guard


def compared_files(data: DataConfig, names: Sequence[str]) -> dict[str, str]:
    """Digest or revision of all that `make_guard` reads: what decides which rows are dropped."""
    found: dict[str, str] = {}
    for name in names:
        if name.startswith(MTEB):
            for task in mteb_tasks.tasks_of(name.removeprefix(MTEB), None):
                found[task.metadata.name] = str(task.metadata.dataset["revision"])
            continue
        for file in split_files(build_any(name, data), _compared_split(data, name)):
            found[f"{name} {file.name}"] = file_digest(file)
    return found


def _compared_split(data: DataConfig, name: str) -> str:
    return "train" if name in data.sources else "test"


_PERMUTATIONS = 128
_SHINGLE_WORDS = 3
# A character of Chinese, Japanese or Thai is a word: these are written without blanks.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")


class NearDuplicates:
    """Texts by key, searched for the one that a text nearly repeats.

    Texts of fewer than three words are left out: that two texts use one word says nothing.

    Args:
        similarity: Jaccard similarity of word triples from which two texts are the same.
    """

    def __init__(self, similarity: float = 0.8):
        self._similarity = similarity
        # A missed duplicate costs more than a candidate too many, which is only compared.
        self._index = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS, weights=(0.2, 0.8))
        self._shingles: dict[Hashable, frozenset[bytes]] = {}
        self._known: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._shingles)

    def add(self, key: Hashable, text: str) -> None:
        """Remember a text under a key of its own."""
        if parts := shingles(text):
            self._shingles[key] = parts
            self._known |= parts
            self._index.insert(key, _sketch(parts))

    def find(self, text: str) -> Hashable | None:
        """Key of the most similar text that is similar enough, or None."""
        parts = shingles(text)
        # Most texts share too few triples with all others together to resemble one of them.
        if not parts or len(parts & self._known) < self._similarity * len(parts):
            return None
        near = ((self._compare(parts, key), key) for key in self._index.query(_sketch(parts)))
        similarity, key = max(near, key=lambda pair: pair[0], default=(0.0, None))
        return key if similarity >= self._similarity else None

    def _compare(self, parts: frozenset[bytes], key: Hashable) -> float:
        others = self._shingles[key]
        return len(parts & others) / len(parts | others)


def _key(text: str) -> bytes:
    """Digest of the words of a text, without case and punctuation."""
    return hashlib.blake2b(" ".join(_WORD.findall(text.lower())).encode(), digest_size=8).digest()


def shingles(text: str) -> frozenset[bytes]:
    """Word triples of a text; none of a text with fewer words."""
    words = _WORD.findall(text.lower())
    starts = range(len(words) - _SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + _SHINGLE_WORDS]).encode() for start in starts)


def _sketch(parts: frozenset[bytes]) -> MinHash:
    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch(list(parts))
    return sketch
