"""From what one rank measured in a step to the numbers of the whole batch."""

import torch

from rayembed.config import StageConfig
from rayembed.training.distributed import sum_over_ranks
from rayembed.training.metrics import StepMetrics
from rayembed.training.step import StepOutput


def summed(output: StepOutput, tokens: int) -> torch.Tensor:
    """Sums and counts of every measure by source, and tokens, over all ranks; called by all ranks."""
    parts = [*output.sums_S.values(), *output.counts_S.values()]
    return sum_over_ranks(torch.cat([*parts, parts[0].new_tensor([tokens])]))


def step_metrics(
    stage: StageConfig,
    step: int,
    output: StepOutput,
    sums: torch.Tensor,
    *,
    learning_rate: float,
    gradient_norm: float,
    seconds: float,
    phases: dict[str, float],
    memory: int,
    utilization: float,
    padding: float,
) -> StepMetrics:
    """Means of every measure from what `summed` added up."""
    names, width = list(output.sums_S), len(stage.blend)
    *values, tokens = sums.tolist()
    totals = {name: values[index * width :][:width] for index, name in enumerate(names)}
    counts = {name: values[(index + len(names)) * width :][:width] for index, name in enumerate(names)}
    sources = {}
    for index, entry in enumerate(stage.blend):
        if counts["loss"][index]:
            means = {name: totals[name][index] / counts[name][index] for name in names if counts[name][index]}
            sources[entry.source] = {**means, "rows": int(counts["loss"][index])}
    return StepMetrics(
        step=step,
        loss=sum(totals["loss"]) / sum(counts["loss"]),
        learning_rate=learning_rate,
        gradient_norm=gradient_norm,
        tokens=int(tokens),
        seconds=seconds,
        phases=phases,
        memory=memory,
        utilization=utilization,
        padding=padding,
        uniformity=None if output.uniformity is None else float(output.uniformity),
        sources=sources,
    )
