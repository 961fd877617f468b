"""One contrastive training step on one rank: encode, gather, compare, and go back.

Every rank scores its own queries against the documents of all ranks; `distributed` says why the gradient is
that of the whole batch. Chunks: GradCache, arXiv 2101.06983, section 3.2.

Shapes: Q queries, E documents and N = Q + E texts of this rank, K documents of all ranks, S sources of the
blend, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rayembed.config.stage import StageConfig
from rayembed.contract.packing import PackedBatch, split_packed
from rayembed.contract.ranges import VectorRanges
from rayembed.data.collate import TrainingBatch
from rayembed.losses import LossInputs, StateMatchingConfig, row_losses
from rayembed.losses.measures import row_measures, uniformity
from rayembed.training.distillation import TaughtModel
from rayembed.training.distributed import gather_vectors, largest_over_ranks, world_size
from rayembed.training.resources import StepTimer

if TYPE_CHECKING:
    from rayembed.training.stage import Stage  # which needs Ray; a step does not

UNIFORMITY_DOCUMENTS = 256  # of a batch that enter the measure, whose cost grows with their square


class BadBatch(Exception):
    """A value of the step is not finite on some rank; raised on all ranks, and nothing was changed."""


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves behind; tensors, so that nothing waits for the device.

    Attributes:
        loss: scalar; averaged over ranks it is the mean over the global batch.
        sums_S: for each measure the sum over this rank's rows of each source.
        counts_S: for each measure the rows of each source that it is a mean of.
        uniformity: of documents of the whole batch, the same on every rank; None where there are no vectors.
    """

    loss: torch.Tensor
    sums_S: dict[str, torch.Tensor]
    counts_S: dict[str, torch.Tensor]
    uniformity: torch.Tensor | None = None


class Step(Protocol):
    """A stage's way from a batch to gradients."""

    def backward(self, wrapped: Any, batch: TrainingBatch, timer: StepTimer) -> StepOutput:
        """Leave the gradient in the parameters; called by all ranks."""

    def forward(self, wrapped: Any, batch: PackedBatch) -> torch.Tensor:
        """An output of the model that all its trainable parameters take part in; called by all ranks."""


class ContrastiveStep:
    """The step of contrastive stages, and of SimCSE, where each text is its own document."""

    def __init__(self, stage: "Stage", device: torch.device):
        self._settings = stage.settings
        self._device = device
        self._budget = stage.training.chunk_tokens
        self._ranges = stage.model.vector_ranges() if stage.settings.quantisation else None

    def backward(self, wrapped: Any, batch: TrainingBatch, timer: StepTimer) -> StepOutput:
        """Leave the gradient in the parameters; called by all ranks."""
        batch = batch.to(self._device)
        with timer.phase("teacher"):
            teacher_ND, model = None, wrapped.module
            if isinstance(model, TaughtModel):
                teacher_ND = model.taught_vectors(batch.teacher_packed or batch.packed, self._budget)

        def loss_of(vectors_ND: torch.Tensor) -> StepOutput:
            return contrastive_loss(vectors_ND, batch, self._settings, timer, teacher_ND, self._ranges)

        return encode_and_backward(wrapped, batch.packed, loss_of, timer, self._budget)

    def forward(self, wrapped: Any, batch: PackedBatch) -> torch.Tensor:
        """Vectors of the batch; called by all ranks."""
        return wrapped(batch.to(self._device))


def encode_and_backward(
    wrapped: Any,
    packed: PackedBatch,
    loss_of: Callable[[torch.Tensor], StepOutput],
    timer: StepTimer,
    tokens_per_chunk: int | None = None,
) -> StepOutput:
    """Leave the gradient of a loss over the vectors of all texts in the parameters; called by all ranks.

    Args:
        wrapped: the embedding model, wrapped by DeepSpeed.
        packed: this rank's texts.
        loss_of: vectors (N, D) -> loss; called once, by all ranks.
        timer: gets the phases forward and backward.
        tokens_per_chunk: most tokens that are encoded at a time; None encodes all at once.
    """
    chunks = [packed] if tokens_per_chunk is None else split_packed(packed, tokens_per_chunk)
    rounds = 1 if tokens_per_chunk is None else largest_over_ranks(len(chunks))
    if rounds > 1:
        return _backward_in_chunks(wrapped, packed, chunks, rounds, loss_of, timer)
    with timer.phase("forward"):
        vectors_ND = wrapped(packed)
    output = loss_of(vectors_ND)
    with timer.phase("backward"):
        wrapped.backward(spoiled_unless_finite(output.loss))
    return replace(output, loss=output.loss.detach())


