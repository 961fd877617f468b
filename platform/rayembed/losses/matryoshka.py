"""A stage's losses as one number a row: their weighted sum, at several widths and in several number formats.

Matryoshka trains the leading dimensions of a vector to be a vector of their own. Source: arXiv 2205.13147.
"""

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator

from rayembed.common.settings import Frozen
from rayembed.contract.ranges import VectorRanges
from rayembed.losses.base import LossInputs, LossSettings
from rayembed.losses.quantisation import QuantisationConfig, rounded_inputs


class MatryoshkaConfig(Frozen):
    """The stage's losses are also taken on vectors cut to fewer dimensions."""

    dimensions: tuple[int, ...] = Field(
        min_length=1,
        description="where vectors are cut; name the full width to train it too",
    )
    weights: tuple[float, ...] | None = Field(
        None, description="of the loss at each of the dimensions; None: 1 each"
    )

    @model_validator(mode="after")
    def _check(self) -> "MatryoshkaConfig":
        if min(self.dimensions) < 1 or len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError(f"matryoshka.dimensions {list(self.dimensions)} must differ and be at least 1")
        if self.weights is not None and len(self.weights) != len(self.dimensions):
            raise ValueError(
                f"matryoshka has {len(self.weights)} weights for {len(self.dimensions)} dimensions; "
                "give one each or leave weights out"
            )
        return self


def row_losses(
    losses: Sequence[LossSettings],
    inputs: LossInputs,
    matryoshka: MatryoshkaConfig | None = None,
    quantisation: QuantisationConfig | None = None,
    ranges: VectorRanges | None = None,
) -> torch.Tensor:
    """Loss of each of this rank's rows (Q); reduce it with the mean over the global batch.

    With dimensions (64, 16) and weights (1, 0.5) it is the sum of the losses on the first 64 dimensions plus
    half of that sum on the first 16. With quantisation each of these sums is one over number formats too,
    rounded by `ranges`. Losses of hidden states are added once.
    """
    whole = [loss for loss in losses if not loss.of_vectors]
    losses = [loss for loss in losses if loss.of_vectors]
    if matryoshka is None:
        parts = [_over_formats(losses, inputs, quantisation, ranges)]
    else:
        weights = matryoshka.weights or (1.0,) * len(matryoshka.dimensions)
        parts = [
            weight * _over_formats(losses, inputs.cut(dimensions), quantisation, ranges)
            for dimensions, weight in zip(matryoshka.dimensions, weights, strict=True)
        ]
    return torch.stack([*parts, _weighted_sum(whole, inputs)]).sum(dim=0)


def _over_formats(
    losses: Sequence[LossSettings],
    inputs: LossInputs,
    quantisation: QuantisationConfig | None,
    ranges: VectorRanges | None,
) -> torch.Tensor:
    total_Q = _weighted_sum(losses, inputs)
    if quantisation is not None:
        for form in quantisation.formats:
            rounded = rounded_inputs(inputs, form, ranges)
            total_Q = total_Q + quantisation.weight * _weighted_sum(losses, rounded)
    return total_Q


def _weighted_sum(losses: Sequence[LossSettings], inputs: LossInputs) -> torch.Tensor:
    nothing_Q = inputs.query_QD.new_zeros(len(inputs.query_QD))
    return torch.stack([nothing_Q, *(loss.weight * loss.rows(inputs) for loss in losses)]).sum(dim=0)
