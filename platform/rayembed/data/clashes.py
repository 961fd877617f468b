"""Which rows must not meet in a batch whose rows take each other's documents for negatives.

Two rows clash when they share a text, as query or as positive, or belong to one cluster of a source: the
positive of one would then be a false negative of the other. Every text and cluster is named by a 64-bit key.
Keys that only one row has can never clash, so only the shared ones are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

KEYS_PER_PASS = 1 << 23

KeyReader = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Reads a source's keys in pieces: row numbers and keys (uint64), one of each for every key of every row, in
ascending order of rows; called several times."""


@dataclass(frozen=True)
class SharedKeys:
    """Keys of a source's rows that other rows of the blend have as well.

    Attributes:
        starts: int64 [rows + 1]; the keys of row r are keys[starts[r] : starts[r + 1]], none for most rows.
        keys: int32, numbered across the blend.
    """

    starts: np.ndarray
    keys: np.ndarray

    def has_any(self) -> np.ndarray:
        """Whether each row has a shared key: bool [rows]."""
        return self.starts[1:] > self.starts[:-1]

    def of(self, row: int) -> list[int]:
        """Shared keys of one row."""
        return self.keys[self.starts[row] : self.starts[row + 1]].tolist()


def find_shared_keys(readers: Sequence[KeyReader], num_rows: Sequence[int]) -> list[SharedKeys]:
    """Shared keys of every source.

    The keys are gone through in passes of about `KEYS_PER_PASS`, so that memory does not grow with them; a
    pass sees all occurrences of its keys.
    """
    total = sum(keys.size for reader in readers for _, keys in reader())
    passes = np.uint64(max(-(-total // KEYS_PER_PASS), 1))
    first_row = np.cumsum([0, *num_rows])
    found: list[tuple[np.ndarray, np.ndarray]] = []
    num_shared = 0
    for number in range(int(passes)):
        rows, keys = _one_pass(readers, first_row, passes, np.uint64(number))
        rows, numbers = _shared(rows, keys)
        found.append((rows, (numbers + num_shared).astype(np.int32)))
        num_shared += int(numbers[-1]) + 1 if numbers.size else 0
    all_rows = np.concatenate([rows for rows, _ in found])
    all_keys = np.concatenate([keys for _, keys in found])
    by_row = np.argsort(all_rows, kind="stable")
    all_rows, all_keys = all_rows[by_row], all_keys[by_row]
    return [
        _of_source(all_rows, all_keys, int(first_row[index]), num_rows[index])
        for index in range(len(num_rows))
    ]


def _one_pass(
    readers: Sequence[KeyReader], first_row: np.ndarray, passes: np.uint64, number: np.uint64
) -> tuple[np.ndarray, np.ndarray]:
    """Rows, numbered across the blend, and keys of the pass."""
    rows, keys = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for index, reader in enumerate(readers):
        for piece_rows, piece_keys in reader():
            chosen = piece_keys % passes == number
            rows.append(piece_rows[chosen].astype(np.int64) + first_row[index])
            keys.append(piece_keys[chosen])
    return np.concatenate(rows), np.concatenate(keys)


def _shared(rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, number of the key) wherever two rows or more have the key."""
    # Row 0 has keys 7 and 9, row 1 has key 7 twice, row 2 has key 5:
    #   sorted by key     keys 5 7 7 7 9, rows 2 0 1 1 0
    #   repeats left out  rows 2 0 1 0, of which 2, 0 and the last 0 begin a run: runs 0 1 1 2
    #   runs of two rows  rows 0 1, both with shared key number 0
    by_key = np.argsort(keys, kind="stable")
    rows, keys = rows[by_key], keys[by_key]
    same_key = np.concatenate([[False], keys[1:] == keys[:-1]]) if keys.size else np.empty(0, bool)
    repeated = same_key & np.concatenate([[False], rows[1:] == rows[:-1]]) if keys.size else same_key
    rows, starts_run = rows[~repeated], ~same_key[~repeated]
    run = np.cumsum(starts_run) - 1
    shared = np.bincount(run)[run] > 1 if run.size else starts_run
    _, numbers = np.unique(run[shared], return_inverse=True)
    return rows[shared], numbers


def _of_source(rows: np.ndarray, keys: np.ndarray, first_row: int, num_rows: int) -> SharedKeys:
    low, high = np.searchsorted(rows, [first_row, first_row + num_rows])
    counts = np.bincount(rows[low:high] - first_row, minlength=num_rows)
    starts = np.zeros(num_rows + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return SharedKeys(starts, keys[low:high])
