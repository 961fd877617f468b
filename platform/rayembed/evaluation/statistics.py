"""Confidence intervals and paired tests; the methods are scipy's.

Samples are what a score is the mean of: queries of a search task, draws of a classification or clustering
task, or the tasks of a benchmark.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_SEED = 0
_RESAMPLES = 2000
_LEAST = 3


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two models on the same samples.

    Attributes:
        difference: mean of second minus first.
        low, high: 95 % bootstrap interval of the difference.
        p_value: two-sided paired permutation test of the mean difference.
        samples: how many pairs.
    """

    difference: float
    low: float
    high: float
    p_value: float
    samples: int


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean; None for fewer than three values."""
    if len(values) < _LEAST:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def paired(first: Sequence[float], second: Sequence[float]) -> Comparison | None:
    """Compare samples of equal meaning and order; None for fewer than three pairs."""
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    bounds = interval(differences.tolist())
    if bounds is None:
        return None
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(_SEED),
    )
    return Comparison(float(differences.mean()), *bounds, float(test.pvalue), len(differences))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for that many tests at once, in the order given."""
    order = np.argsort(p_values, kind="stable")
    result = np.empty(len(p_values))
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        result[position] = largest
    return result.tolist()
