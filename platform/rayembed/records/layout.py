"""Which files of a folder are the source: its split, its configuration, and nothing that only describes them.

README.md                            may declare configurations and splits, which then count alone
data/train-00000-of-00002.parquet    split train
train.parquet, nq-train.jsonl        split train; what else the name says is a configuration
en/train/0000.parquet                split train of the configuration en
both/test/data-00000-of-00001.arrow  split test, as `save_to_disk` writes it
2024/part-7.jsonl                    no split: all such files are one source
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import yaml
from fsspec.utils import glob_translate

from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.records.locations import StoredFile, names_files

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout"),
}
SPLITS = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
EVERYTHING = "all"  # as split or config

_FILLERS = ("data", "part", "shard", "chunk", "file", "split", "set", "partial", "dataset")
_BOOKKEEPING = (
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"
)  # fmt: skip
_TABLE_FORMATS = {
    "delta": r"_delta_log/",
    "iceberg": r"metadata/v?\d+[^/]*\.metadata\.json$",
    "lance": r"_versions/",
}


class Place(NamedTuple):
    """Where in a data set a file belongs, or a pattern of its card that no file fits."""

    config: str | None
    split: str | None
    file: StoredFile | str


def choose_files(
    source: UserSourceConfig, files: Sequence[StoredFile], suffixes: tuple[str, ...]
) -> list[StoredFile]:
    """The files of the split and configuration that the source names, out of those with some suffix.

    Raises:
        DataError: there are several and none is chosen, or not the chosen one; some of its files are missing;
            or the folder is a table of a format that keeps deleted rows in its files.
    """
    refuse_tables(source.origin, files)
    card = next((file for file in files if file.name == "README.md"), None)
    readable = dict.fromkeys(file for file in files if len(files) == 1 or file.plain_name.endswith(suffixes))
    declared = _declared(card, files) if card else ()
    places = [place for place in declared if isinstance(place.file, str) or place.file in readable]
    places = places or [
        place_of(file) for file in readable if len(files) == 1 or not is_bookkeeping(file.name)
    ]
    if any(place.split for place in places):
        places = _chosen(source, "config", source.config, places)
        places = _chosen(source, "split", canonical(source.split), places)
    elif source.config or canonical(source.split) not in (None, "train", EVERYTHING):
        raise DataError(
            f"{source.origin} has no file that is named after a split or configuration; remove split and "
            "config, or name the files"
        )
    chosen = list(dict.fromkeys(place.file for place in places if isinstance(place.file, StoredFile)))
    missing = [place.file for place in places if isinstance(place.file, str)] + _missing_shards(chosen)
    if missing and not names_files(source.path or "", files):
        raise DataError(
            f"{source.origin} is not complete: {', '.join(missing[:3])}{', ...' if missing[3:] else ''} "
            "missing; download all of it, or give a pattern of the files that are meant as path"
        )
    return chosen


def table_format(files: Sequence[StoredFile]) -> str | None:
    """Which format of tables that keep deleted rows in their files a folder is of, if any."""
    return next((name for name, start in _TABLE_FORMATS.items() if _has(files, rf"^{start}")), None)


def refuse_tables(origin: str, files: Sequence[StoredFile]) -> None:
    """Raise DataError where files are of such tables, whose present rows only a reader of tables knows."""
    for name, pattern in _TABLE_FORMATS.items():
        if _has(files, rf"(^|/){pattern}"):
            raise DataError(
                f"{origin} has files of a table of {name.title()}, which also hold rows that were deleted; "
                "give the folder of the table as a source without format, or write its rows as Parquet"
            )


def _has(files: Sequence[StoredFile], pattern: str) -> bool:
    return any(re.search(pattern, file.name) for file in files)


def _missing_shards(files: Sequence[StoredFile]) -> list[str]:
    """Names that `train-00000-of-00002` and the like imply, without suffixes; they count from 0 or from 1."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for file in files:
        if shard := re.match(r"(.*?)(\d{5})-of-(\d{5})", file.name):
            found[shard[1], shard[3]].add(int(shard[2]))
    return [
        f"{start}{number:05d}-of-{total}"
        for (start, total), there in found.items()
        for first in [int(int(total) in there)]
        for number in range(first, first + int(total))
        if number not in there
    ]


def _chosen(source: UserSourceConfig, field: str, wanted: str | None, places: list[Place]) -> list[Place]:
    """The places with the value that was chosen, or with the only one that there is."""
    known = sorted({getattr(place, field) or "(none)" for place in places})
    if wanted == EVERYTHING or (wanted is None and len(known) == 1):
        return places
    what = "configurations" if field == "config" else "splits"
    if wanted is None:
        raise DataError(
            f"{source.origin} has the {what} {', '.join(known)}; choose one with {field}, or {field}: "
            f"{EVERYTHING} for all"
        )
    found = [place for place in places if getattr(place, field) == wanted]
    if not found:
        raise DataError(f"{source.origin} has no {field} {wanted!r}; it has the {what} {', '.join(known)}")
    return found


