"""What smaller vectors of one checkpoint cost: each form scored, its bytes, and texts encoded a second."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rayembed.common.paths import atomic_write, fetch, remove, resolve
from rayembed.compression.table import against_first
from rayembed.engine.vector_formats import VectorForm
from rayembed.evaluation.results import read_record
from rayembed.evaluation.shards import texts_per_second
from rayembed.model.checkpoint import read_manifest

FILE = "vectors.json"


def score_vectors(
    checkpoint: str | Path,
    forms: Sequence[VectorForm],
    output: str | Path,
    score: Callable[..., Any],
    *,
    name: str,
    keep: bool = False,
) -> list[dict[str, Any]]:
    """Score a checkpoint with its vectors in each form; its texts are encoded once.

    Args:
        checkpoint: folder.
        forms: what is scored besides the vectors as they are.
        output: folder; a form's results go into a folder of its name.
        score: `evaluation.run.run`, or what stands for it.
        name: label of the model.
        keep: keep the vectors.

    Returns:
        One row a form, the vectors as they are first, which is also written to vectors.json: its name, score,
        difference, bytes of a vector, texts a second of one engine, and the score of each task.
    """
    folder = resolve(output)
    cache, plain = folder / "vectors", VectorForm()
    wanted = list(dict.fromkeys([plain, *forms]))
    for form in wanted:
        score(
            checkpoint,
            output=folder / str(form),
            vectors=None if form == plain else form,
            cache=cache,
            name=name,
        )
    records = [read_record(folder / str(form) / name) for form in wanted]
    stored = fetch(folder / FILE)
    rate = texts_per_second(cache)
    if rate is None and stored.is_file():  # every result was there
        rate = json.loads(stored.read_text())[0]["texts_per_second"]
    width = read_manifest(resolve(checkpoint))["dimensions"]
    rows = [
        {"vectors": str(form), "score": record.categories()["mean"]}
        | (test or {})
        | {
            "vector_bytes": form.size(width),
            "texts_per_second": rate,
            "tasks": {task.name: task.score for task in record.tasks},
        }
        for form, record, test in zip(wanted, records, against_first(records), strict=True)
    ]
    atomic_write(folder / FILE, json.dumps(rows, indent=1) + "\n")
    if not keep:
        remove(cache)
    return rows
