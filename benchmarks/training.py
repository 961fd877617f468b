"""Training steps against sentence-transformers' losses, and whole runs against bare loops.

python benchmarks/training.py [--quick] [--only BAR ...] [--layers N] [--pool DOCUMENTS] --json OUT

The model is the first layers of SmolLM2-135M without causal mask, with the quickstart's LoRA adapters and
mean pooling, in bf16. sentence-transformers gets the same weights, adapters, rows, batches, prompts, threads,
temperature and clipping, in a bare loop without its Trainer and with the setting of its loss that is fastest
in a trial: plain, or cached with a mini-batch of rows or of tokens. Tokenising counts on both sides, though a
real run of this platform does it elsewhere. Both are first trained in fp32 on batches without repeated
documents, where their losses are the same quantity, and must agree; otherwise the program ends with an error.

train_natural      rows per second on pairs of docstrings with code (and a BM25 negative) and of words with
                   glosses, a source a batch as the peer needs it, no document twice in a batch
train_large_batch  512 queries with 7 negatives each from a pool of documents that the rows share, gradients
                   cached on both sides. The peer encodes a document as often as it is named, and counts it
                   as often in the loss, so here losses agree only in the trial without repeats. The ratio
                   grows with the share of repeats, which `detail` tells; --pool 0 measures without any
train_overhead     wall time of steps of the real run (Ray Train, Ray Data, DeepSpeed, metrics) over that of
                   a bare loop that collates, steps and moves with torch's AdamW; the quickstart's first stage
train_scaling      half the speed of two workers of a thread each over one; `machine_limit` of the detail is
                   what two bare loops that never talk reach on this machine
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import torch
from harness import Bar, arguments, interleave, ratio_bar, write_report
from inputs import quickstart
from peers.mnrl import SETTINGS, Peer
from training_runs import WARM_UP, Runs, overhead_bar, scaling_bar
from training_steps import Batch, Ours, distinct_batches, plain, pooled_batches

from rayembed.common.paths import resolve
from rayembed.config.run import RunConfig
from rayembed.data.prepared import PreparedRows
from rayembed.model.base_model import prepare_base_model, save_untrained
from rayembed.training.prepare import resolve_data

TOLERANCE = 1e-3  # largest relative difference of two losses in fp32
LEARNING_RATE = 1e-3
NEGATIVES = 7  # of a query of the large batch
TOKENS_PER_CHUNK = 4096
TRIAL_ROWS, TRIAL_BATCHES, TRIAL_TURNS = 72, 6, 2  # to find the peer's fastest setting
CHUNKED = tuple(name for name in SETTINGS if name != "plain")


class Comparison:
    """Ours and the peer on the same batches."""

    def __init__(self, config: RunConfig, folder: Path):
        self._config = config
        self._base = Path(
            prepare_base_model(config.base_model, resolve(config.models_directory), layers=config.base_layers)
        )
        self._checkpoint = folder / "checkpoint"
        save_untrained(self._base, self._checkpoint, config.contract)

    def pair(self, batches: Sequence[Batch], dtype: torch.dtype) -> tuple[Ours, Peer]:
        """Both with the same weights."""
        ours = Ours(self._config, self._base, batches, dtype)
        [stage] = self._config.stages
        assert self._config.lora is not None
        peer = Peer(
            self._checkpoint,
            self._config.lora,
            ours.adapters,
            dtype=dtype,
            max_length=self._config.contract.max_length,
            temperature=stage.loss[0].temperature,
            learning_rate=stage.learning_rate,
            clipping=stage.gradient_clipping,
        )
        return ours, peer

    def peer_step(self, peer: Peer, batch: Batch) -> torch.Tensor:
        """The peer's step with the instruction of the batch's source."""
        instruction = self._config.stages[0].blend[batch.source].instruction
        return peer.step(batch.columns(), self._config.contract.prefix(instruction))

    def agreement(self, batches: Sequence[Batch], setting: str) -> dict[str, Any]:
        """Loss curves of both in fp32 on batches without repeats; ends the program when they differ."""
        ours, peer = self.pair(batches, torch.float32)
        peer.use(setting)
        own = [float(ours.step(index)) for index in range(len(batches))]
        others = [float(self.peer_step(peer, batch)) for batch in batches]
        worst = max(abs(a - b) / abs(b) for a, b in zip(own, others, strict=True))
        if not worst <= TOLERANCE:
            raise SystemExit(f"the two disagree by {worst:.2g} in fp32: losses {own} and {others}")
        return {"losses_fp32": own, "peer_losses_fp32": others, "largest_relative_difference": worst}

    def fastest(self, peer: Peer, batches: Sequence[Batch], settings: Sequence[str]) -> dict[str, float]:
        """Seconds of a trial with each of the peer's settings, the fastest first."""

        def trial(setting: str, turn: int) -> None:
            peer.use(setting)
            for batch in batches[turn :: TRIAL_TURNS + 1]:  # others each turn, whose sizes are new
                self.peer_step(peer, batch)

        if len(settings) == 1:
            return {settings[0]: float("nan")}
        times = interleave({setting: partial(trial, setting) for setting in settings}, TRIAL_TURNS)
        return dict(sorted(((name, sum(found)) for name, found in times.items()), key=lambda item: item[1]))

    def measure(
        self, name: str, batches: Sequence[Batch], rounds: int, settings: Sequence[str], goal: float
    ) -> Bar:
        """Steps of both in turn, other batches each round."""
        each = len(batches) // (rounds + 1)
        ours, peer = self.pair(batches, torch.bfloat16)
        trial = self.fastest(peer, [batch.first(TRIAL_ROWS) for batch in batches[:TRIAL_BATCHES]], settings)
        peer.use(next(iter(trial)))

        def own(turn: int) -> None:
            for index in range(turn * each, (turn + 1) * each):
                ours.step(index)

        def theirs(turn: int) -> None:
            for batch in batches[turn * each : (turn + 1) * each]:
                self.peer_step(peer, batch)

        times = interleave({"ours": own, "peer": theirs}, rounds)
        rows = sum(len(batch.rows) for batch in batches[:each])
        named = sum(len(column) for batch in batches for column in batch.columns()[1:])
        detail = {
            "layers": self._config.base_layers,
            "threads": torch.get_num_threads(),
            "rows_of_a_batch": len(batches[0].rows),
            "batches_of_a_round": each,
            "documents_named": named,
            "documents_distinct": sum(batch.distinct_documents for batch in batches),
            "tokens_of_a_batch": ours.batch(0).packed.num_tokens,
            "tokens_per_chunk": self._config.training.tokens_per_chunk,
            "peer_setting": next(iter(trial)),
            "peer_trial_seconds": trial,
            "rows_per_second": {who: [rows / taken for taken in found] for who, found in times.items()},
            "seconds": times,
        }
        return ratio_bar(name, times["peer"], times["ours"], goal=goal, detail=detail)


