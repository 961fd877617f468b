"""metrics.jsonl, the training log with one JSON object a step, as curves."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class StageSpan:
    """A training stage and the first and last step of it."""

    name: str
    first: float
    last: float


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of `path` in the order of training.

    A step that a resumed run did again counts once, as it was last logged. A torn last line is left out.
    """
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            logger.warning("%s line %d is not complete and is left out", path, number)
            continue
        key = record["stage"], record["step"]
        records.pop(key, None)
        records[key] = record
    return list(records.values())


def stage_spans(records: Iterable[dict[str, Any]]) -> list[StageSpan]:
    """Stages in the order of training."""
    steps: dict[str, list[int]] = {}
    for record in records:
        steps.setdefault(record["stage"], []).append(record["step"])
    return [StageSpan(name, min(numbers), max(numbers)) for name, numbers in steps.items()]


def curve(records: Iterable[dict[str, Any]], name: str) -> Points:
    """(step, value) of one field."""
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def source_curves(records: Sequence[dict[str, Any]], name: str) -> dict[str, Points]:
    """(step, value) of one field of every source."""
    curves: dict[str, Points] = {}
    for record in records:
        for source, values in record.get("sources", {}).items():
            if values.get(name) is not None:
                curves.setdefault(source, []).append((record["step"], values[name]))
    return curves


def smoothed(points: Points, weight: float = 0.85) -> Points:
    """Exponential moving average whose start is corrected for its missing past."""
    average = correction = 0.0
    result = []
    for step, value in points:
        average = weight * average + (1 - weight) * value
        correction = weight * correction + (1 - weight)
        result.append((step, average / correction))
    return result


def by_stage(
    points: Points, spans: Iterable[StageSpan], transform: Callable[[Points], Points]
) -> list[Points]:
    """`transform` applied to the points of each stage apart, since stages have losses of different scale."""
    return [transform([point for point in points if span.first <= point[0] <= span.last]) for span in spans]
