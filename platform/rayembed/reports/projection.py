"""Vectors in two dimensions."""

import numpy as np


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """First two principal components, each axis stretched to [-1, 1]; (N, D) -> (N, 2).

    The sign of each axis is chosen so that its largest coordinate is positive: the picture is repeatable.
    """
    centred = np.asarray(vectors, dtype=np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates = np.zeros((len(centred), 2))
    width = min(2, len(singular))
    coordinates[:, :width] = left[:, :width] * singular[:width]
    largest = coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]]
    coordinates *= np.where(largest < 0, -1.0, 1.0)
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    half_width = (high - low) / 2
    # An axis without any spread is rounding noise and stays a line.
    return (coordinates - (low + high) / 2) / np.maximum(half_width, max(half_width.max() * 1e-6, 1e-12))
