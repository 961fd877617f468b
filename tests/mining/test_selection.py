import numpy as np
import pytest

from rayembed.common.errors import DataError
from rayembed.mining.candidates import Candidates
from rayembed.mining.config import FilterConfig, SourceMining
from rayembed.mining.selection import choose

NAIVE = (FilterConfig(name="naive"),)


def candidates(documents, scores, positive_score=1.0):
    return Candidates(np.array(documents), np.array(scores), np.array([99]), np.array([positive_score]))


def chosen(found, *, wanted=2, taken=(), size=100, seed=0, **settings):
    entry = SourceMining(source="s", **{"negatives_per_query": 2, "fill": "none", **settings})
    return choose(
        found, entry, wanted=wanted, taken=set(taken), size=size, generator=np.random.default_rng(seed)
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
