"""Which columns of a file become which columns of a layout."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rayembed.common.errors import ConfigError, DataError
from rayembed.records.base import CellText
from rayembed.records.schema import Kind


@dataclass(frozen=True)
class Spellings:
    """Names under which a column of a layout stands in files.

    Attributes:
        own: names that mean just this; the first that has a value counts, of negatives all.
        others: names that usually mean this; two of them in one file are refused.
        numbered: beginnings of names such as `negative_1`, `negative_2`; all of them count.
    """

    own: tuple[str, ...]
    others: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()


_SENTENCES = {
    "sentence1": Spellings(("sentence1",), ("premise", "question1", "text1", "sentence_a", "text_a")),
    "sentence2": Spellings(("sentence2",), ("hypothesis", "question2", "text2", "sentence_b", "text_b")),
}
_REQUIRED: dict[Kind, dict[str, Spellings]] = {
    "pairs": {
        "query": Spellings(("query",), ("anchor", "question")),
        "positives": Spellings(
            ("positives", "positive", "pos", "positive_ctxs"),
            ("answer", "answers", "response", "passage", "document", "context"),
            ("positive", "pos"),
        ),
    },
    "labels": {
        "text": Spellings(("text",), ("sentence", "sentences", "utterance", "content", "review")),
        "label": Spellings(("label_text", "label"), ("labels", "class", "category", "intent")),
    },
    "scores": _SENTENCES | {"score": Spellings(("score",), ("similarity_score", "similarity", "label"))},
    "nli": _SENTENCES | {"label": Spellings(("label", "gold_label"), ("labels",))},
    "duplicates": _SENTENCES | {"label": Spellings(("label", "is_duplicate"), ("labels",))},
}
_OPTIONAL: dict[Kind, dict[str, Spellings]] = {
    "pairs": {
        "negatives": Spellings(
            (
                "negatives", "negative", "negs", "neg", "hard_negatives", "hard_negative", "hard_neg",
                "hard_negative_ctxs", "negative_ctxs",
            ),
            (),
            ("negative", "neg", "hard_negative", "hard_neg"),
        ),
        "cluster": Spellings(("cluster",)),
        "teacher_scores": Spellings(("teacher_scores",)),
        "positive_scores": Spellings(("pos_scores", "positive_scores", "pos_score", "positive_score")),
        "negative_scores": Spellings(("neg_scores", "negative_scores", "neg_score", "negative_score")),
        "instruction": Spellings(("instruction", "prompt")),
    },
    "labels": {"group": Spellings(("group",))},
    "scores": {},
    "nli": {},
    "duplicates": {},
}  # fmt: skip

_LISTS = ("positives", "pos", "negatives", "negs", "neg", "hard_negatives", "answers")
"""Columns whose texts are lists where they look like ones."""

LOOKED_AT = 1000
"""Records after which a column that none of them has is missing: JSON leaves out what has no value."""


@dataclass
class Columns:
    """Finds the columns of a layout in records, and remembers which names these had.

    Attributes:
        kind: the layout.
        declared: column of the layout -> name that the user gave for it.
        present: names in all records so far, in the order of their appearance.
    """

    kind: Kind
    declared: Mapping[str, str]
    present: dict[str, None] = field(default_factory=dict)
    _found: dict[tuple[str, ...], dict[str, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ConfigError where a declared column is no column of the layout."""
        self._usual = _REQUIRED[self.kind] | _OPTIONAL[self.kind]
        for column in self.declared:
            if column not in self._usual:
                raise ConfigError(
                    f"columns maps {column!r}, which a source of kind {self.kind} does not have"
                    f"{nearest(column, list(self._usual))}; it has {', '.join(self._usual)}"
                )

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that every record has."""
        return tuple(_REQUIRED[self.kind])

    def values(self, record: Mapping[str, Any], column: str) -> list[Any]:
        """What a record has in a column of the layout: of one name, or of several numbered ones."""
        keys = tuple(record)
        if keys not in self._found:
            self._found[keys] = self.names(keys)
            self.present.update(dict.fromkeys(keys))
        found = []
        for name in self._found[keys][column]:
            value = record[name] if name in record else _inner(record, name)
            if not is_missing(value):
                listed = isinstance(value, str) and folded(name) in _LISTS
                found.append(CellText(value) if listed else value)
                if value != [] and column != "negatives" and not _is_numbered(name, self._usual[column]):
                    break
        return [value for value in found if value != []] or found

    def value(self, record: Mapping[str, Any], column: str) -> Any:
        """The first value; None where the record has none."""
        return next(iter(self.values(record, column)), None)

    def names(self, present: Iterable[str]) -> dict[str, list[str]]:
        """Column of the layout -> names that it has among those that are present.

        Raises:
            DataError: two columns may be meant, and the user did not say which.
        """
        by_spelling: dict[str, str] = {}
        for name in sorted(present, key=lambda name: name != folded(name)):  # exact names first
            by_spelling.setdefault(folded(name), name)
        return {column: self._names(column, by_spelling) for column in self._usual}

    def _names(self, column: str, folded: Mapping[str, str]) -> list[str]:
        if column in self.declared:
            name = self.declared[column]
            return [name] if name in folded.values() or name.partition(".")[0] in folded.values() else []
        usual = self._usual[column]
        found = [folded[name] for name in usual.own if name in folded]
        if column == "label" and self.kind == "labels":
            found = found[:1]  # a class has the name that its first column gives it, or none
        numbered = [name for name in folded.values() if _is_numbered(name, usual)]
        if found or numbered:
            return [*sorted(numbered, key=_number), *found]
        found = [folded[name] for name in usual.others if name in folded]
        if len(found) > 1:
            raise DataError(
                f"{' and '.join(map(repr, found))} may both be the {column}; choose with columns: "
                f"{{{column}: {found[0]}}}"
            )
        return found

    def check(self, origin: str) -> None:
        """Refuse a file without a column that is needed.

        Raises:
            DataError: all columns that are missing, the nearest names of the file, and how to map them.
        """
        names = self.names(self.present)
        missing = [column for column in _REQUIRED[self.kind] if not names[column]]
        if not missing:
            return
        wanted = "; ".join(
            " or ".join(spelled := self._spelled(column)) + nearest(column, list(self.present), *spelled)
            for column in missing
        )
        fitting = [kind for kind in _REQUIRED if not self.declared and _fits(kind, self.present)]
        raise DataError(
            f"{origin} lacks the column {wanted}. It has {', '.join(self.present) or 'none'}; "
            + (f"set kind: {fitting[0]}, which has these, or " if fitting else "")
            + f"map them with columns, for example columns: {{{missing[0]}: NAME}}"
        )

    def _spelled(self, column: str) -> list[str]:
        if column in self.declared:
            return [self.declared[column]]
        return [*self._usual[column].own, *self._usual[column].others]

    def check_declared(self, origin: str) -> None:
        """Refuse a source that has a declared column nowhere."""
        names = self.names(self.present)
        for column, name in self.declared.items():
            if not names[column]:
                near = nearest(name, list(self.present))
                raise DataError(
                    f"{origin} lacks the column {name}{near}, which columns maps {column} to. It "
                    f"has {', '.join(self.present) or 'none'}"
                )

    def unused(self) -> list[str]:
        """Names in the records that no column of the layout takes."""
        used = {name for names in self.names(self.present).values() for name in names}
        used |= {name.partition(".")[0] for name in used if name not in self.present}
        return [name for name in self.present if name not in used and name not in self.declared.values()]

    def __str__(self) -> str:
        """`query = anchor, positives = positive; not used: idx`."""
        names = {column: found for column, found in self.names(self.present).items() if found}
        understood = ", ".join(f"{column} = {' + '.join(found)}" for column, found in names.items())
        unused = ", ".join(self.unused())
        return understood + (f"; not used: {unused}" if unused else "")


def _fits(kind: Kind, present: Iterable[str]) -> bool:
    try:
        names = Columns(kind, {}).names(present)
    except DataError:
        return False
    return all(names[column] for column in _REQUIRED[kind])


_TEXT_OF = re.compile(
    r"(query|question|anchor|answer|passage|document|pos|positives?|(?:hard_)?neg|(?:hard_)?negatives?)"
    r"_(?:text|passage|document|doc)s?((?:_\d+)?)"
)


@lru_cache(4096)
def folded(name: str) -> str:
    """One name for spellings: `Query`, `queryText` and `query-text` are `query`, `neg.1` is `neg_1`."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|[\s.-]+", "_", name.strip()).lower()
    if match := _TEXT_OF.fullmatch(name):
        name = f"{match[1]}{match[2]}"
    return re.sub(r"^(sentence|question|text)_(?=[12]$)", r"\1", name)


def _is_numbered(name: str, spellings: Spellings) -> bool:
    return bool(spellings.numbered) and bool(
        re.fullmatch(rf"(?:{'|'.join(spellings.numbered)})s?_?\d+", folded(name))
    )


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _inner(record: Mapping[str, Any], name: str) -> Any:
    """Field `b` of a record's `a`, for the name `a.b`."""
    outer, _, inner = name.partition(".")
    value = record.get(outer)
    if isinstance(value, list):
        return [_inner({"": one}, f".{inner}") for one in value]
    if not isinstance(value, Mapping):
        return None
    return value[inner] if inner in value else _inner(value, inner)


def is_missing(value: Any) -> bool:
    """Whether a value stands for none, as pandas and CSV files write it: null, NaN, a blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def nearest(name: str, known: Sequence[str], *other_names: str) -> str:
    """` (did you mean ...?)` with the names nearest to any spelling, empty where nothing is near."""
    folded = {candidate.lower(): candidate for candidate in known}
    found: dict[str, None] = {}
    for spelling in (name, *other_names):
        for match in difflib.get_close_matches(spelling.lower(), folded, n=2, cutoff=0.6):
            found.setdefault(folded[match])
    return f" (did you mean {' or '.join(found)}?)" if found else ""
