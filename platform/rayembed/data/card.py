"""The data card: what a built source holds, where it comes from and under which licence."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import py3langid
import pyarrow as pa
import pyarrow.compute as pc

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_write, fetch, file_digest
from rayembed.records.schema import document_id

CARD_FILE = "card.json"
CARD_VERSION = 3  # raised when cards say something new
SKETCH_FILE = "texts.npz"
MOST_LABELS = 200  # that a card lists one by one
PERCENTILES = (5, 50, 95, 100)
TEXT_COLUMNS = ("query", "positives", "negatives", "text", "sentence1", "sentence2")
LANGUAGE_SAMPLE = 200  # texts of each piece
SHORTEST_GUESSED = 40  # characters; the language of less is a lottery
SKETCH_SIZE = 65_536


@dataclass
class SourceStatistics:
    """Counts of one piece of a source, or of several that were added up.

    Attributes:
        rows: rows.
        words: column -> number of words of a text -> texts of that length.
        languages: column -> ISO 639 code -> texts of the sample that were guessed to be in it.
        labels: class -> rows.
        texts: the SKETCH_SIZE smallest content hashes of the texts, sorted; all where there are fewer.
    """

    rows: int = 0
    words: dict[str, Counter[int]] = field(default_factory=dict)
    languages: dict[str, Counter[str]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    texts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))

    @staticmethod
    def of(tables: Iterable[pa.Table]) -> "SourceStatistics":
        """Statistics of tables or record batches of one layout, looked at one after the other."""
        result = SourceStatistics()
        for table in tables:
            result.add(_of_table(table, sample=result.rows < LANGUAGE_SAMPLE))
        return result

    def add(self, other: "SourceStatistics") -> None:
        """Take the counts of another piece in."""
        self.rows += other.rows
        self.labels += other.labels
        self.texts = sketch(np.concatenate([self.texts, other.texts]))
        for column, counts in other.words.items():
            self.words.setdefault(column, Counter()).update(counts)
        for column, codes in other.languages.items():
            self.languages.setdefault(column, Counter()).update(codes)

    def word_percentiles(self) -> dict[str, dict[str, int]]:
        """Percentiles of the number of words, for each column that has texts."""
        return {column: _percentiles(counts) for column, counts in self.words.items() if counts}

    def language_shares(self) -> dict[str, dict[str, float]]:
        """Column -> the languages that make at least 5 % of its sample, most frequent first."""
        return {
            column: {
                code: round(count / codes.total(), 3)
                for code, count in codes.most_common()
                if count >= 0.05 * codes.total()
            }
            for column, codes in self.languages.items()
            if codes
        }


def sketch(hashes: np.ndarray) -> np.ndarray:
    """The smallest distinct hashes: a sample that is the same for equal texts wherever they are."""
    return np.unique(hashes)[:SKETCH_SIZE]


def shared_share(texts: np.ndarray, others: np.ndarray) -> float:
    """Share of the texts behind one sketch that are also behind the other; exact where both are complete."""
    complete = [len(part) < SKETCH_SIZE for part in (texts, others)]
    bounds = [part[-1] for part, whole in zip((texts, others), complete, strict=True) if not whole]
    if bounds:
        texts, others = (part[part <= min(bounds)] for part in (texts, others))
    return len(np.intersect1d(texts, others, assume_unique=True)) / len(texts) if len(texts) else 0.0


def _of_table(table: pa.Table, *, sample: bool) -> SourceStatistics:
    columns = [name for name in TEXT_COLUMNS if name in table.column_names]
    labels = pc.value_counts(table["label"]).to_pylist() if "label" in table.column_names else []
    return SourceStatistics(
        rows=table.num_rows,
        words={name: _word_counts(table[name]) for name in columns},
        languages={name: _languages(table[name]) for name in columns} if sample else {},
        labels=Counter({entry["values"]: entry["counts"] for entry in labels}),
        texts=sketch(text_hashes(table)),
    )


def text_hashes(table: pa.Table) -> np.ndarray:
    """Content hashes of all texts of a table of any layout, uint64."""
    if "document_ids" in table.column_names:
        identifiers = table["query_id"].to_pylist() + pc.list_flatten(table["document_ids"]).to_pylist()
    elif "text_id" in table.column_names:
        identifiers = table["text_id"].to_pylist()
    else:
        identifiers = [
            document_id(text) for side in ("sentence1", "sentence2") for text in table[side].to_pylist()
        ]
    return np.array([int(identifier, 16) for identifier in identifiers], dtype=np.uint64)


def _word_counts(column: pa.ChunkedArray) -> Counter[int]:
    counts = pc.count_substring_regex(_texts(column), r"\S+").to_numpy(zero_copy_only=False)
    lengths, numbers = np.unique(counts, return_counts=True)
    return Counter(dict(zip(lengths.tolist(), numbers.tolist(), strict=True)))


def _percentiles(counts: Counter[int]) -> dict[str, int]:
    lengths = sorted(counts)
    reached = np.cumsum([counts[length] for length in lengths])
    return {
        f"p{share}": lengths[int(np.searchsorted(reached, share / 100 * reached[-1]))]
        for share in PERCENTILES
    }


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(column) if pa.types.is_list(column.type) else column


def _languages(column: pa.ChunkedArray) -> Counter[str]:
    sample = _texts(column).slice(0, LANGUAGE_SAMPLE).to_pylist()
    return Counter(py3langid.classify(text)[0] for text in sample if len(text) >= SHORTEST_GUESSED)


def make_card(
    description: Mapping[str, Any],
    statistics: Mapping[str, SourceStatistics],
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
    everything = SourceStatistics()
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
        return json.loads(fetch(folder / CARD_FILE).read_text())
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
        total = SourceStatistics()
        for split in stored.files:
            total.add(SourceStatistics(texts=stored[split]))
    return total.texts
