import math

import numpy as np
import pytest

from rayembed.common.errors import DataError
from rayembed.mining.bm25 import BM25Search, best_documents
from rayembed.mining.filters import below_positive_share
from rayembed.mining.in_memory import mine_bm25
from rayembed.records.schema import document_id, pair_row, to_table

PAIRS = [
    ("open a text file", "open the text file for reading"),
    ("open a text stream", "open the text file for writing"),
    ("close a file", "close file handle quietly"),
    ("bake some bread", "bread dough is baked in an oven"),
    ("train a dog", "dogs learn by reward"),
    ("plant an apple tree", "apple trees need sun"),
]


def pairs(*rows):
    return to_table((pair_row(q, [p], [], dataset="d", task_type="retrieval") for q, p in rows), "pairs")


def negatives(table):
    return dict(zip(table["query"].to_pylist(), table["negatives"].to_pylist(), strict=True))


def test_filter_keeps_what_scores_clearly_below_the_positive():
    keep = below_positive_share(np.array([12.0, 9.6, 9.5, 9.4, 0.0]), positive_score=10.0, share=0.95)
    assert keep.tolist() == [False, False, False, True, True]


def test_near_duplicate_of_the_positive_is_rejected_and_the_next_best_is_mined():
    table, report = mine_bm25(pairs(*PAIRS), negatives_per_query=1, seed=0)
    assert negatives(table)["open a text file"] == ["close file handle quietly"]
    assert report.rejected >= 1


def test_short_rows_get_random_documents_and_are_counted():
    table, report = mine_bm25(pairs(*PAIRS), negatives_per_query=3, seed=0)
    for row in table.to_pylist():
        assert len(set(row["negatives"])) == 3
        assert not set(row["negatives"]) & set(row["positives"])
        assert row["document_ids"] == [document_id(text) for text in [*row["positives"], *row["negatives"]]]
    assert report.rows == report.documents == 6
    assert report.mined + report.random_fills == 18
    assert report.rows_short == 6
    assert "filled 6 short rows" in str(report)


def test_result_depends_on_the_seed_alone():
    first, second, other = (
        mine_bm25(pairs(*PAIRS), negatives_per_query=3, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_positives_of_the_same_query_and_given_negatives_are_respected():
    rows = [
        pair_row("red fox", ["the red fox runs"], ["my own negative"], dataset="d", task_type="retrieval"),
        pair_row("red fox", ["a red animal, the fox"], [], dataset="d", task_type="retrieval"),
        pair_row("whale", ["red fox"], [], dataset="d", task_type="retrieval"),
        pair_row("bird", ["birds sing"], [], dataset="d", task_type="retrieval"),
        pair_row("fish", ["fish swim"], [], dataset="d", task_type="retrieval"),
    ]
    table, _ = mine_bm25(to_table(rows, "pairs"), negatives_per_query=2, seed=0)
    first, second = table["negatives"].to_pylist()[:2]
    assert first[0] == "my own negative"
    assert first[1] in {"birds sing", "fish swim"}
    assert set(second) == {"birds sing", "fish swim"}


def test_scores_of_a_teacher_go_when_documents_are_added():
    rows = [
        pair_row(query, [positive], [], dataset="test", task_type="retrieval", teacher_scores=[0.9])
        for query, positive in PAIRS
    ]
    rows[0] = pair_row(
        *(PAIRS[0][0], [PAIRS[0][1]], ["given"]),
        dataset="test",
        task_type="retrieval",
        teacher_scores=[0.9, 0.1],
    )
    table, _ = mine_bm25(to_table(rows, "pairs"), negatives_per_query=1, seed=0)
    scores = dict(zip(table["query"].to_pylist(), table["teacher_scores"].to_pylist(), strict=True))
    assert scores.pop(PAIRS[0][0]) == pytest.approx([0.9, 0.1])
    assert set(scores.values()) == {None}


def test_queries_without_words_are_filled_at_random():
    table, report = mine_bm25(
        pairs(("???", "one thing"), ("!", "another matter")), negatives_per_query=1, seed=0
    )
    assert negatives(table) == {"???": ["another matter"], "!": ["one thing"]}
    assert math.isnan(report.mean_rank)


def test_a_corpus_that_cannot_give_negatives_is_refused():
    with pytest.raises(DataError, match="needs 2 more negatives and the source has 1 other documents"):
        mine_bm25(pairs(("a b", "one thing"), ("c d", "another matter")), negatives_per_query=2, seed=0)
    with pytest.raises(DataError, match="none of the 1 documents has a word"):
        mine_bm25(pairs(("query", "...")), negatives_per_query=1, seed=0)


def test_search_splits_identifiers_and_ranks_best_first():
    scores = next(BM25Search(["def read_file(): pass", "def write_file(): pass", "x"]).scores(["read file"]))
    assert best_documents(scores, 5, excluded=set()).tolist() == [0, 1]
    assert best_documents(scores, 5, excluded={0}).tolist() == [1]
