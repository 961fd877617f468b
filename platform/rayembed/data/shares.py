"""How many rows each source gives to a batch."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Batching = Literal["blended", "homogeneous", "interleaved"]


def shares(weights: Sequence[float | None], num_rows: Sequence[int], size_temperature: float) -> np.ndarray:
    """Share of each source among the rows of a blend: float [sources], adding up to one.

    A source has its declared weight; without one it has rows ** (1 / size_temperature), so that 1 follows
    the sizes and a high temperature treats all sources alike.
    Source: temperature-based sampling as in arXiv 1907.05019.
    """
    parts = [
        float(rows) ** (1 / size_temperature) if weight is None else weight
        for weight, rows in zip(weights, num_rows, strict=True)
    ]
    return np.array(parts) / sum(parts)


def unit_size(batching: Batching, batch_size: int, sub_batch_size: int | None) -> int:
    """Rows that come from one source together.

    blended mixes row by row, as NV-Embed does; homogeneous gives a batch one source, as SFR-Embedding does;
    interleaved lays sub-batches of one source each side by side, as VLM2Vec-V2 does.
    """
    if batching == "interleaved":
        assert sub_batch_size is not None, "checked by the stage's configuration"
        return sub_batch_size
    return batch_size if batching == "homogeneous" else 1


def rows_of_sources(owed: np.ndarray, available: np.ndarray, batch_size: int, unit: int) -> np.ndarray:
    """Rows of each source in the next batch: int [sources].

    They are whole units and add up to the batch, or to less where all sources together have too few rows.

    Args:
        owed: rows that each source is due by the end of this batch and did not get in earlier ones.
        available: rows that each source has left, infinite where it is walked over again and again.
        batch_size: rows of the batch.
        unit: rows that come from one source together.
    """
    owed_units, available_units = owed / unit, np.floor(available / unit)
    units = np.clip(np.floor(owed_units), 0, available_units)
    missing = batch_size // unit - int(units.sum())
    while missing < 0:
        surplus = np.where(units > 0, units - owed_units, -np.inf)
        units[int(np.argmax(surplus))] -= 1
        missing += 1
    while missing > 0 and (units < available_units).any():
        by_debt = np.argsort(units - owed_units, kind="stable")
        chosen = by_debt[(units < available_units)[by_debt]][:missing]
        units[chosen] += 1
        missing -= len(chosen)
    return units.astype(int) * unit
