"""What `--dry-run` shows: the recipe, what it needs, and the first batch and longest step of every stage."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rayembed.common.ray_cluster import cluster_gpus, connect
from rayembed.config.run import RunConfig
from rayembed.config.stage import StageConfig
from rayembed.config.training import TrainingConfig
from rayembed.contract.packing import PackedBatch
from rayembed.contract.tokenizer import load_tokenizer
from rayembed.data.stream import StreamSpec, local_batches
from rayembed.training.fit import with_device
from rayembed.training.handover import ModelExport
from rayembed.training.model import ModelSpec
from rayembed.training.preflight import GIBIBYTE, disk_of_run, memory_of_worker, step_seconds
from rayembed.training.prepare import resolve_data
from rayembed.training.run import ready_base_model
from rayembed.training.stage import Stage
from rayembed.training.trial import SMALLEST_CHUNK, decided, longest_batch, try_step

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
    training = planned_device(config.training)
    base = ready_base_model(config)
    model = ModelSpec.of(config, base)
    yield f"disk of the run: about {disk_of_run(config, model) / GIBIBYTE:.1f} GiB"
    tokenizer = load_tokenizer(base)
    with tempfile.TemporaryDirectory() as folder:
        for stage in data:
            stream = stage.prepare(Path(folder) / stage.settings.name, str(base))
            yield from _first_batch(stage.settings, stream, tokenizer)
            yield from tried(
                Stage(
                    settings=stage.settings,
                    training=training,
                    validation=None,
                    model=model,
                    stream=stream,
                    finished=(),
                    seed=config.seed,
                    export=ModelExport.of(config),
                    run_name=config.name,
                    run_folder=Path(folder),
                ),
                with_step=with_step,
            )


def planned_device(training: TrainingConfig) -> TrainingConfig:
    """The settings with their device; a recipe for GPUs is described on a machine without, too."""
    if training.device != "auto":
        return training
    connect()
    return with_device(training)


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


def tried(stage: Stage, *, with_step: bool = True) -> Iterator[str]:
    """What a step at the longest batch takes: on paper, and measured where one worker can take it alone."""
    training, workers = stage.training, stage.training.workers
    batch = longest_batch(stage.stream, training.fewest_workers)
    yield f"longest batch: step {batch.step}, {batch.packed.num_tokens:,} tokens of a worker"
    yield from on_paper(stage, batch.packed.num_tokens)
    if not with_step:
        return
    if training.zero_stage == 3 and workers > 1:
        yield f"no step was tried, as ZeRO 3 shares the weights among {workers} workers"
        return
    connect()
    if training.device == "cuda" and not cluster_gpus(training.accelerator_type).most:
        yield "no step was tried, no GPU is here"
        return
    with tempfile.TemporaryDirectory() as folder:
        trial = try_step(decided(stage, Path(folder)), batch)
    settings = f"tokens_per_chunk {trial.tokens_per_chunk}, checkpointing {trial.activation_checkpointing}"
    yield f"measured: {trial.seconds:.1f} s, peak memory {trial.memory / GIBIBYTE:.2f} GiB ({settings})"


def on_paper(stage: Stage, tokens: int) -> Iterator[str]:
    """Memory of a worker with its settings; with the first and last ones where `auto` measures."""
    training = stage.training
    auto = {
        "tokens_per_chunk": (None, SMALLEST_CHUNK),
        "activation_checkpointing": (False, True),
    }
    for end in (0, 1):
        settings = {key: ends[end] for key, ends in auto.items() if getattr(training, key) == "auto"}
        about = ", ".join(f"{key} {value}" for key, value in settings.items())
        memory = memory_of_worker(
            stage.model,
            training.model_copy(update=settings),
            device="cuda" if training.device == "cuda" else "cpu",
            tokens=tokens,
        )
        yield f"memory of a worker on paper{about and f', {about}'}: {memory}"
        seconds = step_seconds(stage.model, training.model_copy(update=settings), tokens)
        if seconds is not None:
            hours = seconds * stage.settings.steps / 3600
            yield f"time on paper, were all batches so long: {seconds:.1f} s a step, {hours:.0f} h in all"
        if not settings:
            return


def _decoded(packed: PackedBatch, tokenizer: PreTrainedTokenizerBase, width: int = 100) -> list[str]:
    pieces = packed.input_ids_T[: packed.num_tokens].split(list(packed.lengths.texts))
    return [
        " ".join(str(tokenizer.decode(pieces[position])).split())[:width]
        for position in packed.order_N.tolist()
    ]
