"""What `--dry-run` shows: the resolved recipe, what it needs, and the first batch of every stage."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rayembed.config import RunConfig
from rayembed.data.stream import local_batches
from rayembed.model.base_model import prepare_base_model
from rayembed.model.checkpoint import load_tokenizer
from rayembed.model.packing import PackedBatch
from rayembed.paths import resolve
from rayembed.train.preflight import GIBIBYTE, estimate
from rayembed.train.prepare import check_sources, prepare_stage

_SHOWN_ROWS = 4


def describe(config: RunConfig) -> Iterator[str]:
    """Lines to print. Missing built-in data and base models are built; no run folder is made."""
    check_sources(config)
    yield config.to_yaml()
    base = prepare_base_model(config.base_model, resolve(config.models_directory), layers=config.base_layers)
    needed = estimate(config, base)
    yield f"memory of a worker: about {needed.memory_per_worker / GIBIBYTE:.1f} GiB"
    yield f"disk of the run: about {needed.disk / GIBIBYTE:.1f} GiB"
    with tempfile.TemporaryDirectory() as folder:
        for index in range(len(config.stages)):
            yield from _describe_stage(config, index, Path(folder), str(base))


def _describe_stage(config: RunConfig, index: int, folder: Path, base: str) -> Iterator[str]:
    stage = config.stages[index]
    spec = prepare_stage(config, index, folder / stage.name, base)
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


def _decoded(packed: PackedBatch, tokenizer: PreTrainedTokenizerBase, width: int = 100) -> list[str]:
    pieces = packed.input_ids_T[: packed.num_tokens].split(list(packed.lengths.texts))
    return [
        " ".join(str(tokenizer.decode(pieces[position])).split())[:width]
        for position in packed.order_N.tolist()
    ]
