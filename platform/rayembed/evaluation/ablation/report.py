"""Tables of an ablation: means over seeds, and a paired test of every choice against the reference."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rayembed.common.paths import atomic_write
from rayembed.evaluation.ablation.grid import Cell, Grid, Table, table_choices
from rayembed.evaluation.record import ModelRecord
from rayembed.evaluation.statistics import Comparison, adjusted, paired


def write_tables(grid: Grid, records: Mapping[Cell, ModelRecord], folder: Path) -> None:
    """Write ablation.md and ablation.csv of what has been scored so far; missing cells are named."""
    lines = [f"# Ablation {grid.name}", "", f"{grid.benchmark}, seeds {', '.join(map(str, grid.seeds))}."]
    lines.append(
        "Scores are means over tasks, then over seeds; the spread is the standard deviation over seeds."
    )
    lines.append(
        "Differences and p-values pair the tasks with those of the reference, each a mean over the seeds "
        "that both have; p is Holm-corrected in a table."
    )
    rows: list[dict[str, Any]] = []
    for table in grid.tables:
        found = _rows(grid, table, records)
        rows += found
        lines += ["", f"## {table.name}", ""]
        if table.finding:
            lines += [f"The paper found: {table.finding}", ""]
        lines += _markdown(found)
    atomic_write(folder / "ablation.md", "\n".join(lines) + "\n")
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(folder / "ablation.csv", stream.getvalue())


def _rows(grid: Grid, table: Table, records: Mapping[Cell, ModelRecord]) -> list[dict[str, Any]]:
    choices = table_choices(grid, table)
    tests = [_against_reference(choices[0], choice, grid, records) for choice in choices]
    corrected = iter(adjusted([test.p_value for test in tests if test is not None]))
    rows = []
    for choice, test in zip(choices, tests, strict=True):
        of_seeds = [records[cell] for seed in grid.seeds if (cell := Cell(choice, seed)) in records]
        row: dict[str, Any] = {"table": table.name, "choice": Cell(choice, 0).choice, "seeds": len(of_seeds)}
        if of_seeds:
            by_category = [record.categories() for record in of_seeds]
            row["mean"] = float(np.mean([means["mean"] for means in by_category]))
            row["spread"] = (
                float(np.std([means["mean"] for means in by_category], ddof=1)) if len(of_seeds) > 1 else None
            )
            for category in by_category[0]:
                if category != "mean":
                    row[category] = float(np.mean([means[category] for means in by_category]))
        if test is not None:
            row |= {"difference": test.difference, "low": test.low, "high": test.high, "p": next(corrected)}
        rows.append(row)
    return rows


def _against_reference(
    reference: tuple[tuple[str, str], ...],
    choice: tuple[tuple[str, str], ...],
    grid: Grid,
    records: Mapping[Cell, ModelRecord],
) -> Comparison | None:
    if choice == reference:
        return None
    pairs: dict[str, list[tuple[float, float]]] = {}
    for seed in grid.seeds:
        one, other = records.get(Cell(reference, seed)), records.get(Cell(choice, seed))
        if one is None or other is None:
            continue
        scores = {task.name: task.score for task in other.tasks}
        for task in one.tasks:
            if task.name in scores:
                pairs.setdefault(task.name, []).append((task.score, scores[task.name]))
    # Seeds of one task are no independent samples, so a task counts once.
    means = np.array([np.mean(of_seeds, axis=0) for of_seeds in pairs.values()]).reshape(-1, 2)
    return paired(means[:, 0].tolist(), means[:, 1].tolist())


def _markdown(rows: list[dict[str, Any]]) -> list[str]:
    fixed = ("table", "choice", "seeds", "mean", "spread", "difference", "low", "high", "p")
    categories = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in fixed]
    header = ["choice", "seeds", "mean", *categories, "difference", "p"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        if "mean" not in row:
            cells = [row["choice"], "0", "not run", *[""] * (len(header) - 3)]
        else:
            spread = f" ± {row['spread']:.3f}" if row["spread"] is not None else ""
            difference = (
                f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
                if "difference" in row
                else ""
            )
            cells = [row["choice"], str(row["seeds"]), f"{row['mean']:.4f}{spread}"]
            cells += [f"{row[name]:.3f}" if name in row else "" for name in categories]
            cells += [difference, f"{row['p']:.3f}" if "p" in row else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
