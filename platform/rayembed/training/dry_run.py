"""What `--dry-run` shows: the recipe, what it needs, and the first batch and longest step of every stage."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedTokenizerBase

from rayembed.common.paths import resolve
from rayembed.config.run import RunConfig
from rayembed.config.stage import StageConfig
from rayembed.contract.packing import PackedBatch
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.stream import StreamSpec, local_batches
from rayembed.model.base_model import prepare_base_model
from rayembed.training.handover import ModelExport
from rayembed.training.model import ModelSpec
from rayembed.training.preflight import GIBIBYTE, Needs
from rayembed.training.prepare import resolve_data
from rayembed.training.stage import Stage
from rayembed.training.trial import longest_batch, try_step

_SHOWN_ROWS = 4


def describe(config: RunConfig, *, with_step: bool = True) -> Iterator[str]:
    """Lines to print. Missing built-in data and base models are built; no run folder is made.

    Args:
        config: the run.
        with_step: take a real step at the longest batch of every stage.

    Raises:
        UserError: what would stop the run, a step that does not fit into memory among it.
    """
    data = resolve_data(config)
    yield config.to_yaml()
    base = prepare_base_model(config.base_model, resolve(config.models_directory), layers=config.base_layers)
    model = ModelSpec.of(config, base)
    needs = Needs.of(config, model)
    yield f"memory of a worker, before the first step: {needs.memory / GIBIBYTE:.1f} GiB"
    yield f"disk of the run: about {needs.disk / GIBIBYTE:.1f} GiB"
    tokenizer = load_tokenizer(base)
    with tempfile.TemporaryDirectory() as folder:
        for stage in data:
            stream = stage.prepare(Path(folder) / stage.settings.name, str(base))
            yield from _first_batch(stage.settings, stream, tokenizer)
            if not with_step:
                continue
            yield tried(
                Stage(
                    settings=stage.settings,
                    training=config.training,
                    validation=None,
                    model=model,
                    stream=stream,
                    finished=(),
                    seed=config.seed,
                    export=ModelExport.of(config),
                    run_name=config.name,
                    run_folder=Path(folder),
                ),
                needs,
            )


def _first_batch(
    settings: StageConfig, stream: StreamSpec, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    batch = next(local_batches(stream, start=0, stop=1))
    counts = Counter(settings.blend[source].source for source in batch.source_Q.tolist())
    shares = ", ".join(f"{name} {count}" for name, count in counts.items())
    yield ""
    steps = f"{settings.steps} steps of {settings.batch_size} rows"
    yield f"stage {settings.name}: {steps}; first batch: {shares}"
    texts = _decoded(batch.packed, tokenizer)
    for row in range(min(_SHOWN_ROWS, batch.num_queries)):
        yield f"  query    {texts[row]}"
        yield f"  positive {texts[batch.num_queries + int(batch.target_Q[row])]}"
        yield f"  against  {int(batch.allowed_QK[row].sum()) - 1} negatives"


def tried(stage: Stage, needs: Needs) -> str:
    """What a step at the longest batch took, or why it was not tried."""
    workers = stage.training.workers
    batch = longest_batch(stage.stream, workers)
    about = f"longest batch: step {batch.step}, {batch.packed.num_tokens:,} tokens of a worker"
    if stage.training.zero_stage == 3 and workers > 1:
        return f"{about}; no step was tried, as ZeRO 3 shares the weights among {workers} workers"
    needed, free = needs.memory / GIBIBYTE, psutil.virtual_memory().available / GIBIBYTE
    if not torch.cuda.is_available() and needed > free:
        return (
            f"{about}; no step was tried, it needs more than {needed:.1f} GiB of memory "
            f"and {free:.1f} GiB are free"
        )
    trial = try_step(stage, batch)
    return f"{about}: {trial.seconds:.1f} s, peak memory {trial.memory / GIBIBYTE:.2f} GiB"


def _decoded(packed: PackedBatch, tokenizer: PreTrainedTokenizerBase, width: int = 100) -> list[str]:
    pieces = packed.input_ids_T[: packed.num_tokens].split(list(packed.lengths.texts))
    return [
        " ".join(str(tokenizer.decode(pieces[position])).split())[:width]
        for position in packed.order_N.tolist()
    ]
