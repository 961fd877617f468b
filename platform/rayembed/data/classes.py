"""Rows of a labelled source by class, from which every step draws other documents for its rows.

The arrays are mapped files next to the rows, so the memory of those who draw does not grow with the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayembed.common.paths import atomic_file, fetch

_CLASS_OF_ROW, _MEMBERS, _STARTS = "class-of-row.npy", "class-members.npy", "class-starts.npy"


@dataclass(frozen=True)
class Classes:
    """Which rows are of which class.

    Attributes:
        of_row: class of each row: int32 [rows].
        members: rows of class 0, then those of class 1 and so on, ascending in each: int64 [rows].
        starts: the rows of class c are members[starts[c] : starts[c + 1]]: int64 [classes + 1].
        texts: of each class, where these are the documents; None: documents are other rows.
    """

    of_row: np.ndarray
    members: np.ndarray
    starts: np.ndarray
    texts: tuple[str, ...] | None

    @classmethod
    def open(cls, folder: Path, texts: Sequence[str] | None) -> "Classes":
        """Map what `write_classes` wrote."""
        of_row, members, starts = (
            np.load(fetch(folder / name), mmap_mode="r", allow_pickle=False)
            for name in (_CLASS_OF_ROW, _MEMBERS, _STARTS)
        )
        return cls(of_row, members, starts, tuple(texts) if texts is not None else None)

    def draw(self, row: int, negatives: int, generator: np.random.Generator) -> list[int]:
        """A positive and negatives of a row; fewer of these only where the other classes have fewer.

        NV-Embed: the positive is a random other text of the class, or its name, the negatives are random
        texts of other classes, or their names.

        Returns:
            Numbers of rows, or of classes where their texts are the documents; the positive first.
        """
        own = int(self.of_row[row])
        if self.texts is not None:
            others = generator.choice(len(self.texts) - 1, min(negatives, len(self.texts) - 1), replace=False)
            return [own, *(others + (others >= own)).tolist()]
        start, stop = int(self.starts[own]), int(self.starts[own + 1])
        size, outside = stop - start, len(self.members) - (stop - start)
        place = int(np.searchsorted(self.members[start:stop], row))
        positive = start + (place + int(generator.integers(1, size))) % size
        # Members of a class lie side by side, so all other classes are what is outside one slice.
        others = generator.choice(outside, min(negatives, outside), replace=False)
        places = [positive, *(others + size * (others >= start)).tolist()]
        return self.members[places].tolist()


def write_classes(folder: Path, of_row: np.ndarray) -> None:
    """Write what `Classes.open` maps, from the class of each row: int32 [rows], no class without a row."""
    arrays = {
        _CLASS_OF_ROW: of_row,
        _MEMBERS: np.argsort(of_row, kind="stable"),
        _STARTS: np.concatenate([[0], np.cumsum(np.bincount(of_row))]),
    }
    for name, values in arrays.items():
        with atomic_file(folder / name) as file, file.open("wb") as stream:
            np.save(stream, values, allow_pickle=False)
