"""Which columns of a file become which columns of a layout."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayembed.common.errors import ConfigError, DataError
from rayembed.records.schema import Kind

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
