"""Bulk embedding on Ray: the one function behind the job and the command.

The input is cut into shards of consecutive rows. An actor reads a shard, embeds it with its own engine and
writes it as one file. So the files are in the order of the rows whatever the order they are made in, and a
job that is started again makes only those that are not there.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from rayembed.common.device import resolve_device
from rayembed.common.errors import DataError
from rayembed.common.paths import location_of, remove, resolve
from rayembed.common.progress import Progress
from rayembed.common.ray_work import ATTEMPTS, ItemsFailed, reason_of, run_items
from rayembed.common.settings import Precision
from rayembed.engine.bulk.output import (
    VECTORS_FOLDER,
    ShardStatistics,
    check_same,
    files_in,
    read_manifest,
    read_statistics,
    shard_path,
    write_manifest,
)
from rayembed.engine.bulk.request import EmbeddingWork, EmbedRequest, ShardWorker, plan_work
from rayembed.model.precision import chosen_precision

logger = logging.getLogger(__name__)

_READERS = 8  # finished shards that are looked at at the same time


def embed_files(
    request: EmbedRequest,
    *,
    actors: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    worker: type[ShardWorker] = ShardWorker,
) -> dict[str, Any]:
    """Embed the texts of files into `output`/vectors/part-*.parquet; continues what a stopped job has left.

    Args:
        request: which texts, and how.
        actors: engines that work side by side; None takes one per GPU, else one per CPU; 0 runs in this
            process, without Ray.
        overwrite: remove an earlier output first.
        dry_run: only look at the request, the input and an earlier output; writes nothing.
        worker: what embeds a shard.

    Returns:
        The manifest, which is also written to `output`/manifest.json.

    Raises:
        UserError: the request, the input or the earlier output is not as it must be.
        RuntimeError: shards failed three times; the others are written and kept.
    """
    output = resolve(request.output)
    earlier = read_manifest(output)
    work, manifest = plan_work(request, earlier["input"] if earlier else ())
    kept = earlier["settings"]["precision"] if earlier and not overwrite else None
    if work.precision == "auto" and (kept or not dry_run):
        # One for all shards: auto would be another one on nodes with other processors.
        precision = kept or _precision_of_workers(actors)
        work = replace(work, precision=precision)
        manifest["settings"]["precision"] = precision
    if earlier and not overwrite:
        check_same(output, earlier, manifest)
    done = {} if overwrite else _finished(work)
    missing = [shard for shard in range(work.shards) if shard not in done]
    logger.info(
        "%d rows of %d files in %d shards, %d of them finished",
        len(work.rows),
        len(work.rows.files),
        work.shards,
        len(done),
    )
    if dry_run:
        return manifest | {"status": "planned", "finished_shards": len(done)}
    if overwrite and earlier:
        remove(output)
    write_manifest(output, manifest)
    for leftover in (output / VECTORS_FOLDER).glob(".part-*"):
        leftover.unlink()

    failed = _embed(work, missing, done, actors, worker) if missing else {}
    statistics = ShardStatistics()
    for shard in done.values():
        statistics.add(shard)
    manifest |= {
        "status": "incomplete" if failed else "complete",
        "statistics": asdict(statistics),
        "failed": {shard_path(output, shard).name: reason for shard, reason in failed.items()},
    }
    write_manifest(output, manifest)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in manifest["failed"].items())
        raise RuntimeError(
            f"{len(failed)} of {work.shards} shards failed {ATTEMPTS} times, the others are kept; start the "
            f"job again to retry. {reasons}"
        )
    logger.info("%d vectors from %d rows in %s", statistics.vectors, statistics.rows, location_of(output))
    return manifest


def _precision_of_workers(actors: int | None) -> Precision:
    """What `auto` means where the work is done."""
    asked: list[Precision] = ["auto"]
    [found] = run_items(lambda: _precision_here, asked, title="precision", actors=actors, progress=False)
    return found


def _precision_here(precision: Precision) -> Precision:
    return chosen_precision(precision, resolve_device())


def _finished(work: EmbeddingWork) -> dict[int, ShardStatistics]:
    """Shards whose files are there, and what they are made of."""
    present = files_in(work.output / VECTORS_FOLDER)

    def read(shard: int) -> ShardStatistics | None:
        path = shard_path(work.output, shard)
        if path.name not in present:
            return None
        try:
            return read_statistics(path)
        except DataError as error:
            logger.warning("%s; the shard is made again", error)
            return None

    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(read, range(work.shards))
        return {shard: statistics for shard, statistics in enumerate(found) if statistics is not None}


def _embed(
    work: EmbeddingWork,
    missing: Sequence[int],
    done: dict[int, ShardStatistics],
    actors: int | None,
    worker: type[ShardWorker],
) -> dict[int, str]:
    """Make the missing shards, add them to `done`, and return what went wrong with those that failed."""
    progress = Progress(
        logger, "vectors", len(work.rows), unit="rows", done=sum(shard.rows for shard in done.values())
    )
    made = run_items(
        partial(worker, work), missing, title="vectors", actors=actors, progress=False, overlapping=True
    )
    try:
        for shard, statistics in made:
            done[shard] = statistics
            progress.add(statistics.rows, tokens=statistics.tokens)
    except ItemsFailed as failed:
        return {missing[position]: reason_of(error) for position, error in failed.failures.items()}
    return {}
