"""What `--dry-run` shows: the recipe, what it needs, and the first batch and longest step of every stage."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedTokenizerBase

from rayembed.common.paths import resolve
from rayembed.config import RunConfig
from rayembed.contract.packing import PackedBatch
from rayembed.data.stream import local_batches
from rayembed.model.base_model import prepare_base_model
from rayembed.model.checkpoint import load_tokenizer
from rayembed.training.longest import longest_batch
from rayembed.training.preflight import GIBIBYTE, estimate
from rayembed.training.prepare import check_sources, prepare_stage
from rayembed.training.stage_run import StageRun
from rayembed.training.trial import try_step

_SHOWN_ROWS = 4


def describe(config: RunConfig, *, with_step: bool = True) -> Iterator[str]:
    """Lines to print. Missing built-in data and base models are built; no run folder is made.

    Args:
        config: the run.
        with_step: take a real step at the longest batch of every stage.

    Raises:
        UserError: what would stop the run, a step that does not fit into memory among it.
    """
    check_sources(config)
    yield config.to_yaml()
    base = prepare_base_model(config.base_model, resolve(config.models_directory), layers=config.base_layers)
    needed = estimate(config, base)
    yield f"memory of a worker, texts at full length: {needed.memory_per_worker / GIBIBYTE:.1f} GiB"
    yield f"disk of the run: about {needed.disk / GIBIBYTE:.1f} GiB"
    with tempfile.TemporaryDirectory() as folder:
        for index in range(len(config.stages)):
            yield from _describe_stage(config, index, Path(folder), base, with_step)


def _describe_stage(
    config: RunConfig, index: int, folder: Path, base: Path | str, with_step: bool
) -> Iterator[str]:
    stage = config.stages[index]
    spec = prepare_stage(config, index, folder / stage.name, str(base))
    batch = next(local_batches(spec, start=0, stop=1))
    tokenizer = load_tokenizer(base)
    counts = Counter(stage.blend[source].source for source in batch.source_Q.tolist())
    shares = ", ".join(f"{name} {count}" for name, count in counts.items())
    yield ""
    yield f"stage {stage.name}: {stage.steps} steps of {stage.batch_size} rows; first batch: {shares}"
    texts = _decoded(batch.packed, tokenizer)
    for row in range(min(_SHOWN_ROWS, batch.num_queries)):
        yield f"  query    {texts[row]}"
        yield f"  positive {texts[batch.num_queries + int(batch.target_Q[row])]}"
        yield f"  against  {int(batch.allowed_QK[row].sum()) - 1} negatives"
    if with_step:
        yield _tried(StageRun(config, index, base, base, spec, (), folder))


def _tried(run: StageRun) -> str:
    """What a step at the longest batch took, or why it was not tried."""
    training = run.config.training
    batch = longest_batch(run.stream, training.workers)
    tokens = batch.packed.num_tokens
    about = f"longest batch: step {batch.step}, {tokens:,} tokens of a worker"
    needed = estimate(run.config, run.original_base, tokens).memory_per_worker / GIBIBYTE
    if training.zero_stage == 3 and training.workers > 1:
        return f"{about}; no step was tried, as ZeRO 3 shares the weights among {training.workers} workers"
    free = psutil.virtual_memory().available / GIBIBYTE
    if not torch.cuda.is_available() and needed > free:
        return f"{about}; no step was tried, it needs about {needed:.1f} GiB and {free:.1f} GiB are free"
    trial = try_step(run, batch)
    return (
        f"{about}: {trial.seconds:.1f} s, peak memory {trial.memory / GIBIBYTE:.2f} GiB "
        f"(estimated {needed:.2f} GiB)"
    )


def _decoded(packed: PackedBatch, tokenizer: PreTrainedTokenizerBase, width: int = 100) -> list[str]:
    pieces = packed.input_ids_T[: packed.num_tokens].split(list(packed.lengths.texts))
    return [
        " ".join(str(tokenizer.decode(pieces[position])).split())[:width]
        for position in packed.order_N.tolist()
    ]
