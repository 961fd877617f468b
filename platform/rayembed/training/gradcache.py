"""Backward through more texts than fit into memory: GradCache with chunks of a token budget.

The texts are encoded in chunks without a graph, the loss gives the gradient of every vector, and each chunk
is encoded again, from the same random numbers, to carry its vectors' gradients into the parameters. The
result is that of one pass over all texts, and only one chunk's activations exist at a time.

Source: arXiv 2101.06983, section 3.2. Shapes: N texts of this rank, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rayembed.contract.packing import PackedBatch, split_packed
from rayembed.training.bad_batch import check_finite
from rayembed.training.distributed import largest_over_ranks
from rayembed.training.step import StepOutput
from rayembed.training.timing import StepTimer

LossOfVectors = Callable[[torch.Tensor], StepOutput]


def encode_and_backward(
    engine: Any,
    packed: PackedBatch,
    loss_of: LossOfVectors,
    timer: StepTimer,
    tokens_per_chunk: int | None = None,
) -> StepOutput:
    """Leave the gradient of a loss over the vectors of all texts in the parameters; called by all ranks.

    Args:
        engine: DeepSpeed engine around the embedder.
        packed: this rank's texts.
        loss_of: vectors (N, D) -> loss; called once, by all ranks.
        timer: gets the phases forward and backward.
        tokens_per_chunk: most tokens that are encoded at a time; None encodes all at once.

    Raises:
        BadBatch: the loss is not finite on some rank; no gradient was computed.
    """
    chunks = [packed] if tokens_per_chunk is None else split_packed(packed, tokens_per_chunk)
    rounds = 1 if tokens_per_chunk is None else largest_over_ranks(len(chunks))
    if rounds > 1:
        return _chunked(engine, packed, chunks, rounds, loss_of, timer)
    with timer.phase("forward"):
        vectors_ND = engine(packed)
    output = loss_of(vectors_ND)
    check_finite("loss", output.loss)
    with timer.phase("backward"):
        engine.backward(output.loss)
    return output


def _chunked(
    engine: Any,
    packed: PackedBatch,
    chunks: list[PackedBatch],
    rounds: int,
    loss_of: LossOfVectors,
    timer: StepTimer,
) -> StepOutput:
    # Every forward and backward is a collective at some ZeRO stage, so a rank with fewer chunks than others
    # encodes its shortest text again for nothing.
    idle = split_packed(packed, 1)[-1] if len(chunks) < rounds else None
    turns = [*chunks, *[idle] * (rounds - len(chunks))]
    with timer.phase("forward"), torch.no_grad():
        states, encoded = [], []
        for chunk in turns:
            states.append(_RandomState.capture(packed.input_ids_T.device))
            encoded.append(engine(chunk))
    vectors_ND = torch.cat(encoded[: len(chunks)])[packed.order_N].requires_grad_()
    output = loss_of(vectors_ND)
    check_finite("loss", output.loss)
    with timer.phase("backward"):
        output.loss.backward()
        assert vectors_ND.grad is not None
        in_packed_order = torch.empty_like(vectors_ND.grad).index_copy(0, packed.order_N, vectors_ND.grad)
        gradients = in_packed_order.split([len(chunk.pooled_lengths) for chunk in chunks])
        for turn, (chunk, state) in enumerate(zip(turns, states, strict=True)):
            state.restore()
            again = engine(chunk)
            wanted = gradients[turn] if turn < len(chunks) else torch.zeros_like(again)
            engine.set_gradient_accumulation_boundary(turn == rounds - 1)
            engine.backward((again * wanted).sum())
    return output


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
