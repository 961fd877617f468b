"""Which rows of texts say nothing new, and the classes of the others.

R rows, N classes. A row takes some bytes of memory here, its text none.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayembed.common.errors import DataError
from rayembed.data.clashes import find_shared_keys
from rayembed.data.contrastive import LabelStyle
from rayembed.data.prepared import PreparedRows

logger = logging.getLogger(__name__)


def distinct_texts(rows: PreparedRows) -> np.ndarray:
    """Which rows have a query that no earlier one has: bool [R]."""
    return _first_of_each(len(rows), *_repeated(rows))


@dataclass(frozen=True)
class Grouping:
    """Rows to keep, and the classes of these.

    Attributes:
        keep_R: bool [R].
        of_row: class of each row that is kept: int32.
        texts: of the classes, where these are the documents; None: documents are other rows of the class.
    """

    keep_R: np.ndarray
    of_row: np.ndarray
    texts: tuple[str, ...] | None


def group_by_class(
    rows: PreparedRows, name: str, labels: LabelStyle, label_texts: Mapping[str, str] | None
) -> Grouping:
    """Each distinct text with its class.

    Texts of two classes are left out and, where documents are examples, those that are alone in their class.

    Args:
        rows: of a whole source, the label of each as its cluster.
        name: of the source.
        labels: documents of a row: other texts of the class, label texts, or NV-Embed's rule: label texts for
            two classes, examples for more.
        label_texts: label -> text that stands for it; None or empty for the labels themselves.

    Raises:
        DataError: there are no two classes to tell apart, or a label has no text.
    """
    of_R, names = _codes(rows)
    repeated, keys = _repeated(rows)
    keep_R = _first_of_each(len(rows), repeated, keys)
    keep_R[repeated[_in_two_classes(name, keys, of_R[repeated])]] = False
    sizes_N = np.bincount(of_R[keep_R], minlength=len(names))
    used = [label for label, size in zip(names, sizes_N.tolist(), strict=True) if size]
    if len(used) < 2:
        raise DataError(
            f"source {name} has {len(used)} class(es) ({', '.join(used)}); contrastive rows need two or more"
        )
    if labels == "label" or (labels == "auto" and len(used) == 2):
        text_of = _label_texts(name, used, label_texts)
        texts = tuple(dict.fromkeys(text_of.values()))
        code_of = {text: code for code, text in enumerate(texts)}
        codes_N = np.array([code_of.get(text_of.get(label, ""), -1) for label in names], np.int32)
        return Grouping(keep_R, codes_N[of_R[keep_R]], texts)
    grown_N = sizes_N > 1
    if grown_N.sum() < 2:
        raise DataError(
            f"source {name}: {grown_N.sum()} of {len(used)} classes have two texts or more, and examples "
            "need two such classes; use labels: label, or more data"
        )
    if lonely := [label for label, size in zip(names, sizes_N.tolist(), strict=True) if size == 1]:
        logger.warning(
            "source %s: %d classes have one text and give no row: %s",
            name,
            len(lonely),
            ", ".join(lonely[:5]),
        )
    keep_R &= grown_N[of_R]
    codes_N = (np.cumsum(grown_N) - 1).astype(np.int32)
    return Grouping(keep_R, codes_N[of_R[keep_R]], None)


def _repeated(rows: PreparedRows) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose query other rows have too, ascending, and a number for each such query."""
    [shared] = find_shared_keys([rows.query_keys], [len(rows)])
    return np.flatnonzero(shared.has_any()), shared.keys


def _first_of_each(count: int, repeated: np.ndarray, keys: np.ndarray) -> np.ndarray:
    keep_R = np.ones(count, dtype=bool)
    keep_R[repeated] = False
    keep_R[repeated[np.unique(keys, return_index=True)[1]]] = True
    return keep_R


def _in_two_classes(name: str, keys: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Which of the rows with repeated texts have one that is in two classes: bool."""
    count = int(keys.max(initial=-1)) + 1
    lowest, highest = np.full(count, np.iinfo(np.int32).max), np.full(count, -1)
    np.minimum.at(lowest, keys, classes)
    np.maximum.at(highest, keys, classes)
    if ambiguous := int((lowest != highest).sum()):
        logger.warning("source %s: %d texts have two classes and are left out", name, ambiguous)
    return (lowest != highest)[keys]


def _codes(rows: PreparedRows) -> tuple[np.ndarray, list[str]]:
    """Number of each row's label in the order in which they come, int32 [R], and the labels."""
    numbers: dict[str, int] = {}
    codes = [np.empty(0, np.int32)]
    for batch in rows.batches():
        column = batch["cluster"].dictionary_encode()
        of_batch = [numbers.setdefault(label, len(numbers)) for label in column.dictionary.to_pylist()]
        codes.append(np.array(of_batch, np.int32)[np.asarray(column.indices)])
    return np.concatenate(codes), list(numbers)


def _label_texts(name: str, labels: Sequence[str], label_texts: Mapping[str, str] | None) -> dict[str, str]:
    """The text that stands for each label."""
    if label_texts:
        if missing := sorted(set(labels) - set(label_texts)):
            raise DataError(f"source {name}: label_texts lacks the labels {missing}; add a text for each")
        text_of = {label: label_texts[label] for label in labels}
        if len(set(text_of.values())) < 2:
            raise DataError(f"source {name}: label_texts has one text for all labels; give each its own")
        return text_of
    if all(label.isdigit() for label in labels):
        raise DataError(
            f"source {name}: its labels are the numbers {', '.join(sorted(labels)[:5])}, which as documents "
            "say nothing; give each a text in label_texts, or use labels: example"
        )
    return {label: label for label in labels}
