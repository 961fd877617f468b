"""From a checked table of any layout to the rows that training contrasts."""

import logging
from collections.abc import Mapping
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from rayembed.data.labels import example_based_rows, label_based_rows
from rayembed.data.sentence_pairs import duplicate_rows, entailment_rows, similarity_rows
from rayembed.records.schema import Kind

logger = logging.getLogger(__name__)

LabelStyle = Literal["example", "label", "auto"]


def contrastive_rows(
    table: pa.Table,
    kind: Kind,
    *,
    labels: LabelStyle,
    label_texts: Mapping[str, str] | None = None,
    least_score: float = 4.0,
    negatives_per_query: int,
    seed: int,
) -> pa.Table:
    """A table of the pair layout; of a table of pairs, itself.

    Args:
        table: rows of the layout `kind`.
        labels: documents of labelled rows: examples of a class, label texts, or NV-Embed's rule: label texts
            for two classes, examples for more.
        label_texts: label -> text that stands for it; None or empty for the labels themselves.
        least_score: from which scored sentences are alike.
        negatives_per_query: of labelled rows; the other layouts bring their own or leave them to mining.
        seed: decides examples and negatives.

    Raises:
        DataError: nothing can be contrasted.
    """
    if kind == "scores":
        return similarity_rows(table, least_score=least_score)
    if kind == "nli":
        return entailment_rows(table)
    if kind == "duplicates":
        return duplicate_rows(table)
    if kind == "pairs":
        return table
    if labels == "auto":
        labels = label_style(table)
    if labels == "label":
        return label_based_rows(
            table, label_texts=label_texts or None, negatives_per_query=negatives_per_query, seed=seed
        )
    return example_based_rows(table, negatives_per_query=negatives_per_query, seed=seed)


def label_style(table: pa.Table) -> Literal["example", "label"]:
    """NV-Embed's choice of documents for a labelled table: label texts for two classes, else examples."""
    return "label" if pc.count_distinct(table["label"]).as_py() == 2 else "example"


def is_symmetric(kind: Kind, task_type: str, labels: LabelStyle) -> bool:
    """Whether the instruction belongs in front of the documents as well.

    NV-Embed: it does where both sides are texts of one kind that could change places (similarity of
    sentences, duplicate questions, inference, translations, examples of classes and clusters); it does not
    where documents are answers or the names of classes.
    """
    if kind == "labels":
        return labels != "label"
    return kind in ("scores", "duplicates", "nli") or task_type in ("sts", "bitext", "clustering")
