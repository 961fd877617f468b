"""A source of the user's own -> a folder of checked Parquet files, a card and a list of what was left out.

The source is cut into parts. Each part is streamed to its own file by a Ray actor (by this process where
there is one part only), so memory does not limit the size. Parts that are complete outlive an error, and the
next run continues with the others.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from rayembed.common.errors import ConfigError, DataError
from rayembed.common.paths import (
    atomic_directory,
    clear_disk_errors,
    fetch,
    location_of,
    remove,
    resolve,
    workspace,
)
from rayembed.config.data import DataConfig, UserSourceConfig
from rayembed.data.card import CARD_VERSION, SourceStatistics, make_card, read_card, write_card
from rayembed.data.part_writer import FinishJob, PartJob, finish_part, link, write_part
from rayembed.data.sources import SOURCES
from rayembed.data.store import build_source
from rayembed.records import find_files, find_parts, unread_files
from rayembed.records.checks import NO_LABEL
from rayembed.records.columns import Columns

logger = logging.getLogger(__name__)

BUILDER_VERSION = 3
REJECTS_FILE = "rejects.jsonl"
_HASHES_AT_A_TIME = 1 << 22  # to find duplicates; some 50 bytes each

Job = TypeVar("Job")
Result = TypeVar("Result")


def build_user_source(
    name: str, source: UserSourceConfig, data_dir: Path, *, rejects: Path | None = None
) -> Path:
    """Return the folder of a user's source, building it when it is missing, or its files or settings changed.

    The folder has `train-N.parquet`, `card.json` and `rejects.jsonl`. After too many bad rows it is not made,
    and the list is in `rejects` (None: `NAME.rejects.jsonl` next to the folder).

    Raises:
        ConfigError: a mapped column that the layout does not have.
        DataError: nothing to read, a wrong column, a damaged file, too many bad rows, or no good one.
        ResourceError: the store does not answer, or the disk is full.
    """
    if name in SOURCES:
        raise ConfigError(f"data.sources.{name} has the name of a built-in source; choose another")
    Columns(source.kind, source.columns)
    rejects = rejects or data_dir / f"{name}.rejects.jsonl"
    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f".{name}.lock"):  # for two jobs that need the same source
        return _build(name, source, data_dir, rejects)


def _build(name: str, source: UserSourceConfig, data_dir: Path, rejects: Path) -> Path:
    state = source_state(name, source)
    target = data_dir / name
    card = read_card(target)
    if card is not None and card.get("state") == state and card["card_version"] == CARD_VERSION:
        return fetch(target)
    work = data_dir / f".{name}.parts-{state[:12]}"
    for other in data_dir.glob(f".{name}.parts-*"):
        if other != work:
            remove(other)
    with clear_disk_errors(data_dir):
        work.mkdir(parents=True, exist_ok=True)
        parts = find_parts(source, work)
    jobs = [PartJob(name, source, part, index, work) for index, part in enumerate(parts)]
    logger.info("building %s from %s in %d parts", name, source.origin, len(jobs))
    if unread := unread_files(find_files(source), parts):
        logger.warning("source %s: %d files are not read: %s", name, len(unread), ", ".join(unread[:5]))
    summaries = list(on_all_cpus(write_part, jobs, f"source {name}, reading", here=len(jobs) == 1))
    columns = Columns(source.kind, source.columns)
    for summary in summaries:
        columns.present.update(dict.fromkeys(summary["columns"]))
    if columns.present:
        columns.check_declared(source.origin)
        logger.info("source %s: %s", name, columns)
    duplicates = _duplicates(jobs)
    _refuse_bad(source, jobs, summaries, duplicates, rejects)
    description = {
        "name": name,
        "title": f"{name}: {source.origin}",
        "kind": source.kind,
        "task_type": source.task_type,
        "origin": source.origin,
        "licence": source.licence,
        "columns": str(columns),
        "state": state,
    }
    with clear_disk_errors(data_dir), atomic_directory(target) as folder:
        finishing = [
            FinishJob(job.path(".parquet"), job.path(".finished.parquet"), tuple(duplicates[job.index]))
            for job in _with_rows(jobs, summaries)
        ]
        statistics = SourceStatistics()
        title = f"source {name}, writing"
        for part_statistics in on_all_cpus(finish_part, finishing, title, here=len(finishing) == 1):
            statistics.add(part_statistics)
        for index, job in enumerate(finishing):
            link(fetch(job.finished), folder / f"train-{index:05d}.parquet")
        _write_rejects(jobs, summaries, duplicates, folder / REJECTS_FILE)
        write_card(
            make_card(description, {"train": statistics}, _dropped(summaries, duplicates), folder), folder
        )
    remove(work)
    rejects.unlink(missing_ok=True)
    logger.info("built %s: %d rows", name, statistics.rows)
    return target


def build_any(name: str, data: DataConfig) -> Path:
    """Folder of a built-in source or of one that the recipe declares, built where that is due.

    Raises:
        DataError, ResourceError: it is unknown or cannot be read.
    """
    directory = resolve(data.directory)
    if name in data.sources:
        return build_user_source(name, declared_source(data, name), directory)
    return build_source(name, directory)


def declared_source(data: DataConfig, name: str) -> UserSourceConfig:
    """A source as the recipe declares it; task type and licence are those of what it is derived from."""
    source = data.sources[name]
    origin = data.sources.get(source.derived_from or "") or SOURCES.get(source.derived_from or "")
    known = {} if origin is None else {"task_type": origin.task_type, "licence": origin.licence}
    return source.model_copy(
        update={key: value for key, value in known.items() if key not in source.model_fields_set}
    )


def source_state(name: str, source: UserSourceConfig) -> str:
    """Digest of the settings of a source and of the names, sizes and times of its files.

    Raises:
        DataError, ResourceError: nothing is there, or the store does not answer.
    """
    unread = {"licence", "derived_from", "least_score"} | (
        {"label_texts"} if source.kind == "labels" else set()
    )
    settings = source.model_dump(mode="json", exclude=unread)
    files = [asdict(file) for file in find_files(source)]
    return sha256(json.dumps([BUILDER_VERSION, name, settings, files], sort_keys=True).encode()).hexdigest()


def on_all_cpus(
    function: Callable[[Job], Result], jobs: Sequence[Job], title: str, *, here: bool
) -> Iterator[Result]:
    """Results in the order of the jobs, by all CPUs of the cluster; `here`: by this process."""
    if here:
        return map(function, jobs)
    # Commands and small sources do without Ray, which takes seconds to import.
    from rayembed.common.ray_work import run_items

    home = {"RAYEMBED_HOME": location_of(workspace())}
    return run_items(
        partial(_itself, function), jobs, title=title, gpus=False, ordered=True, environment=home
    )


def _itself(function: Callable[[Job], Result]) -> Callable[[Job], Result]:
    return function


def _with_rows(jobs: Sequence[PartJob], summaries: Sequence[dict[str, Any]]) -> list[PartJob]:
    return [job for job, summary in zip(jobs, summaries, strict=True) if summary["rows"]]


def _duplicates(jobs: Sequence[PartJob]) -> dict[int, list[int]]:
    """Part -> positions of rows that say the same as an earlier row of any part.

    All hashes are read once for each share of them that is held at a time: equal ones are in one share.
    """
    files = [fetch(job.path(".npz")) for job in jobs]
    shares = 1 + sum(len(_stored(file, "hashes")) for file in files) // _HASHES_AT_A_TIME
    found: dict[int, list[int]] = defaultdict(list)
    for share in range(shares):
        hashes, positions = [], []
        for file in files:
            of_part = _stored(file, "hashes")
            positions.append(np.flatnonzero(of_part % np.uint64(shares) == share))
            hashes.append(of_part[positions[-1]])
        starts = np.cumsum([0, *map(len, positions)])
        for place in _repeated(np.concatenate(hashes)).tolist():
            part = int(np.searchsorted(starts, place, side="right")) - 1
            found[jobs[part].index].append(int(positions[part][place - starts[part]]))
    return defaultdict(list, {part: sorted(rows) for part, rows in found.items()})


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Places of hashes that are there once more, further in front."""
    order = np.argsort(hashes, kind="stable")
    return order[1:][hashes[order[1:]] == hashes[order[:-1]]]


