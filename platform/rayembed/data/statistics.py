"""What a data card says about the rows of a source, gathered piece by piece."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import py3langid
import pyarrow as pa
import pyarrow.compute as pc

from rayembed.records.schema import document_id

PERCENTILES = (5, 50, 95, 100)
TEXT_COLUMNS = ("query", "positives", "negatives", "text", "sentence1", "sentence2")
LANGUAGE_SAMPLE = 200  # texts of each piece
SHORTEST_GUESSED = 40  # characters; the language of less is a lottery
SKETCH_SIZE = 65_536


@dataclass
class Statistics:
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
    def of(tables: Iterable[pa.Table]) -> "Statistics":
        """Statistics of tables or record batches of one layout, looked at one after the other."""
        result = Statistics()
        for table in tables:
            result.add(_of_table(table, sample=result.rows < LANGUAGE_SAMPLE))
        return result

    def add(self, other: "Statistics") -> None:
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


def _of_table(table: pa.Table, *, sample: bool) -> Statistics:
    columns = [name for name in TEXT_COLUMNS if name in table.column_names]
    labels = pc.value_counts(table["label"]).to_pylist() if "label" in table.column_names else []
    return Statistics(
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
