"""Whole training runs on Ray for `training.py`, and the same steps in a bare loop of one process."""

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import ray
import torch
from harness import Bar, Unwrapped, ratio_bar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayembed.common.device import resolve_device
from rayembed.common.paths import resolve
from rayembed.common.ray_cluster import processor_settings
from rayembed.config.run import RunConfig
from rayembed.data.stream import StreamSpec, local_batches
from rayembed.model.base_model import prepare_base_model
from rayembed.model.precision import resolve_precision
from rayembed.training.model import ModelSpec, prepare_for_stage
from rayembed.training.prepare import resolve_data
from rayembed.training.resources import StepTimer
from rayembed.training.run import train
from rayembed.training.step import StepOutput, contrastive_loss, encode_and_backward
from rayembed.training.trainer import learning_rate_factor

WARM_UP = 4  # steps that are not counted
Measure = Callable[[], list[float]]


@dataclass(frozen=True)
class Runs:
    """One recipe, run on Ray or in a bare loop; both give the wall times of the steps after the warm-up."""

    config: RunConfig
    base: Path
    spec: StreamSpec

    @classmethod
    def of(cls, config: RunConfig, folder: Path) -> "Runs":
        """Prepare the data, which is not measured."""
        base = prepare_base_model(
            config.base_model, resolve(config.models_directory), layers=config.base_layers
        )
        return cls(config, Path(base), resolve_data(config)[0].prepare(folder / "plan", str(base)))

    def on_ray(self, workers: int, threads: int) -> list[float]:
        """Ray Train, Ray Data and DeepSpeed: the real run, on a Ray of its own."""
        # Half a CPU each, so that two workers and their data streams find room on two cores.
        update = {"workers": workers, "threads_per_worker": threads, "cpus_per_worker": 0.5}
        training = self.config.training.model_copy(
            update=update | {"checkpoint_every": self.config.stages[0].steps}
        )
        with tempfile.TemporaryDirectory() as output:
            config = self.config.model_copy(update={"training": training, "output": output})
            try:
                train(config)
            finally:
                ray.shutdown()
            return _step_seconds(Path(output) / config.name / "tensorboard")

    def bare(self, threads: int, copies: int = 1) -> list[float]:
        """The same steps without Ray and DeepSpeed; of several copies at once, those of the slowest."""
        with (
            mock.patch.dict(os.environ, processor_settings()),  # as the workers on Ray have it
            multiprocessing.get_context("spawn").Pool(copies) as pool,
        ):
            work = (self.config, self.base, self.spec, threads)
            return max(pool.starmap(_bare_loop, [work] * copies, chunksize=1), key=sum)


def overhead_bar(runs: Runs, rounds: int, threads: int) -> Bar:
    """`train_overhead`."""
    times = _alternate({"ray": partial(runs.on_ray, 1, threads), "bare": partial(runs.bare, threads)}, rounds)
    detail = _setting(runs, threads) | {"seconds": times}
    detail |= {f"median_step_{name}": _median_step(found) for name, found in times.items()}
    return ratio_bar(
        "train_overhead", _sums(times["ray"]), _sums(times["bare"]), goal=1.03, better="lower", detail=detail
    )


def scaling_bar(runs: Runs, rounds: int) -> Bar:
    """`train_scaling`."""
    times = _alternate(
        {
            "one": partial(runs.on_ray, 1, 1),
            "two": partial(runs.on_ray, 2, 1),
            "bare": partial(runs.bare, 1),
            "bare_twice": partial(runs.bare, 1, 2),
        },
        rounds,
    )
    alone, beside = _sums(times["bare"]), _sums(times["bare_twice"])
    machine = [one / two for one, two in zip(alone, beside, strict=True)]
    detail = _setting(runs, 1) | {
        "machine_limit": statistics.median(machine),  # two bare loops at once that never talk
        "seconds": times,
    }
    halves = [seconds / 2 for seconds in _sums(times["one"])]
    return ratio_bar("train_scaling", halves, _sums(times["two"]), goal=0.9, detail=detail)


def _alternate(contestants: dict[str, Measure], rounds: int) -> dict[str, list[list[float]]]:
    """Step times of each contestant in each round; the order turns by one place a round."""
    names = list(contestants)
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append([round(seconds, 4) for seconds in contestants[name]()])
            print(f"round {turn + 1} of {rounds}, {name}: {sum(times[name][-1]):.1f} s", flush=True)
    return times


def _sums(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [sum(steps) for steps in rounds]


def _median_step(rounds: Sequence[Sequence[float]]) -> float:
    return statistics.median(seconds for steps in rounds for seconds in steps)


def _setting(runs: Runs, threads: int) -> dict[str, Any]:
    [stage] = runs.config.stages
    return {
        "layers": runs.config.base_layers,
        "rows_of_a_batch": stage.batch_size,
        "steps": stage.steps - WARM_UP,
        "threads_of_a_worker": threads,
    }


def _step_seconds(events: Path) -> list[float]:
    """Wall times from one step's record to the next, so that writing the metrics counts too.

    `seconds` in metrics.jsonl ends before its own line is written.
    """
    accumulator = EventAccumulator(str(events), size_guidance={"scalars": 0})
    accumulator.Reload()
    return _differences([event.wall_time for event in accumulator.Scalars("train/loss")])


def _bare_loop(config: RunConfig, base: Path, spec: StreamSpec, threads: int) -> list[float]:
    """Collate, encode, go back, clip and move, in this process and one after the other."""
    torch.set_num_threads(threads)
    [stage] = config.stages
    device = resolve_device()
    dtype = resolve_precision(config.training.precision, device)
    model = ModelSpec.of(config, base).build(dtype).to(device, dtype)  # all of it, as DeepSpeed does
    prepare_for_stage(model, stage, config.training)
    engine = Unwrapped(model.train())
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True
    )
    done = []
    for batch in local_batches(spec, start=0, stop=stage.steps):
        batch, timer = batch.to(device), StepTimer(device)

        def loss_of(vectors_ND: torch.Tensor, batch=batch, timer=timer) -> StepOutput:
            return contrastive_loss(vectors_ND, batch, stage, timer)

        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * learning_rate_factor(batch.step, stage)
        output = encode_and_backward(engine, batch.packed, loss_of, timer, config.training.tokens_per_chunk)
        torch.nn.utils.clip_grad_norm_(weights, stage.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        output.loss.item()
        done.append(time.time())
    return _differences(done)


def _differences(moments: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(moments)][WARM_UP - 1 :]
