"""The lanes that a rank read -> what it feeds to the model."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from rayembed.contract.packing import PackedBatch, pack_flat


@dataclass(frozen=True)
class TrainingBatch:
    """One worker's part of a global batch.

    Shapes: Q queries and E documents of this worker, K documents and B queries of all workers, worker by
        worker.

    Attributes:
        step: step of the stage.
        packed: this worker's Q queries followed by its E documents.
        num_queries: Q.
        target_Q: position of each query's positive among the K documents.
        allowed_QK: which documents compete for each query; see `candidate_mask`.
        competing_QB: which other queries compete for the positive of each query, leaving out those that it
            answers as well; see `document_to_query`.
        document_counts: E of each worker, in rank order; they add up to K.
        query_counts: Q of each worker, in rank order; they add up to B.
        source_Q: position of each row's source in the blend.
        rows: position of each row in its source, to name a bad batch.
        teacher_QK: a teacher's scores of the row's own documents, not a number elsewhere; None where no row
            of this worker carries scores.
        teacher_packed: the same texts as `packed` as a teacher reads them; None: `packed` itself.
    """

    step: int
    packed: PackedBatch
    num_queries: int
    target_Q: torch.Tensor
    allowed_QK: torch.Tensor
    competing_QB: torch.Tensor
    document_counts: list[int]
    query_counts: list[int]
    source_Q: torch.Tensor
    rows: list[int]
    teacher_QK: torch.Tensor | None = None
    teacher_packed: PackedBatch | None = None

    def to(self, device: torch.device | str) -> "TrainingBatch":
        """Copy with all tensors on `device`."""
        return replace(
            self,
            packed=self.packed.to(device),
            target_Q=self.target_Q.to(device, non_blocking=True),
            allowed_QK=self.allowed_QK.to(device, non_blocking=True),
            competing_QB=self.competing_QB.to(device, non_blocking=True),
            source_Q=self.source_Q.to(device, non_blocking=True),
            teacher_QK=None if self.teacher_QK is None else self.teacher_QK.to(device, non_blocking=True),
            teacher_packed=None if self.teacher_packed is None else self.teacher_packed.to(device),
        )


def to_training_batch(step: int, lanes: pa.Table, *, rank: int, world_size: int) -> TrainingBatch:
    """Tensors of one rank.

    Args:
        step: step of the stage.
        lanes: the rank's lanes as `lanes.LANE_SCHEMA` says: rank, rank + world_size, ...
        rank: which rank.
        world_size: number of ranks, at most that of lanes.
    """
    places = _Places(lanes, world_size)
    positives, negatives = (_nested(lanes[name], places.document_K) for name in ("positives", "negatives"))
    in_batch_B = torch.from_numpy(places.in_batch_B)
    source_Q = _flat(lanes["source"]).astype(np.int64)
    first_row = sum(places.query_counts[:rank])
    in_batch_Q = in_batch_B[first_row : first_row + len(source_Q)]
    competing_QB = in_batch_Q.unsqueeze(1) & in_batch_B.unsqueeze(0)
    for query, answered in enumerate(_nested(lanes["answered"], places.row_B)):
        competing_QB[query, answered] = False
    return TrainingBatch(
        step=step,
        packed=_packed(lanes, ""),
        num_queries=len(source_Q),
        target_Q=torch.tensor([row[0] for row in positives]),
        allowed_QK=candidate_mask(len(places.document_K), positives, negatives, in_batch_Q.tolist()),
        competing_QB=competing_QB,
        document_counts=places.document_counts,
        query_counts=places.query_counts,
        source_Q=torch.from_numpy(source_Q),
        rows=_flat(lanes["row"]).tolist(),
        teacher_QK=_teacher_scores(lanes["teacher_scores"], positives, negatives, len(places.document_K)),
        teacher_packed=None if lanes["teacher_queries"].null_count else _packed(lanes, "teacher_"),
    )


def candidate_mask(
    num_documents: int,
    positives: list[list[int]],
    negatives: list[list[int]],
    in_batch: list[bool],
) -> torch.Tensor:
    """Which documents compete for each query.

    A row with in-batch negatives competes against every document of the batch; a row without, against its own
    negatives only. The first positive is the target. Further positives of the row are known to be right, so
    they are never negatives. Documents are identified by position in the batch's list of distinct documents,
    so a text that is a positive of the row cannot come back as its negative under another row's name.

    Args:
        num_documents: K.
        positives: for each query its positives' document positions, the target first.
        negatives: for each query its hard negatives' document positions.
        in_batch: for each query whether the other rows' documents are negatives.

    Returns:
        Boolean tensor (Q, K), True at the target and at every negative.
    """
    allowed_QK = torch.tensor(in_batch).unsqueeze(1).expand(-1, num_documents).clone()
    for row, (own_positives, own_negatives) in enumerate(zip(positives, negatives, strict=True)):
        allowed_QK[row, own_negatives] = True
        allowed_QK[row, own_positives] = False
        allowed_QK[row, own_positives[0]] = True
    return allowed_QK


def _packed(lanes: pa.Table, reader: str) -> PackedBatch:
    """Queries and documents of a rank's lanes as the columns hold them whose names begin with `reader`."""
    texts = [_combined(lanes[f"{reader}{name}"]).flatten() for name in ("queries", "documents")]
    parts = (
        [text.flatten().to_numpy() for text in texts],
        [text.value_lengths().to_numpy() for text in texts],
        [_flat(lanes[f"{reader}{name}"]) for name in ("query_starts", "document_starts")],
    )
    return pack_flat(*(torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in parts))


