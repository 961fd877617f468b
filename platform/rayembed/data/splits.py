"""Fixed splits: a group of related rows falls into one split, always the same."""

import hashlib
from typing import Literal

Split = Literal["train", "dev", "test"]

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def split_of(group: str) -> Split:
    """Split of a group key by its SHA-256 modulo 10: 0 is test, 1 is dev, the other eight are train."""
    bucket = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "dev"}.get(bucket, "train")  # type: ignore[return-value]
