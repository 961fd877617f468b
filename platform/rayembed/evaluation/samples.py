"""What a task's main score is the mean of, for intervals and paired tests over test rows.

    search               scores of the queries
    classification       of each test row, the share of draws of training rows that are right on it
    clustering           scores of its sets of texts, of the older protocol
    correlations, AP     influence of the test rows; such a score is no mean over them

The newer clustering protocol and other scores have none. mteb hands all of these to a hook and forgets them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import mteb
import numpy as np
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClusteringLegacy,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, v_measure_score

_MOST_KEPT = 20_000
_MOST_GROUPS = 1000

Samples = dict[tuple[str, str], dict[str, float]]
Statistic = Callable[[np.ndarray, np.ndarray], float]
"""(what a model says of rows, what is right) -> score."""


def keep_samples(task: mteb.AbsTask) -> tuple[Samples, bool]:
    """Let a task leave what its main score is the mean of in a mapping, by split and subset.

    Also returns whether mteb has to hand predictions over, which it does if it is given a folder for them.
    """
    kept: Samples = {}

    def keep(split: str, subset: str, values: Mapping[str, float]) -> None:
        if values and len(values) <= _MOST_KEPT:
            kept[split, subset] = {name: round(value, 5) for name, value in values.items()}

    if isinstance(task, AbsTaskRetrieval):
        measure = task.metadata.main_score.replace("_at_", "_cut_")
        hook = type(task).task_specific_scores

        def search(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> dict[str, float]:
            found = {query: one[measure] for query, one in scores.items() if measure in one}
            keep(hf_split, hf_subset, found)
            return hook(task, scores, qrels, results, hf_split, hf_subset)

        task.task_specific_scores = search  # type: ignore[method-assign]
        return kept, False
    values_of = _values_of(task)
    if values_of is None:
        return kept, False

    def predicted(predictions: Any, _model: Any, _folder: Any, *, hf_split: str, hf_subset: str) -> None:
        dataset: Any = task.dataset
        rows = dataset.get(hf_subset, dataset)[hf_split]
        values = values_of(predictions, rows)
        keep(hf_split, hf_subset, {str(row): float(value) for row, value in enumerate(values)})

    task._save_task_predictions = predicted  # type: ignore[assignment,method-assign]
    return kept, True


def influences(statistic: Statistic, said: np.ndarray, right: np.ndarray) -> list[float]:
    """Values, one a row, whose mean is the score and whose spread is that of the score over other rows.

    These are the jackknife's pseudo-values, moved to the score (Efron and Tibshirani, An Introduction to the
    Bootstrap, chapter 11): the score with a row left out is below the mean of such scores where that row
    raises it. Above 1,000 rows every 1,000th row, counted from the first, makes a group that stands for one.

    Args:
        statistic: the score.
        said: of a model, one item a row.
        right: what is right, one item a row.

    Returns:
        Nothing where the score has no value without some rows.
    """
    groups = min(len(right), _MOST_GROUPS)
    if groups < 2:
        return []
    left_out = []
    for group in range(groups):
        stays = np.arange(len(right)) % groups != group
        left_out.append(statistic(said[stays], right[stays]))
    score, without = statistic(said, right), np.array(left_out)
    values = score + (groups - 1) * (without.mean() - without)
    return values.tolist() if np.isfinite(values).all() else []


def _values_of(task: mteb.AbsTask) -> Callable[[Any, Any], Sequence[float]] | None:
    """A function of mteb's predictions for the rows of a split; None where the score has no samples."""
    score = task.metadata.main_score
    if isinstance(task, AbsTaskClassification):
        if score != "accuracy" or task.is_cross_validation:
            return None
        return partial(_rights, task.label_column_name)
    if isinstance(task, AbsTaskClusteringLegacy) and score == "v_measure":
        return partial(_sets, task.label_column_name)
    kind, _, measure = score.rpartition("_")
    if isinstance(task, AbsTaskSTS) and measure in _CORRELATIONS:
        return partial(_correlated, _CORRELATIONS[measure], kind)
    if isinstance(task, AbsTaskPairClassification) and measure == "ap":
        return partial(_told_apart, task.label_column_name, kind)
    return None


def _rights(column: str, predictions: Any, rows: Any) -> Sequence[float]:
    labels = np.asarray(rows[column])
    return np.mean([np.asarray(draw) == labels for draw in predictions], axis=0).tolist()


def _sets(column: str, assignments: Any, rows: Any) -> Sequence[float]:
    """mteb clusters no set of one label, which it counts as right."""
    found = iter(assignments)
    return [v_measure_score(labels, next(found)) if len(set(labels)) > 1 else 1.0 for labels in rows[column]]


def _correlated(statistic: Statistic, kind: str, similarities: Any, rows: Any) -> Sequence[float]:
    said = _similarities(similarities, kind or "similarity")
    return influences(statistic, said, np.asarray(rows["score"], dtype=float))


def _told_apart(column: str, kind: str, similarities: Any, rows: Any) -> Sequence[float]:
    """`max` is the best of mteb's similarities, over all rows."""
    labels = rows[column]
    labels = np.asarray(labels[0] if len(labels) == 1 else labels)  # older data sets have a single row
    kinds = _KINDS if kind == "max" else [kind]
    all_said = [_similarities(similarities, one) for one in kinds]
    best = max(all_said, key=lambda said: average_precision_score(labels, said))
    return influences(lambda said, right: average_precision_score(right, said), best, labels)


_KINDS = ("similarity", "cosine", "manhattan", "euclidean", "dot")


def _similarities(found: Mapping[str, Any], kind: str) -> np.ndarray:
    """Of each pair; distances with their sign turned."""
    name = f"{kind}_scores"
    if name == "similarity_scores" and found.get(name) is None:
        name = "cosine_scores"  # as mteb does
    if name in found:
        return np.asarray(found[name], dtype=float)
    return -np.asarray(found[f"{kind}_distances"], dtype=float)


def _pearson(said: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(said, right)[0, 1])


def _spearman(said: np.ndarray, right: np.ndarray) -> float:
    return _pearson(rankdata(said), rankdata(right))


_CORRELATIONS: Mapping[str, Statistic] = {"pearson": _pearson, "spearman": _spearman}
