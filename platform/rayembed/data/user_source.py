"""Sources of the user's own: Parquet or JSON-lines files in a simple layout -> a checked table.

Accepted columns, where `|` separates names for the same thing:

- pairs:  query, positives | positive | pos, and optionally negatives | negative | neg (a text or a list) and
  cluster;
- labels: text, label, and optionally group;
- scores: sentence1, sentence2, score.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayembed.data.schema import Kind, label_row, pair_row, score_row, to_table
from rayembed.data.store import read_parquet
from rayembed.errors import DataError

logger = logging.getLogger(__name__)

POSITIVES = ("positives", "positive", "pos")
NEGATIVES = ("negatives", "negative", "neg")
REQUIRED: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "pairs": (("query",), POSITIVES),
    "labels": (("text",), ("label",)),
    "scores": (("sentence1",), ("sentence2",), ("score",)),
}
SUFFIXES = (".json", ".jsonl", ".parquet")


class _BadRow(Exception):
    """Why a row is left out, in words that are the same for all such rows."""


def load_user_source(
    path: Path, kind: Kind, name: str, task_type: str, *, largest_bad_share: float = 0.01
) -> pa.Table:
    """Load a file, or all files of a folder, as one table of the layout `kind` with `name` as its dataset.

    Bad rows (no query, no positive, a negative that is a positive, not a text, ...) are left out, counted by
    reason and logged. Raises DataError when a file is missing, damaged or has other columns, when more than
    `largest_bad_share` of the rows are bad, and when there are none.
    """
    rows: list[dict] = []
    bad: Counter[str] = Counter()
    first_place: dict[str, str] = {}
    for place, record in _records(path, kind):
        try:
            rows.append(_row(record, kind, name, task_type))
        except _BadRow as reason:
            bad[str(reason)] += 1
            first_place.setdefault(str(reason), place)
    total = len(rows) + bad.total()
    if total == 0:
        raise DataError(f"source {name}: {path} has no rows; supply a file that is not empty")
    if bad:
        reasons = "; ".join(
            f"{count} x {reason} (first in {first_place[reason]})" for reason, count in bad.most_common()
        )
        message = f"source {name}: {bad.total()} of {total} rows are bad: {reasons}"
        if bad.total() > largest_bad_share * total:
            raise DataError(f"{message}; at most {largest_bad_share:.1%} may be, correct the file")
        logger.warning("%s; they are left out", message)
    return to_table(rows, kind)


def _records(path: Path, kind: Kind) -> Iterator[tuple[str, Any]]:
    """Yield the rows of all files with the place they come from; a line that is not JSON comes as None."""
    for file in _files(path):
        if file.suffix == ".parquet":
            records: Iterable[Any] = read_parquet(file).to_pylist()
        else:
            records = _json_lines(file)
        for number, record in enumerate(records, start=1):
            if number == 1 and isinstance(record, dict):
                _check_columns(list(record), kind, file)
            yield f"{file.name}, row {number}", record


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"{path} does not exist; give a Parquet or JSON-lines file, or a folder of them")
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in candidates if file.suffix in SUFFIXES]
    if not files:
        raise DataError(f"{path} has no file that ends in {', '.join(SUFFIXES)}")
    return files


def _json_lines(file: Path) -> Iterator[Any]:
    try:
        with file.open(encoding="utf-8") as stream:
            for line in filter(str.strip, stream):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    yield None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); convert it") from error


def _check_columns(columns: list[str], kind: Kind, file: Path) -> None:
    for names in REQUIRED[kind]:
        if not set(names) & set(columns):
            raise DataError(
                f"{file} has no column {' or '.join(names)}, which a source of kind {kind} needs; "
                f"it has {', '.join(columns) or 'none'}"
            )


def _row(record: Any, kind: Kind, name: str, task_type: str) -> dict:
    if not isinstance(record, dict):
        raise _BadRow("not a JSON object")
    if kind == "pairs":
        positives, negatives = _texts(record, POSITIVES), _texts(record, NEGATIVES)
        if not positives:
            raise _BadRow("no positive")
        if set(positives) & set(negatives):
            raise _BadRow("a negative that is also a positive")
        return pair_row(
            _text(record.get("query"), "query"),
            positives,
            negatives,
            dataset=name,
            task_type=task_type,
            cluster=_optional_key(record, "cluster"),
        )
    if kind == "labels":
        text, label = _text(record.get("text"), "text"), _text(_key(record.get("label")), "label")
        return label_row(text, label, dataset=name, task_type=task_type, group=_optional_key(record, "group"))
    score = record.get("score")
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise _BadRow("score is not a number")
    first, second = (_text(record.get(column), column) for column in ("sentence1", "sentence2"))
    return score_row(first, second, float(score), dataset=name, task_type=task_type)


def _texts(record: dict, names: tuple[str, ...]) -> list[str]:
    values: Any = next((record[name] for name in names if record.get(name) is not None), [])
    if not isinstance(values, str | list):
        raise _BadRow(f"{names[0]} are neither a text nor a list")
    return [_text(value, names[1]) for value in ([values] if isinstance(values, str) else values)]


def _text(value: Any, what: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise _BadRow(f"empty {what}")
    if not isinstance(value, str):
        raise _BadRow(f"{what} is not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadRow(f"{what} has half a Unicode character") from None
    return value


def _optional_key(record: dict, column: str) -> str | None:
    return None if record.get(column) is None else _text(_key(record[column]), column)


def _key(value: Any) -> Any:
    """Classes and groups may be numbers."""
    return str(value) if isinstance(value, int) else value
