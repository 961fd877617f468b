"""From a checked table of any layout to the rows that training contrasts."""

from collections import defaultdict
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rayembed.common.errors import DataError
from rayembed.records.schema import Kind, pair_row, to_table

LabelStyle = Literal["example", "label", "auto"]
ALIKE = 4.0
"""Score of 5 from which NV-Embed takes two sentences for alike."""


def contrastive_rows(table: pa.Table, kind: Kind, *, least_score: float | None = None) -> pa.Table:
    """A table of the pair layout; of a table of pairs, itself.

    Args:
        table: rows of the layout `kind`; of labels, scores and pairs any part of a source.
        kind: layout.
        least_score: from which scored sentences are alike; None: 4, of 5.

    Raises:
        DataError: nothing can be contrasted, or 4 of 5 is no measure of the scores.
    """
    if kind == "labels":
        return labelled_rows(table)
    if kind == "scores":
        return similarity_rows(table, least_score=least_score)
    if kind == "nli":
        return entailment_rows(table)
    if kind == "duplicates":
        return duplicate_rows(table)
    return table


def is_symmetric(kind: Kind, task_type: str, labels: LabelStyle) -> bool:
    """Whether the instruction belongs in front of the documents as well.

    NV-Embed: it does where both sides are texts of one kind that could change places (similarity of
    sentences, duplicate questions, inference, translations, examples of classes and clusters); it does not
    where documents are answers or the names of classes.
    """
    if kind == "labels":
        return labels != "label"
    return kind in ("scores", "duplicates", "nli") or task_type in ("sts", "bitext", "clustering")


def labelled_rows(table: pa.Table) -> pa.Table:
    """One row for each text, with its class as the cluster; its documents are drawn anew by every step."""
    rows = (
        pair_row(
            row["text"], [], [], dataset=row["dataset"], task_type=row["task_type"], cluster=row["label"]
        )
        for row in table.to_pylist()
    )
    return to_table(rows, "pairs")


def similarity_rows(table: pa.Table, *, least_score: float | None = None) -> pa.Table:
    """Rows of a scored table: sentences that are alike are each other's positive.

    NV-Embed (Lee et al., 2024): a pair with a score of at least 4, of 5, gives two rows, one in each
    direction; negatives are mined as for retrieval. Pairs below the score give no row.

    Raises:
        DataError: no score is given and the scores go beyond 5.
    """
    scores = pc.min_max(table["score"]).as_py()
    if least_score is None and scores["max"] > 5:
        raise DataError(
            f"the scores go from {scores['min']:g} to {scores['max']:g}, so 4 of 5 does not say which "
            "sentences are alike; set least_score"
        )
    least_score = ALIKE if least_score is None else least_score
    rows = []
    for row in table.to_pylist():
        if row["score"] >= least_score and row["sentence1"] != row["sentence2"]:
            rows += _both_ways(row, cluster=None, negatives={})
    return to_table(rows, "pairs")


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