def _stored(file: Path, name: str) -> np.ndarray:
    with np.load(file, allow_pickle=False) as stored:
        return stored[name]


def _dropped(summaries: Sequence[dict[str, Any]], duplicates: dict[int, list[int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for summary in summaries:
        counts.update(summary["rejected"])
    repeated = sum(map(len, duplicates.values()))
    return dict(counts.most_common()) | ({"duplicate": repeated} if repeated else {})


def _refuse_bad(
    source: UserSourceConfig,
    jobs: Sequence[PartJob],
    summaries: Sequence[dict[str, Any]],
    duplicates: dict[int, list[int]],
    rejects: Path,
) -> None:
    """Say what is left out; DataError when more rows are bad than the source allows, or all."""
    dropped = _dropped(summaries, duplicates)
    repeated = dropped.get("duplicate", 0)
    bad = sum(dropped.values()) - repeated - dropped.get(NO_LABEL, 0)
    total = sum(dropped.values()) - repeated + sum(summary["rows"] for summary in summaries)
    name, allowed = jobs[0].name, source.largest_bad_share
    if total == 0:
        raise DataError(f"source {name}: {source.origin} has no rows; supply a file that is not empty")
    if not dropped:
        return
    _write_rejects(jobs, summaries, duplicates, rejects)
    with rejects.open(encoding="utf-8") as stream:
        first = json.loads(stream.readline())
    counts = ", ".join(f"{count} x {reason}" for reason, count in dropped.items())
    message = (
        f"source {name}: {bad} of {total} rows are bad and {repeated} are duplicates ({counts}); the first "
        f"is {first['place']} ({first['reason']}: {first['detail']})"
    )
    if bad > allowed * total or bad == total:
        raise DataError(
            f"{message}. largest_bad_share allows {allowed:.1%}; {rejects} lists them all: correct the file "
            "or raise the share"
        )
    logger.warning("%s; they are left out and listed in %s", message, REJECTS_FILE)


def _write_rejects(
    jobs: Sequence[PartJob],
    summaries: Sequence[dict[str, Any]],
    duplicates: dict[int, list[int]],
    path: Path,
) -> None:
    """One line a row that was left out: its file and line, the reason, the detail and its beginning."""
    before: Counter[str] = Counter()  # lines of the earlier parts of a file
    with clear_disk_errors(path.parent), path.open("w", encoding="utf-8") as listed:
        for job, summary in zip(jobs, summaries, strict=True):
            file = job.part.file
            with fetch(job.path(".rejects.jsonl")).open(encoding="utf-8") as rejects:
                for reject in map(json.loads, rejects):
                    place = f"{file.name}:{before[file.uri] + reject.pop('number')}"
                    listed.write(json.dumps({"place": place, **reject}, ensure_ascii=False) + "\n")
            repeated = duplicates[job.index]
            numbers = _stored(fetch(job.path(".npz")), "numbers")[repeated] if repeated else np.empty(0)
            for number in numbers.tolist():
                place = f"{file.name}:{before[file.uri] + number}"
                listed.write(
                    json.dumps({"place": place, "reason": "duplicate", "detail": "of an earlier row"}) + "\n"
                )
            before[file.uri] += summary["lines"]
