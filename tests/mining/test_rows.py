import math

import numpy as np
import pytest

from rayembed.common.errors import DataError
from rayembed.mining.candidates import Candidates
from rayembed.mining.config import SourceMining
from rayembed.mining.filters import FilterConfig
from rayembed.mining.rows import choose, found_back, mine_bm25
from rayembed.records.schema import document_id, pair_row, to_table

NAIVE = (FilterConfig(name="naive"),)


def candidates(documents, scores, positive_score=1.0, calibrated=True):
    known = np.array([99]), np.array([positive_score])
    return Candidates(np.array(documents), np.array(scores), *known, calibrated)


def chosen(found, *, wanted=2, taken=(), size=100, seed=0, own=(), among=None, **settings):
    entry = SourceMining(source="s", **{"negatives_per_query": 2, "fill": "none", **settings})
    generator = np.random.default_rng(seed)
    return choose(
        found, entry, wanted=wanted, taken=set(taken), size=size, generator=generator, own=own, among=among
    )


def test_the_best_that_pass_are_taken_with_their_ranks():
    choice = chosen([candidates([7, 8, 9, 10], [0.99, 0.96, 0.9, 0.8])])
    assert (choice.mined, choice.ranks, choice.rejected, choice.candidates) == ([9, 10], [3, 4], 2, 4)


def test_taken_documents_are_never_chosen():
    assert chosen([candidates([7, 8, 9], [0.9, 0.8, 0.7])], taken=[7]).mined == [8, 9]


def test_teachers_take_turns_and_a_document_comes_once():
    first = candidates([1, 2, 3], [0.9, 0.8, 0.7])
    second = candidates([1, 5, 2], [0.6, 0.5, 0.4])
    assert chosen([first, second], wanted=4).mined == [1, 2, 5, 3]


def test_a_veto_of_one_teacher_counts_for_all():
    first = candidates([1, 2, 3], [0.99, 0.8, 0.7])
    second = candidates([1, 5, 2], [0.6, 0.5, 0.4])
    assert chosen([first, second]).mined == [2, 5]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"calibrated": False}, [1, 2]),  # sums of BM25 say nothing about documents that others found
        ({"positive_score": 0.1}, [1, 2]),  # its positive is not among its own first ten
        ({"positive_score": -0.1}, [1, 2]),
        ({}, [3, 4]),
    ],
)
def test_only_a_calibrated_teacher_that_finds_the_positive_may_veto(second, expected):
    first = candidates(list(range(1, 11)), np.linspace(0.9, 0.2, 10))
    other = candidates([1, 2, *range(20, 28)], np.linspace(0.99, 0.95, 10), **second)
    assert chosen([first, other], top_k=10).mined == expected


@pytest.mark.parametrize(
    ("positive_score", "calibrated", "within", "found"),
    [
        (0.85, True, 2, True),
        (0.85, True, 1, False),
        (0.9, True, 1, True),  # of equal scores none is before the other
        (-0.1, True, 4, True),
        (0.0, False, 4, False),  # shares no word with the query
        (0.0, False, None, True),
    ],
)
def test_a_round_trip_finds_the_positive_among_so_many(positive_score, calibrated, within, found):
    one = candidates([7, 8, 9], [0.9, 0.8, 0.7], positive_score, calibrated)
    assert found_back([one], [99], within) is found
    assert found_back([candidates([], [], 0.0, calibrated=False), one], [99], within) is found


@pytest.mark.parametrize(
    ("anchor", "filters", "expected"),
    [
        ("own", [{"name": "percentage", "value": 0.95}], [3]),  # below 0.95 x 0.6
        ("best", [{"name": "percentage", "value": 0.95}], [1, 2, 3]),  # below 0.95 x 0.9
        ("min", [{"name": "percentage", "value": 0.95}], []),  # below 0.95 x 0.2
        ("own", [{"name": "margin", "value": 0.05}], [3]),  # below 0.6 - 0.05
    ],
)
def test_filters_compare_with_the_positive_that_the_recipe_names(anchor, filters, expected):
    found = Candidates(
        np.array([1, 2, 3]), np.array([0.8, 0.58, 0.5]), np.array([7, 8, 9]), np.array([0.9, 0.6, 0.2])
    )
    assert chosen([found], wanted=3, own=[8], anchor=anchor, filters=filters).mined == expected


def test_a_margin_holds_below_negative_cosines():
    found = [candidates([1, 2], [-0.25, -0.4], -0.2)]
    assert chosen(found, filters=[{"name": "margin", "value": 0.1}]).mined == [2]


def test_what_was_not_looked_at_becomes_no_negative():
    found = [candidates([1, 2, 3, 4], [0.8, 0.7, 0.6, 0.5])]
    assert chosen(found, wanted=3, among={2, 4, 9}).mined == [2, 4]


def test_sampling_draws_among_the_best_only_and_differs_with_the_seed():
    found = [candidates(list(range(20)), np.linspace(0.9, 0.1, 20))]
    draws = {tuple(chosen(found, sample_from=5, seed=seed).mined) for seed in range(40)}
    assert len(draws) > 5
    assert {document for draw in draws for document in draw} == {0, 1, 2, 3, 4}
    assert all(draw == tuple(sorted(draw)) for draw in draws)


def test_a_short_row_is_filled_with_documents_that_were_no_candidates_or_left_short():
    found = [candidates([0, 1, 2], [0.99, 0.98, 0.5])]
    filled = chosen(found, wanted=4, taken=[3], size=7, fill="random")
    assert filled.mined == [2]
    assert sorted(filled.fills) == [4, 5, 6]
    assert chosen(found, wanted=4).fills == []
    with pytest.raises(DataError, match="needs 3 more negatives and the source has 2 other documents"):
        chosen(found, wanted=4, taken=[3], size=6, fill="random")


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="sample_from 3 is below negatives_per_query 4"):
        SourceMining(source="s", negatives_per_query=4, sample_from=3)


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
