"""Training that knows of the number formats in which vectors will be stored.

The stage's losses are also taken on rounded vectors. Rounding has no gradient, so it is passed straight
through to the vector before it. Source: arXiv 1308.3432, section 4 (straight-through estimator).

A stage that begins with a checkpoint whose vectors were measured rounds by those ranges, and the model that
it trains keeps them.

Shapes: N vectors, D width.
"""

from typing import Literal

import torch
from pydantic import Field

from rayembed.common.settings import Frozen
from rayembed.contract.ranges import VectorRanges
from rayembed.losses.base import LossInputs

RoundedFormat = Literal["int8", "binary"]


class QuantisationConfig(Frozen):
    """The stage's losses are also taken on vectors as they will be stored."""

    formats: tuple[RoundedFormat, ...] = Field(
        min_length=1, description="number formats, each with a loss of its own"
    )
    weight: float = Field(1.0, gt=0, description="of each of these losses; that on fp32 vectors has 1")


def rounded_inputs(inputs: LossInputs, form: RoundedFormat, ranges: VectorRanges | None = None) -> LossInputs:
    """The same with the student's vectors rounded."""
    return inputs.changed(lambda vectors_ND: rounded(vectors_ND, form, ranges))


def rounded(
    vectors_ND: torch.Tensor, form: RoundedFormat, ranges: VectorRanges | None = None
) -> torch.Tensor:
    """Unit vectors with the numbers that `quantise` gives and the gradient of the vectors given.

    Without ranges, [0.6, -0.8] is [0.707, -0.707] in bits, and [95, -127] / 158.6 in int8.
    """
    given_ND = vectors_ND.detach()
    low_D = threshold_D = high_D = given_ND.new_zeros(given_ND.shape[1])
    if ranges is not None:
        numbers = ranges.numbers(given_ND.shape[1])
        low_D, threshold_D, high_D = (torch.from_numpy(one).to(given_ND.device) for one in numbers)
    if form == "binary":
        numbers_ND = torch.where(given_ND > threshold_D, 1.0, -1.0)
    elif ranges is not None:
        numbers_ND = ((given_ND - low_D) / (high_D - low_D) * 255).round().clamp(0, 255) - 128
    else:
        largest_N1 = given_ND.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        numbers_ND = (given_ND / largest_N1 * 127).round()
    return vectors_ND + (torch.nn.functional.normalize(numbers_ND, dim=1) - given_ND)
