"""The data card: what a built source holds, where it comes from and under which licence."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayembed.data.sources.base import BuiltInSource
from rayembed.paths import atomic_write, file_digest

CARD_FILE = "card.json"
PERCENTILES = (5, 50, 95, 100)


def make_card(
    source: BuiltInSource, tables: Mapping[str, pa.Table], dropped: Mapping[str, int], folder: Path
) -> dict:
    """Describe the split files in `folder`: counts, lengths in words, classes, origin, licence, digests."""
    everything = pa.concat_tables(tables.values())
    card = {
        "name": source.name,
        "title": source.title,
        "kind": source.kind,
        "task_type": source.task_type,
        "origin": source.origin,
        "licence": source.licence,
        "terms": source.terms,
        "builder_version": source.version,
        "rows": {split: table.num_rows for split, table in tables.items()},
        "dropped": dict(dropped),
        "words": _word_percentiles(everything),
    }
    if source.kind == "labels":
        card["labels"] = {
            split: dict(sorted(Counter(table["label"].to_pylist()).items()))
            for split, table in tables.items()
        }
    card["sha256"] = {f"{split}.parquet": file_digest(folder / f"{split}.parquet") for split in tables}
    return card


def write_card(card: dict, folder: Path) -> None:
    """Write `card` into the source's folder."""
    atomic_write(folder / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def read_card(folder: Path) -> dict | None:
    """The card of a source's folder; None where there is none or it is not readable."""
    try:
        return json.loads((folder / CARD_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _word_percentiles(table: pa.Table) -> dict[str, dict[str, int]]:
    columns = [name for name in ("query", "positives", "text", "sentence1") if name in table.column_names]
    lengths = {name: _word_counts(table[name].to_pylist()) for name in columns}
    return {
        name: {f"p{share}": int(np.percentile(counts, share)) for share in PERCENTILES}
        for name, counts in lengths.items()
    }


def _word_counts(values: list[str] | list[list[str]]) -> list[int]:
    texts = (text for value in values for text in ([value] if isinstance(value, str) else value))
    return [len(text.split()) for text in texts]
