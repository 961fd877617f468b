"""`rayembed data plan`: whole batches of a recipe's plan as a person would read them.

Nothing is trained and nothing tokenised; sources are built and prepared as training would.
"""

import shutil
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rayembed.common.errors import ConfigError
from rayembed.config.blend import SourceConfig
from rayembed.config.run import RunConfig
from rayembed.config.stage import StageConfig
from rayembed.data.choose import ChosenRow, DocumentKey
from rayembed.data.plan_store import PlanReader
from rayembed.data.prepared import PreparedRows
from rayembed.data.stream import StreamSpec
from rayembed.training.prepare import resolve_data

_LINES_OF_A_TEXT = 2


def show_plan(
    config: RunConfig, *, show: int, step: int = 0, stage_name: str | None = None, full: bool = False
) -> Iterator[str]:
    """Lines to print: the shares of every stage, then `show` batches of it from `step` on.

    Args:
        config: the run.
        show: batches to print of every stage.
        step: first of them.
        stage_name: only this stage; None: all.
        full: print whole texts instead of their beginnings.

    Raises:
        ConfigError: there is no such stage or step.
        DataError: a source cannot be prepared or planned.
    """
    data = resolve_data(config)
    names = [stage.name for stage in config.stages]
    if stage_name is not None and stage_name not in names:
        raise ConfigError(f"there is no stage {stage_name!r}; the stages are {', '.join(names)}")
    with tempfile.TemporaryDirectory(prefix="rayembed-plan-") as folder:
        for index, stage in enumerate(config.stages):
            if stage_name in (None, stage.name):
                if step >= stage.steps:
                    raise ConfigError(f"stage {stage.name} has {stage.steps} steps, there is no step {step}")
                spec = data[index].prepare(Path(folder) / stage.name, tokenizer="")
                yield from _stage(stage, spec, range(step, min(step + show, stage.steps)), full)


def _stage(stage: StageConfig, spec: StreamSpec, steps: range, full: bool) -> Iterator[str]:
    width = min(max(shutil.get_terminal_size((100, 40)).columns, 80), 120)
    sources = [PreparedRows.open(path) for path in spec.sources]
    chooser = spec.chooser()
    plan = PlanReader(spec.plan)
    yield "=" * width
    yield f"stage {stage.name}: {stage.steps} steps of {stage.batch_size} rows, {_batching(stage)}"
    yield from _shares(stage, sources, plan)
    for step in steps:
        batch = plan.read(step)
        rows = chooser.choose(batch)
        documents = _documents(rows)
        yield ""
        yield f"--- stage {stage.name}, step {step} of {stage.steps} ".ljust(width, "-")
        yield from _competition(stage.blend, rows, len(documents))
        for number, (row, place) in enumerate(zip(rows, batch.rows.tolist(), strict=True), start=1):
            yield ""
            heading = f"{number:>4}  {stage.blend[row.source].source}, row {place}"
            yield f"{heading}  (against {_opponents(row, documents, stage.blend)})"
            yield from _row(row, spec.contract.prefix(row.instruction), width, full)


def _batching(stage: StageConfig) -> str:
    parts = f" in sub-batches of {stage.sub_batch_size}" if stage.sub_batch_size else ""
    return f"{stage.batching}{parts}"


def _shares(stage: StageConfig, sources: Sequence[PreparedRows], plan: PlanReader) -> Iterator[str]:
    """What the whole plan takes from every source."""
    taken = np.zeros(len(sources), dtype=int)
    for step in range(plan.steps):
        taken += np.bincount(plan.read(step).sources, minlength=len(sources))
    line = "  {:<28}{:>12}{:>10}{:>8}{:>9}  {}"
    yield line.format("SOURCE", "ROWS", "TAKEN", "SHARE", "EPOCHS", "NEGATIVES")
    for index, (entry, source) in enumerate(zip(stage.blend, sources, strict=True)):
        rows = min(len(source), entry.cap or len(source))
        share = taken[index] / taken.sum()
        epochs = taken[index] / rows
        yield line.format(
            entry.source, rows, taken[index], f"{share:.1%}", f"{epochs:.2f}", _negatives_of(entry)
        )


def _negatives_of(entry: SourceConfig) -> str:
    own = f"{entry.negatives_per_query} of its own"
    if not entry.in_batch_negatives:
        return own
    return f"in-batch and {own}" if entry.negatives_per_query else "in-batch"


def _competition(blend: Sequence[SourceConfig], rows: Sequence[ChosenRow], documents: int) -> Iterator[str]:
    """Who competes with whom in a batch, in words."""
    counts = Counter(row.source for row in rows)
    yield "rows: " + ", ".join(f"{count} {blend[source].source}" for source, count in counts.items())
    with_others = [blend[source].source for source in counts if blend[source].in_batch_negatives]
    alone = [blend[source].source for source in counts if not blend[source].in_batch_negatives]
    if with_others:
        yield f"against all {documents} documents of the batch but its own answers: {', '.join(with_others)}"
    if alone:
        yield f"against its own negatives only: {', '.join(alone)}"


def _opponents(row: ChosenRow, documents: set[DocumentKey], blend: Sequence[SourceConfig]) -> str:
    if not blend[row.source].in_batch_negatives:
        return f"its {len(row.negatives)} negatives"
    positives = {identifier for identifier, _ in row.positives}
    competing = sum(identifier not in positives for identifier, _ in documents)
    left_out = len(documents) - competing - 1
    note = f", {left_out} other answers left out" if left_out else ""
    return f"{competing} documents, {len(row.negatives)} its own{note}"


def _documents(rows: Sequence[ChosenRow]) -> set[DocumentKey]:
    return {key for row in rows for key in (row.target, *row.negatives)}


def _row(row: ChosenRow, prefix: str, width: int, full: bool) -> Iterator[str]:
    symmetric = bool(row.target[1])
    yield from _text("query", prefix + row.query, width, full)
    for label, key in (("positive", row.target), *(("negative", key) for key in row.negatives)):
        yield from _text(label, (prefix if symmetric else "") + row.texts[key], width, full)


def _text(label: str, text: str, width: int, full: bool) -> Iterator[str]:
    """A text as lines behind its label; blank space is folded and a long text is cut unless wanted full."""
    wrapped = textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=f"      {label:<10}",
        subsequent_indent=" " * 16,
        max_lines=None if full else _LINES_OF_A_TEXT,
        placeholder=" ...",
    )
    yield from wrapped or [f"      {label:<10}"]
