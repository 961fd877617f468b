"""Pairs of sentences that people scored or labelled -> contrastive rows."""

from collections import defaultdict

import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rayembed.common.errors import DataError
from rayembed.records.schema import pair_row, to_table


def similarity_rows(table: pa.Table, *, least_score: float = 4.0) -> pa.Table:
    """Rows of a scored table: sentences that are alike are each other's positive.

    NV-Embed (Lee et al., 2024): a pair with a score of at least 4, of 5, gives two rows, one in each
    direction; negatives are mined as for retrieval. Pairs below the score give no row.

    Raises:
        DataError: no pair reaches the score.
    """
    rows = []
    for row in table.to_pylist():
        if row["score"] >= least_score and row["sentence1"] != row["sentence2"]:
            rows += _both_ways(row, cluster=None, negatives={})
    return _table(rows, table, f"no pair of different sentences has a score of {least_score:g} or more")


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