def natural_bar(options: argparse.Namespace, folder: Path) -> Bar:
    """`train_natural`."""
    size, each, rounds = (8, 2, 1) if options.quick else (72, 4, options.rounds)
    original = quickstart(options.layers, learning_rate=LEARNING_RATE)
    negatives = [entry.negatives_per_query for entry in original.stages[0].blend]
    sources = _prepared(original, folder)
    comparison = Comparison(plain(original, negatives), folder)
    checked = distinct_batches(sources, negatives, size=size, count=2 if options.quick else 8)
    agreement = comparison.agreement(checked, "plain")
    batches = distinct_batches(sources, negatives, size=size, count=each * (rounds + 1))
    settings = ("plain", "rows 16") if options.quick else tuple(SETTINGS)
    bar = comparison.measure("train_natural", batches, rounds, settings, goal=1.5)
    bar.detail.update(agreement)
    return bar


def large_batch_bar(options: argparse.Namespace, folder: Path) -> Bar:
    """`train_large_batch`."""
    size, checked_size, rounds = (16, 4, 1) if options.quick else (512, 32, _few_rounds(options))
    pool = options.pool or size * (1 + NEGATIVES)
    if options.quick:
        pool = min(pool, 2 * size)
    original = quickstart(options.layers, learning_rate=LEARNING_RATE)
    [source, *_] = _prepared(original, folder)
    config = plain(original, [NEGATIVES, 0])
    budget = {"tokens_per_chunk": 1024 if options.quick else TOKENS_PER_CHUNK}
    config = config.model_copy(update={"training": config.training.model_copy(update=budget)})
    comparison = Comparison(config, folder)
    without_repeats = checked_size * (1 + NEGATIVES)
    checked = pooled_batches(
        source, NEGATIVES, size=checked_size, pool=without_repeats, count=2 if options.quick else 4
    )
    agreement = comparison.agreement(checked, "rows 16")
    batches = pooled_batches(source, NEGATIVES, size=size, pool=pool, count=rounds + 1)
    settings = CHUNKED[:1] if options.quick else CHUNKED
    bar = comparison.measure("train_large_batch", batches, rounds, settings, goal=2.0)
    bar.detail.update(agreement | {"pool": pool})
    return bar


def _prepared(config: RunConfig, folder: Path) -> list[PreparedRows]:
    """The quickstart's own rows, BM25 negatives included."""
    models = resolve(config.models_directory)
    base = prepare_base_model(config.base_model, models, layers=config.base_layers)
    spec = resolve_data(config)[0].prepare(folder / "quickstart", str(base))
    return [PreparedRows.open(path) for path in spec.sources]


def _runs(options: argparse.Namespace, folder: Path) -> Runs:
    steps = WARM_UP + (3 if options.quick else 24)
    size = {"batch_size": 16} if options.quick else {}
    return Runs.of(quickstart(options.layers, steps=steps, warmup_steps=2, **size), folder)


def _few_rounds(options: argparse.Namespace) -> int:
    """Rounds of the parts whose rounds take minutes."""
    return 1 if options.quick else min(options.rounds, 3)


def measured_overhead(options: argparse.Namespace, folder: Path) -> Bar:
    """`train_overhead`."""
    return overhead_bar(_runs(options, folder), _few_rounds(options), options.threads)


def measured_scaling(options: argparse.Namespace, folder: Path) -> Bar:
    """`train_scaling`."""
    return scaling_bar(_runs(options, folder), _few_rounds(options))


PARTS: dict[str, Callable[[argparse.Namespace, Path], Bar]] = {
    "train_natural": natural_bar,
    "train_large_batch": large_batch_bar,
    "train_overhead": measured_overhead,
    "train_scaling": measured_scaling,
}


def main() -> None:
    """Measure the chosen bars and report."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="bars to measure")
    parser.add_argument("--layers", type=int, default=4, help="first layers of SmolLM2-135M to keep")
    parser.add_argument("--rounds", type=int, default=5, help="of train_natural; others: up to 3")
    parser.add_argument(
        "--pool", type=int, default=1024, help="documents of a large batch; 0: as many as are named"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="except in train_scaling")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bars: list[Bar] = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            bars.append(PARTS[name](options, Path(folder)))
        write_report(bars, options.json)  # after every part: one that fails does not take the others with it


if __name__ == "__main__":
    main()
