"""Loading the tokenizer that a contract counts on.

A file of its own: what only tokenises, as the actors of a training stream do, imports no model.
"""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rayembed.common.errors import CheckpointError


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Fast tokenizer of a folder or hub id, padding on the right.

    Raises:
        CheckpointError: there is no tokenizer or it has no end token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"no tokenizer can be read from {name}: {str(error).splitlines()[0]}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {name} has no end token, which the contract appends to every text"
        )
    tokenizer.padding_side = "right"
    return tokenizer