class _Places:
    """Where the documents and rows of a step stand among the gathered vectors.

    Three lanes of 2, 1 and 2 documents on two ranks are gathered in the order 0, 2, 1. The documents of lane
    2, positions 3 and 4, move to 2 and 3, and that of lane 1, position 2, to 4: document_K = [0, 1, 4, 2, 3].
    """

    def __init__(self, lanes: pa.Table, world_size: int):
        counts_L, in_batch = (
            lanes[name][0].values.to_numpy(False) for name in ("document_counts", "in_batch")
        )
        num_lanes, num_rows = len(counts_L), len(in_batch)
        ranks = [np.arange(rank, num_lanes, world_size) for rank in range(world_size)]
        order_L = np.concatenate(ranks)
        rows = np.concatenate([np.arange(lane, num_rows, num_lanes) for lane in order_L])
        shift_L = np.empty(num_lanes, np.int64)
        shift_L[order_L] = np.cumsum(counts_L[order_L]) - counts_L[order_L]
        shift_L -= np.cumsum(counts_L) - counts_L
        row_counts_L = -(-(num_rows - np.arange(num_lanes)) // num_lanes)
        self.document_K = np.repeat(shift_L, counts_L) + np.arange(counts_L.sum())
        self.row_B = np.empty(num_rows, np.int64)
        self.row_B[rows] = np.arange(num_rows)
        self.in_batch_B = in_batch[rows]
        self.document_counts = [int(counts_L[mine].sum()) for mine in ranks]
        self.query_counts = [int(row_counts_L[mine].sum()) for mine in ranks]


def _combined(column: pa.ChunkedArray) -> pa.ListArray:
    return column.combine_chunks()


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """What is in the lists of all lanes."""
    return _combined(column).flatten().to_numpy()


def _nested(column: pa.ChunkedArray, place: np.ndarray) -> list[list[int]]:
    """For each query of all lanes its list of positions, each replaced by what `place` has there."""
    lists = _combined(column).flatten()
    ends = np.cumsum(lists.value_lengths().to_numpy())
    return [part.tolist() for part in np.split(place[lists.flatten().to_numpy()], ends[:-1])]


def _teacher_scores(
    column: pa.ChunkedArray, positives: list[list[int]], negatives: list[list[int]], num_documents: int
) -> torch.Tensor | None:
    scores = _combined(column).flatten().to_pylist()
    if not any(scores):
        return None
    teacher_QK = torch.full((len(scores), num_documents), torch.nan)
    for query, values in enumerate(scores):
        if values:
            teacher_QK[query, [positives[query][0], *negatives[query]]] = torch.tensor(values)
    return teacher_QK
