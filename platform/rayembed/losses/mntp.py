"""Masked next-token prediction: a masked token is predicted from the position before it.

That keeps the decoder's habit of predicting the next token while it learns to look at both sides.
Shapes: M masked tokens, V vocabulary. Source: arXiv 2404.05961 (LLM2Vec), section 2.1.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from rayembed.losses.base import LossSettings, StageKind


class MNTPConfig(LossSettings):
    """Prediction of masked tokens from the position before them."""

    kind: ClassVar[StageKind] = "mntp"

    type: Literal["mntp"] = "mntp"
    masked_share: float = Field(0.2, gt=0, le=1, description="share of the tokens that are masked")
    mask_token: str = Field("_", description="text of the one token that stands for a masked one")


def mask_tokens(
    input_ids: Sequence[int],
    *,
    first: int,
    share: float,
    mask_id: int,
    end_id: int | None,
    generator: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """Replace a random share of a text's tokens by the mask token.

    Args:
        input_ids: tokens of one text.
        first: first position that may be masked; position 0 never is, since nothing comes before it.
        share: probability of each token to be masked. At least one token is, where any may be.
        mask_id: what a masked token is replaced by.
        end_id: token that is never masked.
        generator: decides which tokens.

    Returns:
        The tokens with masks, and the masked positions in ascending order.
    """
    maskable = [place for place in range(max(first, 1), len(input_ids)) if input_ids[place] != end_id]
    drawn = generator.random(len(maskable))
    chosen = [place for place, draw in zip(maskable, drawn, strict=True) if draw < share]
    if maskable and not chosen:
        chosen = [maskable[int(np.argmin(drawn))]]
    masked = list(input_ids)
    for place in chosen:
        masked[place] = mask_id
    return masked, chosen


def masked_next_token(logits_MV: torch.Tensor, token_M: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each masked token (M), in fp32.

    Args:
        logits_MV: language-model logits at the position before each masked token.
        token_M: the tokens that were masked.
    """
    return F.cross_entropy(logits_MV.float(), token_M, reduction="none")
