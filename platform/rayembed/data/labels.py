"""Labelled texts -> contrastive rows.

Example-based rows contrast texts with texts, label-based rows contrast a text with the names of the classes.
NV-Embed (Lee et al., 2024) describes both, found the example-based rows better for many classes and for
clustering, and keeps label texts for two classes.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.records.schema import pair_row, to_table

logger = logging.getLogger(__name__)


def example_based_rows(table: pa.Table, *, negatives_per_query: int, seed: int) -> pa.Table:
    """One pair row for each text that has another of its class.

    NV-Embed, for classes and clusters alike: the positive is a random other text of the class, the negatives
    are random texts of other classes. Query and documents are the same kind of text, so both carry the
    instruction.

    Fewer than `negatives_per_query` negatives are given only where the other classes have fewer texts.
    Raises DataError when there are fewer than two classes or no class has two texts.
    """
    texts_of, dataset, task_type = _classes(table)
    generator = np.random.default_rng(seed)
    # Texts of a class lie side by side, so "any other class" is everything outside one slice.
    texts = [text for members in texts_of.values() for text in members]
    rows, lonely, start = [], [], 0
    for label, members in texts_of.items():
        if len(members) == 1:
            lonely.append(label)
        else:
            others = len(texts) - len(members)
            for position, text in enumerate(members):
                step = generator.integers(1, len(members))
                positive = members[(position + step) % len(members)]
                picks = generator.choice(others, min(negatives_per_query, others), replace=False)
                negatives = [texts[pick if pick < start else pick + len(members)] for pick in picks]
                rows.append(
                    pair_row(text, [positive], negatives, dataset=dataset, task_type=task_type, cluster=label)
                )
        start += len(members)
    if lonely:
        logger.warning(
            "source %s: %d classes have one text and give no row: %s", dataset, len(lonely), lonely
        )
    if not rows:
        raise DataError(f"source {dataset}: no class has two texts; use label-based rows or more data")
    return to_table(rows, "pairs")


def label_based_rows(
    table: pa.Table,
    *,
    label_texts: Mapping[str, str] | None = None,
    negatives_per_query: int,
    seed: int,
) -> pa.Table:
    """One pair row for each text: its class name is the positive, other class names are the negatives.

    NV-Embed, for two classes, and its first version for all: the text of the label is the document. Only the
    query carries the instruction.

    `label_texts` maps a label to the text that stands for it; without it the labels themselves are used.
    Raises DataError when there are fewer than two classes or a label has no text.
    """
    texts_of, dataset, task_type = _classes(table)
    names = {label: label for label in texts_of} if label_texts is None else dict(label_texts)
    if missing := sorted(set(texts_of) - set(names)):
        raise DataError(f"source {dataset}: label_texts lacks the labels {missing}; add a text for each")
    generator = np.random.default_rng(seed)
    rows = []
    for label, members in texts_of.items():
        others = sorted({names[other] for other in texts_of} - {names[label]})
        for text in members:
            picks = generator.choice(len(others), min(negatives_per_query, len(others)), replace=False)
            negatives = [others[pick] for pick in picks]
            rows.append(
                pair_row(text, [names[label]], negatives, dataset=dataset, task_type=task_type, cluster=label)
            )
    return to_table(rows, "pairs")


def _classes(table: pa.Table) -> tuple[dict[str, list[str]], str, str]:
    """Distinct texts of each class, the dataset and the task type."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for text, label in zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True):
        labels_of[text].add(label)
    texts_of: dict[str, list[str]] = defaultdict(list)
    for text, labels in labels_of.items():
        if len(labels) == 1:
            texts_of[min(labels)].append(text)
    dataset, task_type = table["dataset"][0].as_py(), table["task_type"][0].as_py()
    ambiguous = sum(len(labels) > 1 for labels in labels_of.values())
    if ambiguous:
        logger.warning("source %s: %d texts have two classes and are left out", dataset, ambiguous)
    if len(texts_of) < 2:
        raise DataError(
            f"source {dataset} has {len(texts_of)} class(es) ({', '.join(texts_of)}); "
            "contrastive rows need two or more"
        )
    return dict(texts_of), dataset, task_type