def _backward_in_chunks(
    wrapped: Any,
    packed: PackedBatch,
    chunks: list[PackedBatch],
    rounds: int,
    loss_of: Callable[[torch.Tensor], StepOutput],
    timer: StepTimer,
) -> StepOutput:
    """GradCache: encode in chunks without a graph, take the gradient of every vector, encode again with one.

    Three texts a, b, c of 2, 9 and 5 tokens, at most 9 tokens a chunk. Packing puts the longest first, so the
    chunks are [b] and [c, a] and the packed row is b c a:
        order_N = [2, 0, 1]          place of a, b, c in the packed row
        encoded = [v_b] [v_c, v_a]   cat(encoded)[order_N] = v_a, v_b, v_c, as the loss wants them
        gradient of the loss         g_a, g_b, g_c; put back at order_N: g_b, g_c, g_a
        split by the chunks          [g_b] and [g_c, g_a]
    The second pass draws the same random numbers as the first, and (vectors * gradient).sum() has just that
    gradient. So the parameters get what one pass over all texts would give, and only one chunk's activations
    exist at a time.
    """
    # Every forward and backward is a collective at some ZeRO stage. A rank with fewer chunks than others
    # encodes its shortest text again and throws the result away.
    idle = split_packed(packed, 1)[-1] if len(chunks) < rounds else None
    turns = [*chunks, *[idle] * (rounds - len(chunks))]
    with timer.phase("forward"), torch.no_grad():
        states, encoded = [], []
        for chunk in turns:
            states.append(_RandomState.capture(packed.input_ids_T.device))
            encoded.append(wrapped(chunk))
    vectors_ND = torch.cat(encoded[: len(chunks)])[packed.order_N].requires_grad_()
    output = loss_of(vectors_ND)
    with timer.phase("backward"):
        spoiled_unless_finite(output.loss).backward()
        assert vectors_ND.grad is not None
        in_packed_order = torch.empty_like(vectors_ND.grad).index_copy(0, packed.order_N, vectors_ND.grad)
        gradients = in_packed_order.split([len(chunk.lengths.texts) for chunk in chunks])
        for turn, (chunk, state) in enumerate(zip(turns, states, strict=True)):
            state.restore()
            again = wrapped(chunk)
            wanted = gradients[turn] if turn < len(chunks) else torch.zeros_like(again)
            wrapped.set_gradient_accumulation_boundary(turn == rounds - 1)
            wrapped.backward((again * wanted).sum())
    return replace(output, loss=output.loss.detach())


def spoiled_unless_finite(loss: torch.Tensor) -> torch.Tensor:
    """The loss itself, or one whose every gradient is not a number.

    An infinite loss may have a finite gradient. Spoiled here, it is found by the one check that looks at a
    value on the host: that of the gradient's norm, after the backward pass. The norm is over all ranks.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


def contrastive_loss(
    vectors_ND: torch.Tensor,
    batch: TrainingBatch,
    settings: StageConfig,
    timer: StepTimer,
    teacher_ND: torch.Tensor | None = None,
    ranges: VectorRanges | None = None,
) -> StepOutput:
    """Loss of this rank's rows against all ranks' documents; called by all ranks.

    Args:
        vectors_ND: this rank's queries followed by its documents, as `TaughtModel` gives them where there is
            a teacher.
        batch: this rank's part of the global batch.
        settings: of the stage, with its losses.
        timer: gets the phases gather and loss.
        teacher_ND: a teacher's vectors of the same texts.
        ranges: what vectors are rounded by.
    """
    with timer.phase("gather"):
        inputs = _gathered(vectors_ND, batch, settings.sees_other_queries)
        matches_states = any(isinstance(loss, StateMatchingConfig) for loss in settings.loss)
        inputs = inputs.split(0 if teacher_ND is None else teacher_ND.shape[1], matches_states)
        if teacher_ND is not None:
            taught = _gathered(teacher_ND, batch, with_queries=False)
            inputs = replace(
                inputs,
                teacher_query_QD=taught.query_QD,
                teacher_document_KD=taught.document_KD,
            )
    with timer.phase("loss"):
        losses_Q = row_losses(settings.loss, inputs, settings.matryoshka, settings.quantisation, ranges)
        sums_S, counts_S = _measured(losses_Q.detach(), inputs, batch.source_Q, len(settings.blend))
    return StepOutput(
        # The mean over local rows when all ranks have the same number of rows; exact when they do not.
        loss=losses_Q.sum() * world_size() / sum(batch.query_counts),
        sums_S=sums_S,
        counts_S=counts_S,
        uniformity=uniformity(inputs.document_KD[:UNIFORMITY_DOCUMENTS]),
    )


def _gathered(vectors_ND: torch.Tensor, batch: TrainingBatch, with_queries: bool) -> LossInputs:
    query_QD, document_ED = vectors_ND[: batch.num_queries], vectors_ND[batch.num_queries :]
    return LossInputs(
        query_QD=query_QD,
        document_KD=gather_vectors(document_ED, batch.document_counts),
        target_Q=batch.target_Q,
        allowed_QK=batch.allowed_QK,
        competing_QB=batch.competing_QB,
        teacher_QK=batch.teacher_QK,
        all_queries_BD=gather_vectors(query_QD, batch.query_counts) if with_queries else None,
    )


@torch.no_grad()
def _measured(
    losses_Q: torch.Tensor, inputs: LossInputs, source_Q: torch.Tensor, num_sources: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Sums and counts by source of everything that is known of single rows."""
    measured = row_measures(inputs.query_QD, inputs.document_KD, inputs.target_Q, inputs.allowed_QK)
    every_Q, contested_Q = torch.ones_like(losses_Q), measured.contested_Q.float()
    values = {
        "loss": (losses_Q, every_Q),
        "accuracy": (measured.correct_Q.float(), every_Q),
        "positive_score": (measured.positive_Q, every_Q),
        "negative_score": (measured.negative_Q, contested_Q),
        "margin": ((measured.positive_Q - measured.hardest_Q) * contested_Q, contested_Q),
        "alignment": (2 - 2 * measured.positive_Q, every_Q),
    }
    zeros_S = torch.zeros(num_sources, device=losses_Q.device)
    sums_S = {name: zeros_S.index_add(0, source_Q, value) for name, (value, _) in values.items()}
    counts_S = {name: zeros_S.index_add(0, source_Q, count) for name, (_, count) in values.items()}
    return sums_S, counts_S


@dataclass(frozen=True)
class _RandomState:
    """State of the random number generators that dropout draws from."""

    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> "_RandomState":
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
