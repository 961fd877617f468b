"""From candidates with scores to the negatives of a query: filter, combine teachers, sample.

Shapes: C candidates of one query by one teacher, best first.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np

from rayembed.common.errors import DataError
from rayembed.mining.candidates import Candidates
from rayembed.mining.config import FilterConfig, SourceMining
from rayembed.mining.filters import FILTERS


@dataclass(frozen=True)
class Choice:
    """What was chosen for a query.

    Attributes:
        mined: hard negatives, best first, as positions in the collection.
        ranks: rank of each among the candidates of the teacher that brought it in, the best being 1.
        fills: random documents that complete them.
        candidates: distinct documents that the teachers found.
        rejected: those that a filter rejected.
    """

    mined: list[int]
    ranks: list[int]
    fills: list[int]
    candidates: int
    rejected: int


def passes(scores: np.ndarray, positive_score: float, filters: Sequence[FilterConfig]) -> np.ndarray:
    """Mask [C] of the candidates that pass all filters."""
    keep = np.ones(len(scores), dtype=bool)
    for chosen in filters:
        rule = FILTERS[chosen.name]
        value = rule.default if chosen.value is None else chosen.value
        keep &= rule.keep(scores, positive_score, 0.0 if value is None else value)
    return keep


def choose(
    found: Sequence[Candidates],
    settings: SourceMining,
    *,
    wanted: int,
    taken: Set[int],
    size: int,
    generator: np.random.Generator,
) -> Choice:
    """Choose the negatives of one row.

    Teachers take turns: the best of each, then the second best of each, every document once. A
    document that one teacher's filters reject is rejected for all of them.

    Args:
        found: candidates of the row's query, one item a teacher.
        settings: filters, sampling and fill.
        wanted: how many negatives to choose.
        taken: documents that must not be chosen: the query's excluded ones and the row's own.
        size: number of documents in the collection.
        generator: decides what is sampled and filled.

    Raises:
        DataError: the row must be completed at random and the collection is too small.
    """
    masks = [passes(one.scores, best_positive(one), settings.filters) for one in found]
    all_candidates = set(chain.from_iterable(one.documents.tolist() for one in found))
    rejected = {
        document for one, keep in zip(found, masks, strict=True) for document in one.documents[~keep].tolist()
    }
    kept_lists = [
        [
            (rank, document)
            for rank, document in enumerate(one.documents.tolist(), start=1)
            if keep[rank - 1] and document not in taken and document not in rejected
        ]
        for one, keep in zip(found, masks, strict=True)
    ]
    ranked = _in_turns(kept_lists)
    if settings.sample_from is not None and len(ranked) > wanted:
        pool = ranked[: settings.sample_from]
        drawn = generator.choice(len(pool), size=min(wanted, len(pool)), replace=False)
        ranked = [pool[position] for position in sorted(drawn.tolist())]
    mined = [document for _, document in ranked[:wanted]]
    fills = []
    if settings.fill == "random" and len(mined) < wanted:
        fills = random_documents(size, wanted - len(mined), taken | all_candidates, generator)
    return Choice(mined, [rank for rank, _ in ranked[:wanted]], fills, len(all_candidates), len(rejected))


def best_positive(candidates: Candidates) -> float:
    """Score of the query's best positive."""
    return float(candidates.positive_scores.max(initial=0.0))


def random_documents(size: int, count: int, excluded: Set[int], generator: np.random.Generator) -> list[int]:
    """Draw `count` different positions below `size` that are not excluded.

    Raises:
        DataError: there are not so many.
    """
    if size - len(excluded) < count:
        raise DataError(
            f"a row needs {count} more negatives and the source has {size - len(excluded)} other documents; "
            "lower negatives_per_query or add data"
        )
    picks: list[int] = []
    while len(picks) < count:
        pick = int(generator.integers(size))
        if pick not in excluded and pick not in picks:
            picks.append(pick)
    return picks


def _in_turns(lists: Sequence[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """(rank, document) of all lists in turns, every document the first time it comes."""
    ranked: dict[int, int] = {}
    for turn in zip_longest(*lists):
        for item in turn:
            if item is not None:
                ranked.setdefault(item[1], item[0])
    return [(rank, document) for document, rank in ranked.items()]
