"""Filters that tell hard negatives from documents that answer the query after all.

A filter is a function of a query's candidates and a line in `FILTERS`. The five are those that NV-Retriever
(arXiv 2407.15831) compares; `percentage` did best there and is the default.

Shapes: C candidates of one query, best first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from rayembed.common.settings import Frozen

FilterFunction = Callable[[np.ndarray, float, float], np.ndarray]
"""(scores [C], score of the query's best positive, value of the filter) -> boolean [C], True to keep."""


@dataclass(frozen=True)
class Filter:
    """A filter and what its value means; a default of None marks a filter without a value."""

    keep: FilterFunction
    default: float | None
    description: str


def naive(scores: np.ndarray, positive_score: float, value: float) -> np.ndarray:
    """Keep every candidate."""
    return np.ones(len(scores), dtype=bool)


def shifted_rank(scores: np.ndarray, positive_score: float, value: float) -> np.ndarray:
    """Leave out the first `value` candidates, which are the likeliest to be relevant."""
    return np.arange(len(scores)) >= value


def absolute(scores: np.ndarray, positive_score: float, value: float) -> np.ndarray:
    """Keep candidates that score below `value`."""
    return scores < value


def margin(scores: np.ndarray, positive_score: float, value: float) -> np.ndarray:
    """Keep candidates that score more than `value` below the positive."""
    return scores < positive_score - value


def below_positive_share(scores: np.ndarray, positive_score: float, share: float) -> np.ndarray:
    """Keep candidates that score below `share` of the positive's score.

    A candidate that scores as high as the positive is likely to be relevant too. A positive that scores zero
    or less says nothing about what is relevant, so that no candidate is kept. This is "TopK-PercPos", for
    which NV-Retriever recommends a share of 0.95.

    Args:
        scores: [C] similarity of the query to each candidate.
        positive_score: similarity of the query to its positive.
        share: share of the positive's score, in (0, 1].

    Returns:
        [C] boolean.
    """
    if positive_score <= 0:
        return np.zeros(len(scores), dtype=bool)
    return scores < share * positive_score


FILTERS: Mapping[str, Filter] = {
    "naive": Filter(naive, None, "every candidate"),
    "shifted-rank": Filter(shifted_rank, 10, "candidates after the first N"),
    "absolute": Filter(absolute, 0.7, "candidates that score below the value"),
    "margin": Filter(margin, 0.05, "candidates at least the value below the positive"),
    "percentage": Filter(below_positive_share, 0.95, "candidates below this share of the positive's score"),
}


class FilterConfig(Frozen):
    """A filter of the candidates by their scores."""

    name: str = Field(description="one of naive, shifted-rank, absolute, margin, percentage")
    value: float | None = Field(None, description="None: the filter's default")

    @model_validator(mode="after")
    def _check(self) -> "FilterConfig":
        if self.name not in FILTERS:
            raise ValueError(f"there is no filter {self.name!r}; choose one of {', '.join(FILTERS)}")
        if self.value is None:
            return self
        if FILTERS[self.name].default is None:
            raise ValueError(f"filter {self.name} takes no value; remove {self.value}")
        if self.value < 0:
            raise ValueError(f"filter {self.name}: value {self.value} must not be negative")
        if self.name == "percentage" and not 0 < self.value <= 1:
            raise ValueError(f"filter percentage: value {self.value} must be a share above 0, at most 1")
        return self


def passes(scores: np.ndarray, positive_score: float, filters: Sequence[FilterConfig]) -> np.ndarray:
    """Mask [C] of the candidates that pass all filters."""
    keep = np.ones(len(scores), dtype=bool)
    for chosen in filters:
        rule = FILTERS[chosen.name]
        value = rule.default if chosen.value is None else chosen.value
        keep &= rule.keep(scores, positive_score, 0.0 if value is None else value)
    return keep
