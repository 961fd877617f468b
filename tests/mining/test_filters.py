import numpy as np
import pytest

from rayembed.mining.config import FilterConfig
from rayembed.mining.filters import below_positive_share, passes

SCORES = np.array([0.90, 0.76, 0.75, 0.70, 0.50, -0.10], dtype=np.float32)
POSITIVE = 0.80


def kept(name, value=None, scores=SCORES, positive=POSITIVE):
    return np.flatnonzero(passes(scores, positive, [FilterConfig(name=name, value=value)])).tolist()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("naive", None, [0, 1, 2, 3, 4, 5]),
        ("shifted-rank", 2, [2, 3, 4, 5]),
        ("shifted-rank", None, []),  # ten by default, and there are six
        ("absolute", None, [4, 5]),  # below 0.7
        ("absolute", 0.755, [2, 3, 4, 5]),
        ("margin", None, [3, 4, 5]),  # below 0.75
        ("margin", 0.2, [4, 5]),
        ("percentage", None, [2, 3, 4, 5]),  # below 0.95 * 0.80 = 0.76
        ("percentage", 0.9, [3, 4, 5]),  # below 0.72
    ],
)
def test_a_filter_keeps_what_its_rule_says(name, value, expected):
    scores = np.array([0.90, 0.761, 0.7501, 0.7001, 0.50, -0.10])
    assert kept(name, value, scores) == expected


def test_a_candidate_at_the_bound_is_rejected():
    assert kept("percentage", 0.5, np.array([5.0, 4.999]), 10.0) == [1]
    assert kept("margin", 2.0, np.array([8.0, 7.999]), 10.0) == [1]
    assert kept("absolute", 0.5, np.array([0.5, 0.499])) == [1]


def test_a_positive_that_says_nothing_keeps_nothing():
    assert not below_positive_share(np.array([-0.2, -0.5, 0.0]), -0.1, 0.95).any()
    assert not below_positive_share(np.array([0.0, -0.5]), 0.0, 0.95).any()


def test_all_filters_must_pass():
    both = [FilterConfig(name="shifted-rank", value=1), FilterConfig(name="absolute", value=0.755)]
    assert np.flatnonzero(passes(SCORES, POSITIVE, both)).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "percent"}, "there is no filter 'percent'; choose one of naive, shifted-rank"),
        ({"name": "naive", "value": 1}, "filter naive takes no value"),
        ({"name": "margin", "value": -1}, "must not be negative"),
        ({"name": "percentage", "value": 1.5}, "must be a share"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FilterConfig(**settings)


def test_filter_keeps_what_scores_clearly_below_the_positive():
    keep = below_positive_share(np.array([12.0, 9.6, 9.5, 9.4, 0.0]), positive_score=10.0, share=0.95)
    assert keep.tolist() == [False, False, False, True, True]
