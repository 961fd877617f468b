"""What all benchmarks share: interleaved timing, ratios with their spread, and the report."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Bar:
    """One figure with its goal.

    Attributes:
        name: fixed name of the figure.
        value: what was measured.
        goal: what it should reach.
        better: whether a higher or a lower value is better.
        spread: lowest and highest value of the rounds.
        detail: how it was measured, and what it is made of.
    """

    name: str
    value: float
    goal: float
    better: Literal["higher", "lower"]
    spread: tuple[float, float]
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal


def arguments(description: str) -> argparse.ArgumentParser:
    """Parser with the two options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few and small rounds, to see that it works")
    parser.add_argument("--json", type=Path, help="where to write the report")
    return parser


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleave(contestants: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that is not counted.

    A contestant gets the number of the round, so that each round may bring other work, the same for all. The
    order turns by one place a round, so that none is always first.
    """
    names = list(contestants)
    for work in contestants.values():
        work(rounds)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(partial(contestants[name], turn)))
    return times


def ratio_bar(
    name: str,
    numerator: Sequence[float],
    denominator: Sequence[float],
    *,
    goal: float,
    better: Literal["higher", "lower"] = "higher",
    detail: dict[str, Any],
) -> Bar:
    """Median over the rounds of numerator / denominator, both measured in the same round."""
    ratios = [above / below for above, below in zip(numerator, denominator, strict=True)]
    return Bar(name, statistics.median(ratios), goal, better, (min(ratios), max(ratios)), detail)


def machine() -> dict[str, Any]:
    """Device, number formats and library versions that the figures belong to."""
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capabilities": sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_report(bars: Sequence[Bar], target: Path | None) -> None:
    """Print the bars as a table and write them as JSON where a path is given."""
    width = max([24, *(len(bar.name) + 1 for bar in bars)])
    print(f"{'bar':{width}}{'value':>10}{'goal':>8}  {'spread':20}reached")
    for bar in bars:
        spread = f"{bar.spread[0]:.3g} to {bar.spread[1]:.3g}"
        verdict = "yes" if bar.reached else "no"
        print(f"{bar.name:{width}}{bar.value:>10.3g}{bar.goal:>8.3g}  {spread:20}{verdict}")
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        report = {"bars": [asdict(bar) for bar in bars], "machine": machine()}
        target.write_text(json.dumps(report, indent=2) + "\n")


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].partition(':')[2].strip()}, {len(names)} cores" if names else platform.processor()


class Unwrapped:
    """A bare module where one wrapped by DeepSpeed is expected."""

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, batch: Any) -> Any:
        """Vectors of the batch."""
        return self.module(batch)

    def backward(self, loss: Any) -> None:
        """Add to the gradients."""
        loss.backward()

    def set_gradient_accumulation_boundary(self, boundary: bool) -> None:
        """Nothing to do: gradients of one process add up by themselves."""
