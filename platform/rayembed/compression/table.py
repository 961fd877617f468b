"""What a study found: one row a cell, paired tests of each choice, as Markdown and JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayembed.common.paths import atomic_write
from rayembed.compression.run import Measured
from rayembed.compression.study import AXES, DENSE, CompressionConfig
from rayembed.evaluation.comparison import Comparison, adjusted, paired
from rayembed.evaluation.results import ModelRecord

_HEADER = (*AXES, "score", "difference", "p", "MB on disk", "MB in memory", "texts/s", "bytes a vector")


def write_table(study: CompressionConfig, measured: Sequence[Measured], folder: Path) -> list[dict[str, Any]]:
    """Write compression.md and compression.json; returns the rows, the reference first."""
    rows, effects = table_rows(measured), effect_rows(measured)
    atomic_write(folder / "compression.md", _markdown(study, rows, effects))
    found = {"study": study.model_dump(mode="json"), "cells": rows, "effects": effects}
    atomic_write(folder / "compression.json", json.dumps(found, indent=1) + "\n")
    return rows


def table_rows(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """One row a cell, compared with the first; p is Holm-corrected over all."""
    rows = []
    for one, test in zip(measured, against_first([one.record for one in measured]), strict=True):
        row: dict[str, Any] = {**one.cell.levels, "score": one.record.categories()["mean"]}
        rows.append(row | (test or {}) | {
            "disk_bytes": one.disk_bytes, "memory_bytes": one.memory_bytes,
            "texts_per_second": one.texts_per_second, "vector_bytes": one.vector_bytes,
            "tasks": _scores(one.record),
        })  # fmt: skip
    return rows


def against_first(records: Sequence[ModelRecord]) -> list[dict[str, float] | None]:
    """How each record differs from the first one, with p Holm-corrected over all; None for the first."""
    reference = _samples(records[0])
    return [None, *_corrected([_paired([(reference, _samples(record))]) for record in records[1:]])]


def effect_rows(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """What one choice changes, all others equal: a task's difference is a mean over the cells that differ so.

    For 2:4 and methods magnitude and SparseGPT, each trained again or not, the effect of SparseGPT over
    magnitude is the mean of two differences for every task. Patterns are told apart, dense cells are not
    counted among methods, and each other choice is compared with the first one.
    """
    by_levels = {tuple(one.cell.levels.items()): _samples(one.record) for one in measured}
    found = []
    for axis in AXES:
        if axis == "pattern":
            continue
        levels = list(dict.fromkeys(one.cell.levels[axis] for one in measured))
        levels = [level for level in levels if level != DENSE]
        # Every method is compared with every other one, whichever comes first.
        others = [(one, other) for position, one in enumerate(levels) for other in levels[position + 1 :]]
        for pattern in dict.fromkeys(one.cell.levels["pattern"] for one in measured):
            for first, second in others:
                pairs = [
                    (scores, by_levels[changed])
                    for levels_of, scores in by_levels.items()
                    if dict(levels_of)["pattern"] == pattern
                    and dict(levels_of)[axis] == first
                    and (changed := tuple((dict(levels_of) | {axis: second}).items())) in by_levels
                ]
                if pairs:
                    found.append(({"axis": axis, "pattern": pattern or DENSE, "from": first, "to": second,
                                   "cells": len(pairs)}, _paired(pairs)))  # fmt: skip
    tests = _corrected([test for _, test in found])
    return [row | (test or {}) for (row, _), test in zip(found, tests, strict=True)]


def _scores(record: ModelRecord) -> dict[str, float]:
    return {task.name: task.score for task in record.tasks}


def _samples(record: ModelRecord) -> dict[str, float]:
    """What tests pair: scores of queries or rows where each task has them, else those of tasks."""
    if all(task.samples for task in record.tasks):
        return {f"{task.name} {name}": score for task in record.tasks for name, score in task.samples.items()}
    return _scores(record)


def _paired(pairs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> Comparison | None:
    """Test over tasks, or queries, each the mean over the pairs: cells are no independent samples."""
    first, second = (
        [float(np.mean([pair[side][task] for pair in pairs])) for task in pairs[0][0]] for side in (0, 1)
    )
    return paired(first, second)


def _corrected(tests: Sequence[Comparison | None]) -> list[dict[str, float] | None]:
    corrected = iter(adjusted([test.p_value for test in tests if test is not None]))
    return [
        {"difference": test.difference, "low": test.low, "high": test.high, "p": next(corrected),
         "detectable": test.detectable}
        if test is not None else None
        for test in tests
    ]  # fmt: skip


def _markdown(
    study: CompressionConfig, rows: Sequence[dict[str, Any]], effects: Sequence[dict[str, Any]]
) -> str:
    lines = [
        f"# Compression study {study.name}",
        "",
        f"Scored on {', '.join(study.tasks) if study.tasks else study.benchmark}; the score is the mean over "
        "tasks. Differences are to the first row, paired by query where each task has queries, else by task, "
        "with a 95 % interval. p is of a paired permutation test, Holm-corrected in each table.",
        "",
        "Bytes on disk are those of the packed weights. The engine expands them, and no kernel here uses "
        "zeros or 8 bits: memory and speed are those of the dense model.",
        "",
        _line(_HEADER),
        "|---" * len(_HEADER) + "|",
    ]
    for row in rows:
        megabytes = (f"{row[key] / 1e6:.1f}" for key in ("disk_bytes", "memory_bytes"))
        cells = (row[axis] for axis in AXES)
        lines.append(_line([*cells, f"{row['score']:.4f}", *_tested(row), *megabytes,
                            f"{row['texts_per_second']:.0f}", str(row["vector_bytes"])]))  # fmt: skip
    header = ("choice", "pattern", "from", "to", "cells", "difference", "p", "seen 8 of 10")
    lines += ["", "## What each choice changes", "", "All other choices equal.", ""]
    lines += [_line(header), "|---" * len(header) + "|"]
    for row in effects:
        seen = f"{row['detectable']:.4f}" if "detectable" in row else ""
        named = (row["axis"], row["pattern"], row["from"], row["to"], str(row["cells"]))
        lines.append(_line([*named, *_tested(row), seen]))
    return "\n".join(lines) + "\n"


def _tested(row: dict[str, Any]) -> tuple[str, str]:
    if "p" not in row:
        return "", ""
    return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})", f"{row['p']:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
