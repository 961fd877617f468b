"""Hard negatives: search with a teacher, then filters that keep false negatives out."""

from rayembed.mining.bm25 import mine_bm25
from rayembed.mining.report import MiningReport

__all__ = ["MiningReport", "mine_bm25"]
