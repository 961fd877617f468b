"""Which columns of a file become which columns of a layout."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayembed.common.errors import ConfigError, DataError
from rayembed.records.base import Unreadable
from rayembed.records.schema import Kind, label_row, pair_row, row_texts, score_row, sentence_label_row

LONGEST_TEXT = 100_000
"""Characters; a longer text is a book or a file read wrongly, and far above what any model reads."""

REQUIRED: dict[Kind, dict[str, tuple[str, ...]]] = {
    "pairs": {"query": ("query",), "positives": ("positives", "positive", "pos", "positive_passages")},
    "labels": {"text": ("text",), "label": ("label",)},
    "scores": {"sentence1": ("sentence1",), "sentence2": ("sentence2",), "score": ("score",)},
    "nli": {
        "sentence1": ("sentence1", "premise"),
        "sentence2": ("sentence2", "hypothesis"),
        "label": ("label",),
    },
    "duplicates": {
        "sentence1": ("sentence1", "question1"),
        "sentence2": ("sentence2", "question2"),
        "label": ("label", "is_duplicate"),
    },
}
OPTIONAL: dict[Kind, dict[str, tuple[str, ...]]] = {
    "pairs": {
        "negatives": ("negatives", "negative", "neg", "negative_passages"),
        "cluster": ("cluster",),
        "teacher_scores": ("teacher_scores",),
        "instruction": ("instruction", "prompt"),
    },
    "labels": {"group": ("group",)},
    "scores": {},
    "nli": {},
    "duplicates": {},
}


@dataclass(frozen=True)
class Columns:
    """Names under which each column of a layout may stand in a file, best first."""

    names: Mapping[str, tuple[str, ...]]
    needed: frozenset[str]

    @staticmethod
    def of(kind: Kind, declared: Mapping[str, str]) -> "Columns":
        """The usual names of a layout, replaced where the user declared one.

        Raises:
            ConfigError: a declared column is no column of the layout.
        """
        usual = REQUIRED[kind] | OPTIONAL[kind]
        for column in declared:
            if column not in usual:
                raise ConfigError(
                    f"columns maps {column!r}, which a source of kind {kind} does not have"
                    f"{nearest(column, list(usual))}; it has {', '.join(usual)}"
                )
        names = usual | {column: (name,) for column, name in declared.items()}
        return Columns(names, frozenset(REQUIRED[kind]) | frozenset(declared))

    def check(self, present: Sequence[str], origin: str) -> None:
        """Refuse a file without a column that is needed.

        Raises:
            DataError: all columns that are missing, the nearest names of the file, and how to map them.
        """
        missing = [
            column for column in self.names if column in self.needed and not self._found(column, present)
        ]
        if missing:
            wanted = "; ".join(
                f"{' or '.join(self.names[column])}{nearest(column, present, *self.names[column])}"
                for column in missing
            )
            raise DataError(
                f"{origin} lacks the column {wanted}. It has {', '.join(present) or 'none'}; "
                f"map them with columns, for example columns: {{{missing[0]}: NAME}}"
            )

    def value(self, record: Mapping[str, Any], column: str) -> Any:
        """Value of a column of the layout; None where the record has none."""
        return next((record[name] for name in self.names[column] if record.get(name) is not None), None)

    def _found(self, column: str, present: Sequence[str]) -> bool:
        return not set(self.names[column]).isdisjoint(present)


def nearest(name: str, known: Sequence[str], *other_names: str) -> str:
    """` (did you mean ...?)` with the names nearest to any spelling, empty where nothing is near."""
    folded = {candidate.lower(): candidate for candidate in known}
    found: dict[str, None] = {}
    for spelling in (name, *other_names):
        for match in difflib.get_close_matches(spelling.lower(), folded, n=2, cutoff=0.6):
            found.setdefault(folded[match])
    return f" (did you mean {' or '.join(found)}?)" if found else ""


NLI_LABELS = ("entailment", "neutral", "contradiction")  # in the order in which data sets number them


class BadRow(Exception):
    """A row that is left out: a reason such as "empty", and what is wrong with it in particular."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class RowChecker:
    """Makes rows of one source."""

    kind: Kind
    columns: Columns
    dataset: str
    task_type: str

    def row(self, record: Mapping[str, Any] | Unreadable) -> dict[str, Any]:
        """Row of the layout.

        Raises:
            BadRow: something is empty, of a wrong type or encoding, too long, or contradicts itself.
        """
        if isinstance(record, Unreadable):
            raise BadRow(record.reason, record.detail)
        row = _ROWS[self.kind](self, record)
        longest = max(map(len, row_texts(row)))
        if longest > LONGEST_TEXT:
            raise BadRow("too long", f"{longest} characters, {LONGEST_TEXT} are allowed")
        return row

    def _text(self, record: Mapping[str, Any], column: str) -> str:
        return _text(self.columns.value(record, column), column)

    def _optional_key(self, record: Mapping[str, Any], column: str) -> str | None:
        value = self.columns.value(record, column)
        return None if value is None else _text(_key(value), column)

    def _pair(self, record: Mapping[str, Any]) -> dict[str, Any]:
        positives = _documents(self.columns.value(record, "positives"), "positive")
        negatives = _documents(self.columns.value(record, "negatives"), "negative")
        if not positives:
            raise BadRow("no positive", "positives are missing or an empty list")
        if not set(positives).isdisjoint(negatives):
            raise BadRow("contradiction", "a negative is also a positive")
        return pair_row(
            self._text(record, "query"),
            positives,
            negatives,
            dataset=self.dataset,
            task_type=self.task_type,
            cluster=self._optional_key(record, "cluster"),
            teacher_scores=self._teacher_scores(record, len(positives) + len(negatives)),
            instruction=self._instruction(record),
        )

    def _instruction(self, record: Mapping[str, Any]) -> str | None:
        value = self.columns.value(record, "instruction")
        return None if value in (None, "") else _text(value, "instruction")

    def _teacher_scores(self, record: Mapping[str, Any], documents: int) -> list[float] | None:
        scores = self.columns.value(record, "teacher_scores")
        if scores is None:
            return None
        if not isinstance(scores, list) or len(scores) != documents:
            raise BadRow("wrong type", f"teacher_scores is not a list of {documents} numbers, one a document")
        try:
            numbers = [float(score) for score in scores]
        except (TypeError, ValueError):
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            raise BadRow("wrong type", "teacher_scores has something that is not a number")
        return numbers

    def _label(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return label_row(
            self._text(record, "text"),
            _text(_key(self.columns.value(record, "label")), "label"),
            dataset=self.dataset,
            task_type=self.task_type,
            group=self._optional_key(record, "group"),
        )

    def _score(self, record: Mapping[str, Any]) -> dict[str, Any]:
        value = self.columns.value(record, "score")
        try:
            score = math.nan if isinstance(value, bool) or value is None else float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise BadRow("wrong type", "score is not a number")
        first, second = self._text(record, "sentence1"), self._text(record, "sentence2")
        return score_row(first, second, score, dataset=self.dataset, task_type=self.task_type)

    def _nli(self, record: Mapping[str, Any]) -> dict[str, Any]:
        label = str(self.columns.value(record, "label")).strip().lower()
        label = dict(zip("012", NLI_LABELS, strict=True)).get(label, label)
        if label not in NLI_LABELS:
            raise BadRow("wrong type", f"label {label[:40]!r} is none of {', '.join(NLI_LABELS)}, 0, 1, 2")
        return self._labelled_sentences(record, label)

    def _duplicate(self, record: Mapping[str, Any]) -> dict[str, Any]:
        label = str(self.columns.value(record, "label")).strip().lower()
        label = {"true": "1", "false": "0", "1.0": "1", "0.0": "0"}.get(label, label)
        if label not in ("0", "1"):
            raise BadRow("wrong type", f"label {label[:40]!r} is none of 0, 1, true, false")
        return self._labelled_sentences(record, label)

    def _labelled_sentences(self, record: Mapping[str, Any], label: str) -> dict[str, Any]:
        first, second = self._text(record, "sentence1"), self._text(record, "sentence2")
        return sentence_label_row(first, second, label, dataset=self.dataset, task_type=self.task_type)


_ROWS: dict[Kind, Callable[[RowChecker, Mapping[str, Any]], dict[str, Any]]] = {
    "pairs": RowChecker._pair,
    "labels": RowChecker._label,
    "scores": RowChecker._score,
    "nli": RowChecker._nli,
    "duplicates": RowChecker._duplicate,
}


def _documents(value: Any, what: str) -> list[str]:
    """One document or a list of them; each a text, or an object with `text` and perhaps a `title`."""
    if value is None:
        return []
    if not isinstance(value, str | list | dict):
        raise BadRow("wrong type", f"{what}s are neither a text nor a list")
    documents = value if isinstance(value, list) else [value]
    return [_text(_passage(document), what) for document in documents]


def _passage(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    title, text = value.get("title") or "", value.get("text")
    return f"{title} {text}".strip() if isinstance(title, str) and isinstance(text, str) else None


def _text(value: Any, what: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow("empty", what)
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{what} is not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow("broken encoding", what) from None
    return value


def _key(value: Any) -> Any:
    """Classes and groups may be numbers."""
    return str(value) if isinstance(value, int) else value
