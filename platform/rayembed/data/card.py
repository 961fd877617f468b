"""The data card: what a built source holds, where it comes from and under which licence."""

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_write, file_digest
from rayembed.data.statistics import Statistics, shared_share

CARD_FILE = "card.json"
CARD_VERSION = 3  # raised when cards say something new
SKETCH_FILE = "texts.npz"
MOST_LABELS = 200  # that a card lists one by one


def make_card(
    description: Mapping[str, Any],
    statistics: Mapping[str, Statistics],
    dropped: Mapping[str, int],
    folder: Path,
) -> dict[str, Any]:
    """Describe the split files in `folder`, and store there what overlaps are computed from.

    Args:
        description: name, title, kind, task_type, origin, licence and whatever else tells the source apart.
        statistics: of each split.
        dropped: reason -> rows that were left out.
        folder: holds the files of the source and nothing else.
    """
    everything = Statistics()
    for part in statistics.values():
        everything.add(part)
    card = {
        **description,
        "card_version": CARD_VERSION,
        "rows": {split: part.rows for split, part in statistics.items()},
        "dropped": dict(dropped),
        "words": everything.word_percentiles(),
        "languages": everything.language_shares(),
        "shared_between_splits": {
            f"{first} in {second}": shared_share(statistics[first].texts, statistics[second].texts)
            for first, second in combinations(statistics, 2)
        },
    }
    if everything.labels:
        card["classes"] = len(everything.labels)
        card["labels"] = {
            split: dict(sorted(part.labels.most_common(MOST_LABELS))) for split, part in statistics.items()
        }
    with (folder / SKETCH_FILE).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{split: part.texts for split, part in statistics.items()})
    card["sha256"] = {path.name: file_digest(path) for path in sorted(folder.glob("*.parquet"))}
    return card


def write_card(card: dict[str, Any], folder: Path) -> None:
    """Write `card` into the source's folder."""
    atomic_write(folder / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of a source's folder; None where there is none or it is not readable."""
    try:
        return json.loads((folder / CARD_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def full_card(data_dir: Path, name: str) -> dict[str, Any]:
    """The card of a built source with its overlap with the other sources in `data_dir` as they are now.

    Raises:
        DataError: the source is not built.
    """
    card = read_card(data_dir / name)
    if card is None:
        built = ", ".join(built_names(data_dir)) or "none"
        raise DataError(
            f"{name} is not built in {data_dir}; built: {built}. Build it with `rayembed data build`"
        )
    texts = _sketch(data_dir / name)
    shared = {
        other: shared_share(texts, _sketch(data_dir / other))
        for other in built_names(data_dir)
        if other != name
    }
    return card | {"shared_with": {other: share for other, share in shared.items() if share}}


def built_names(data_dir: Path) -> list[str]:
    """Names of all sources in `data_dir` that have a card."""
    return sorted(path.parent.name for path in data_dir.glob(f"*/{CARD_FILE}") if path.parent.name[0] != ".")


def readable_card(card: Mapping[str, Any]) -> str:
    """A card as a few lines for a person."""
    rows = ", ".join(f"{count:,} {split}" for split, count in card["rows"].items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in card["dropped"].items() if count)
    lines = [
        ("title", card["title"]),
        ("rows", f"{rows} ({card['kind']}, {card['task_type']})"),
        ("left out", dropped or "none"),
        *(
            (f"words, {column}", ", ".join(f"{share} {length:,}" for share, length in percentiles.items()))
            for column, percentiles in card["words"].items()
        ),
        *((f"language, {column}", _shares(shares)) for column, shares in card["languages"].items()),
        *([("classes", str(card["classes"]))] if "classes" in card else []),
        ("in two splits", _shares(card["shared_between_splits"]) or "no text"),
        *(
            [("shared with", _shares(card["shared_with"]) or "no other source")]
            if "shared_with" in card
            else []
        ),
        ("origin", card["origin"]),
        ("licence", f"{card['licence']}. {card.get('terms', '')}".rstrip()),
    ]
    return "\n".join([card["name"], *(f"  {name:<20} {value}" for name, value in lines)])


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share)


def _sketch(folder: Path) -> np.ndarray:
    """Sketch of all splits of a source; of none where it was built before there were sketches."""
    if not (folder / SKETCH_FILE).is_file():
        return np.empty(0, dtype=np.uint64)
    with np.load(folder / SKETCH_FILE, allow_pickle=False) as stored:
        total = Statistics()
        for split in stored.files:
            total.add(Statistics(texts=stored[split]))
    return total.texts
