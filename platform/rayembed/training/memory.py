"""What to do about a step that does not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rayembed.common.errors import ResourceError
from rayembed.config import TrainingConfig
from rayembed.data.collate import TrainingBatch


def memory_advice(training: TrainingConfig, batch: TrainingBatch) -> str:
    """The settings to try, with half of the tokens that were encoded at a time."""
    tokens = min(training.tokens_per_chunk or batch.packed.num_tokens, batch.packed.num_tokens)
    return f"set training.tokens_per_chunk to {tokens // 2} or less, or activation_checkpointing: true"


@contextmanager
def advising_on_memory(what: str, training: TrainingConfig, batch: TrainingBatch) -> Iterator[None]:
    """Run a step of one worker.

    Args:
        what: subject of the sentence, such as "step 7 of stage retrieval".
        training: settings of the step.
        batch: of this worker.

    Raises:
        ResourceError: the GPU's memory was not enough.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(
            f"{what} with {batch.packed.num_tokens:,} tokens ran out of GPU memory; "
            f"{memory_advice(training, batch)}"
        ) from error
