"""SimCSE: a text must find its own second encoding, under another dropout mask, among those of others.

The step encodes every text twice, as a query and as its own document, so this is InfoNCE with another default
of the temperature. Source: arXiv 2104.08821, section 3.
"""

from typing import ClassVar, Literal

import torch

from rayembed.losses.base import LossInputs, LossSettings, StageKind, Temperature
from rayembed.losses.infonce import infonce


class SimCSEConfig(LossSettings):
    """A text against its own second encoding under another dropout mask."""

    kind: ClassVar[StageKind] = "simcse"

    type: Literal["simcse"] = "simcse"
    temperature: Temperature = 0.05

    def rows(self, inputs: LossInputs) -> torch.Tensor:
        """Cross entropy of each text's own second encoding against those of the others."""
        return infonce(
            inputs.query_QD, inputs.document_KD, inputs.target_Q, inputs.allowed_QK, self.temperature
        )
