"""From a checked table of any layout to the rows that training contrasts."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rayembed.common.errors import DataError
from rayembed.records.schema import Kind, pair_row, to_table

logger = logging.getLogger(__name__)

LabelStyle = Literal["example", "label", "auto"]


def contrastive_rows(
    table: pa.Table,
    kind: Kind,
    *,
    labels: LabelStyle,
    label_texts: Mapping[str, str] | None = None,
    least_score: float | None = None,
    negatives_per_query: int,
    seed: int,
) -> pa.Table:
    """A table of the pair layout; of a table of pairs, itself.

    Args:
        table: rows of the layout `kind`.
        labels: documents of labelled rows: examples of a class, label texts, or NV-Embed's rule: label texts
            for two classes, examples for more.
        label_texts: label -> text that stands for it; None or empty for the labels themselves.
        least_score: from which scored sentences are alike; None: 4, of 5.
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
    if label_texts is None and all(label.isdigit() for label in texts_of):
        raise DataError(
            f"source {dataset}: its labels are the numbers {', '.join(sorted(texts_of)[:5])}, which as "
            "documents say nothing; give each a text in label_texts, or use labels: example"
        )
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


def similarity_rows(table: pa.Table, *, least_score: float | None = None) -> pa.Table:
    """Rows of a scored table: sentences that are alike are each other's positive.

    NV-Embed (Lee et al., 2024): a pair with a score of at least 4, of 5, gives two rows, one in each
    direction; negatives are mined as for retrieval. Pairs below the score give no row.

    Raises:
        DataError: no pair reaches the score, or none is given and the scores go beyond 5.
    """
    scores = pc.min_max(table["score"]).as_py()
    if least_score is None and scores["max"] > 5:
        raise DataError(
            f"the scores go from {scores['min']:g} to {scores['max']:g}, so 4 of 5 does not say which "
            "sentences are alike; set least_score"
        )
    least_score = 4.0 if least_score is None else least_score
    rows = []
    for row in table.to_pylist():
        if row["score"] >= least_score and row["sentence1"] != row["sentence2"]:
            rows += _both_ways(row, cluster=None, negatives={})
    return _table(
        rows,
        table,
        f"no pair of different sentences has a score of {least_score:g} or more; its scores go from "
        f"{scores['min']:g} to {scores['max']:g}: set least_score",
    )


def entailment_rows(table: pa.Table) -> pa.Table:
    """Rows of a natural language inference table: premise, what it entails, what contradicts it.

    Gao et al. (SimCSE, 2021), whose triplets NV-Embed trains on: the premise is the query, a hypothesis that
    it entails the positive, the hypotheses that contradict it the hard negatives; neutral ones are not used.
    One row for each entailed hypothesis; where nothing contradicts the premise, negatives are to be mined.

    Raises:
        DataError: nothing is entailed.
    """
    hypotheses: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in table.to_pylist():
        hypotheses[row["sentence1"]][row["label"]].append(row["sentence2"])
    origin = {"dataset": table["dataset"][0].as_py(), "task_type": table["task_type"][0].as_py()}
    rows = []
    for premise, by_label in hypotheses.items():
        entailed = [text for text in dict.fromkeys(by_label["entailment"]) if text != premise]
        against = [text for text in dict.fromkeys(by_label["contradiction"]) if text not in entailed]
        rows += [
            pair_row(
                premise, [text], [text for text in against if text != premise], **origin, cluster=premise
            )
            for text in entailed
        ]
    return _table(rows, table, "no pair is labelled entailment")


def duplicate_rows(table: pa.Table) -> pa.Table:
    """Rows of a duplicate-question table: questions that ask the same are each other's positive.

    NV-Embed evaluates and trains such sets in both directions with the instruction on both sides (Quora,
    StackExchange duplicates). Pairs that people called different become hard negatives of both questions,
    except where duplicates of duplicates make them the same. All questions that are the same by any chain of
    pairs form a cluster, so that they are never each other's in-batch negative.

    Raises:
        DataError: no pair is a duplicate.
    """
    pairs = table.to_pylist()
    cluster_of = _clusters([(row["sentence1"], row["sentence2"]) for row in pairs if row["label"] == "1"])
    different: dict[str, list[str]] = defaultdict(list)
    for row in pairs:
        first, second = row["sentence1"], row["sentence2"]
        same = first == second or (first in cluster_of and cluster_of[first] == cluster_of.get(second))
        if row["label"] == "0" and not same:
            different[first].append(second)
            different[second].append(first)
    rows = []
    for row in pairs:
        if row["label"] == "1" and row["sentence1"] != row["sentence2"]:
            rows += _both_ways(row, cluster=str(cluster_of[row["sentence1"]]), negatives=different)
    return _table(rows, table, "no pair of different questions is labelled 1")


def _both_ways(row: dict, *, cluster: str | None, negatives: dict[str, list[str]]) -> list[dict]:
    """Each sentence as the query of the other."""
    first, second = row["sentence1"], row["sentence2"]
    return [
        pair_row(
            query,
            [positive],
            list(dict.fromkeys(negatives.get(query, []))),
            dataset=row["dataset"],
            task_type=row["task_type"],
            cluster=cluster,
        )
        for query, positive in ((first, second), (second, first))
    ]


def _clusters(pairs: list[tuple[str, str]]) -> dict[str, int]:
    """Text -> number of the connected component that the pairs put it in."""
    position_of: dict[str, int] = {}
    for text in (text for pair in pairs for text in pair):
        position_of.setdefault(text, len(position_of))
    size = len(position_of)
    ends = [[position_of[pair[side]] for pair in pairs] for side in (0, 1)]
    _, labels = connected_components(coo_array(([1] * len(pairs), ends), shape=(size, size)), directed=False)
    return dict(zip(position_of, labels.tolist(), strict=True)) if size else {}


def _table(rows: list[dict], origin: pa.Table, nothing: str) -> pa.Table:
    if not rows:
        raise DataError(f"source {origin['dataset'][0].as_py()}: {nothing}")
    return to_table(rows, "pairs")


def text_rows(table: pa.Table, side: Literal["documents", "queries"]) -> pa.Table:
    """Each distinct text once, as a pair with itself.

    Args:
        table: rows of a pair or label source.
        side: which texts of a pair source: its queries, or its positives.
    """
    if "text" in table.column_names:
        texts = table["text"].to_pylist()
    elif side == "queries":
        texts = table["query"].to_pylist()
    else:
        texts = [text for positives in table["positives"].to_pylist() for text in positives]
    dataset, task_type = table["dataset"][0].as_py(), table["task_type"][0].as_py()
    rows = (pair_row(text, [text], [], dataset=dataset, task_type=task_type) for text in dict.fromkeys(texts))
    return to_table(rows, "pairs")