def canonical(split: str | None) -> str | None:
    """One name for the splits that have several: `dev` is `validation`."""
    return SPLITS.get(split.lower(), split) if split else None


def is_bookkeeping(name: str) -> bool:
    """Whether a file describes data in place of holding it; folders and files with a `_` in front do."""
    last = name.rpartition("/")[2]
    return (
        any(part.startswith("_") for part in name.split("/"))
        or last in _BOOKKEEPING
        or (last.startswith("cache-") and last.endswith(".arrow"))
    )


def place_of(file: StoredFile) -> Place:
    """Configuration and split that a file's name and folders tell."""
    *folders, last = file.name.split("/")
    stem = last[: len(file.plain_name.rpartition("/")[2].rpartition(".")[0])]
    split, rest = _shard(stem)
    if split is None:
        split, rest = _words(stem)
    if split is None:
        rest = ""
    if split is None and folders and file.plain_name.endswith(".arrow"):
        split = folders.pop()  # of a saved dictionary of data sets
    for position in reversed(range(len(folders))):
        if split is None:
            split, folders[position] = _words(folders[position])
    parts = [part for part in (*folders, rest) if part and part.lower() not in (*_FILLERS, *SPLITS)]
    return Place("/".join(parts) or None, canonical(split), file)


def _shard(stem: str) -> tuple[str | None, str]:
    """Split and the rest of `all-nli-train-00000-of-00002`; its last word may be any name."""
    shard = re.match(r"(.+?)-\d{5}-of-\d{5}", stem)
    if not shard:
        return None, ""
    rest, _, split = shard[1].rpartition("-")
    return (None, "") if split.lower() in _FILLERS else (split, rest)


def _words(name: str) -> tuple[str | None, str]:
    """The one split among the words of a name, and its other words; the whole name where there is none."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    words = [word for word in re.split(r"[\W_]+", spaced.lower()) if word and not word.isdigit()]
    # trainset and train2 are of train
    plain = [re.sub(r"(?<=.)(set|data|s)?\d*$", "", word) for word in words]
    found = {SPLITS[word] for word in plain if word in SPLITS}
    if len(found) != 1:
        return None, name
    rest = [word for word, known in zip(words, plain, strict=True) if known not in (*_FILLERS, *SPLITS)]
    return found.pop(), "-".join(rest)


def _declared(card: StoredFile, files: Sequence[StoredFile]) -> Iterator[Place]:
    """Files that the data card of a hub folder assigns to configurations and splits.

    `data_files` are patterns below `data_dir`. Without them all files there are meant, by their names.
    """
    for entry in _configurations(card):
        name = entry.get("config_name", "default")
        folder = str(entry.get("data_dir") or "").removeprefix(".").strip("/")
        folder = f"{folder}/" if folder else ""
        listed = entry.get("data_files")
        if isinstance(listed, dict):
            listed = [{"split": split, "path": path} for split, path in listed.items()]
        elif isinstance(listed, str) or (listed and isinstance(listed[0], str)):
            listed = [{"split": "train", "path": listed}]
        elif not listed and folder:
            inside = [file for file in files if file.name.startswith(folder)]
            if not inside:
                yield Place(name, "train", folder)
            splits = [place_of(replace(file, name=file.name.removeprefix(folder))).split for file in inside]
            for file, split in zip(inside, splits, strict=True):
                if split or not any(splits):
                    yield Place(name, split or "train", file)
        for item in listed or ():
            for pattern in [item["path"]] if isinstance(item["path"], str) else item["path"]:
                pattern = folder + pattern.removeprefix("./")
                matches = re.compile(glob_translate(pattern)).match
                fitting: list[StoredFile | str] = [file for file in files if matches(file.name)]
                for found in fitting or [pattern]:
                    yield Place(name, canonical(item.get("split", "train")), found)


def _configurations(card: StoredFile) -> list[dict[str, Any]]:
    """`configs` in the front matter of a README; none where it has no valid one."""
    with card.stream() as stream:
        text = stream.read(2**20).decode(errors="replace")
    front = re.match(r"---\r?\n(.*?)\r?\n---", text, flags=re.DOTALL)
    try:
        content = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return []
    configs = content.get("configs") if isinstance(content, dict) else None
    return [entry for entry in configs or () if isinstance(entry, dict)]
