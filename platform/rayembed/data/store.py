"""Built-in sources on disk: build a folder once, read its splits."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.errors import DataError, ResourceError
from rayembed.common.paths import atomic_directory, clear_disk_errors, fetch
from rayembed.data.card import CARD_VERSION, SourceStatistics, make_card, read_card, write_card
from rayembed.data.sources import SOURCES, BuiltInSource
from rayembed.data.sources.base import SPLITS, Example, LabelExample, PairExample
from rayembed.records.schema import Kind, check_table, to_table

logger = logging.getLogger(__name__)

DOWNLOADS = ".downloads"


def built_in_source(name: str) -> BuiltInSource:
    """Look a source up by name; DataError lists the known ones."""
    if name not in SOURCES:
        raise DataError(f"there is no built-in source {name!r}; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def build_source(name: str, data_dir: Path) -> Path:
    """Return the folder of a built-in source, building it when it is missing or of another builder version.

    Raises DataError for an unknown name and ResourceError when a package it is made from cannot be fetched.
    """
    source = built_in_source(name)
    target = fetch(data_dir / name)
    if is_built(source, target):
        return target
    if reason := source.missing():
        raise ResourceError(f"{name} cannot be built: {reason}")
    logger.info("building %s in %s", name, target)
    with clear_disk_errors(target), atomic_directory(target) as folder:
        examples, dropped = drop_repeats(source.read(data_dir / DOWNLOADS))
        tables = _split_tables(source, examples)
        for split, table in tables.items():
            pq.write_table(table, folder / f"{split}.parquet", compression="zstd")
        statistics = {split: SourceStatistics.of([table]) for split, table in tables.items()}
        write_card(make_card(_description(source), statistics, dropped, folder), folder)
    logger.info(
        "built %s: %s", name, ", ".join(f"{table.num_rows} {split}" for split, table in tables.items())
    )
    return target


def is_built(source: BuiltInSource, folder: Path) -> bool:
    """Whether `folder` holds the splits that the present builder of `source` made."""
    card = read_card(folder)
    return (
        card is not None
        and card.get("builder_version") == source.version
        and card.get("card_version") == CARD_VERSION
        and all((folder / name).is_file() for name in card["sha256"])
    )


def read_split(data_dir: Path, name: str, split: str) -> pa.Table:
    """Read one split of a built source, the user's own included.

    Raises DataError when it is not built, has no such split, or a file is damaged, mistyped or empty.
    """
    folder = fetch(data_dir / name)
    kind = source_kind(data_dir, name)
    if not folder.is_dir():
        raise DataError(f"{data_dir} has no source {name}; run `rayembed data build {name} --out {data_dir}`")
    files = split_files(folder, split)
    if not files:
        splits = ", ".join(
            dict.fromkeys(file.stem.split("-")[0] for file in sorted(folder.glob("*.parquet")))
        )
        raise DataError(f"{name} has no split {split!r}; it has {splits or 'none'}")
    return pa.concat_tables(check_table(read_parquet(file), kind, str(file)) for file in files)


def split_files(folder: Path, split: str) -> list[Path]:
    """Parquet files of a split of a built source, in order: `train.parquet`, or `train-00000.parquet`, ..."""
    return sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])


def source_kind(data_dir: Path, name: str) -> Kind:
    """Layout of a built source; DataError when it is neither built-in nor built."""
    if name in SOURCES:
        return SOURCES[name].kind
    card = read_card(data_dir / name)
    if card is None:
        raise DataError(f"{data_dir} has no source {name}; built-in ones are {', '.join(SOURCES)}")
    return card["kind"]


def read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file; DataError when it is cut short or another kind of file."""
    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise DataError(
            f"{path} is not a complete Parquet file ({error}); write or build it again"
        ) from error


def drop_repeats(examples: Iterable[Example]) -> tuple[list[Example], dict[str, int]]:
    """Keep the first of examples that would blur the splits and count the others by reason.

    A query or labelled text appears once; a document belongs to the group that had it first, so that no text
    of the training split is also in a held-out one.
    """
    kept: list[Example] = []
    dropped: Counter[str] = Counter()
    texts: set[str] = set()
    owner: dict[str, str] = {}
    for example in examples:
        if isinstance(example, PairExample):
            if example.query in texts:
                dropped["repeated query"] += 1
                continue
            if owner.setdefault(example.positive, example.group) != example.group:
                dropped["document of another group"] += 1
                continue
            texts.add(example.query)
        elif isinstance(example, LabelExample):
            if example.text in texts:
                dropped["repeated text"] += 1
                continue
            texts.add(example.text)
        kept.append(example)
    return kept, dict(dropped)


def _split_tables(source: BuiltInSource, examples: list[Example]) -> dict[str, pa.Table]:
    rows = defaultdict(list)
    for example in examples:
        rows[example.split].append(example.row(source.name, source.task_type))
    if not rows:
        raise DataError(f"{source.name} gave no rows from {source.origin}")
    return {split: to_table(rows[split], source.kind) for split in SPLITS if rows[split]}


def _description(source: BuiltInSource) -> dict[str, object]:
    """What the card says of a source apart from its rows."""
    return {
        "name": source.name,
        "title": source.title,
        "kind": source.kind,
        "task_type": source.task_type,
        "origin": source.origin,
        "licence": source.licence,
        "terms": source.terms,
        "builder_version": source.version,
    }
