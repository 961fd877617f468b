"""Learning a teacher's hidden states: each token's states move towards the teacher's of the same token.

With `vector_distillation` it is how NV-Embed re-trains a pruned model (arXiv 2405.17428, appendix): that loss
takes the mean of a mean-pooled student's last states to the teacher's pooled output. `training.distillation`
computes the distances inside the model, where the states are, and projects them where widths differ.

A text of two pooled tokens and one pair of layers, states s of the student and t of the teacher:
    s0 = [1, 1], t0 = [2, 0]   |s0 - t0|² / |t0|² = 2 / 4        s1 = [0, 3], t1 = [0, 2]   1 / 4
    distance of the text       (2 / 4 + 1 / 4) / 2 = 0.375
A token counts as much as another one, though a decoder's first one may have states hundreds of times larger.

Shapes: Q queries of this rank, P pooled tokens, D width.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from rayembed.common.errors import ConfigError
from rayembed.losses.base import LossInputs, LossSettings


class StateMatchingConfig(LossSettings):
    """Relative squared distance of hidden states from a teacher's, mean over layers and tokens."""

    of_vectors: ClassVar[bool] = False

    type: Literal["state_matching"] = "state_matching"
    teacher: str = Field(
        description="rayembed model folder with the student's tokenizer and contract; width may differ"
    )
    layers: dict[int, int] | None = Field(
        None,
        description="layer of the student -> layer of the teacher, the first is 1; None: each of the "
        "student's with the teacher's at the same share of the depth",
    )

    def pairs(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Layers that are compared, of a student and a teacher of so many.

        Raises:
            ConfigError: there is no such layer.
        """
        if self.layers is None:
            return [(layer, -(-layer * teacher // student)) for layer in range(1, student + 1)]
        for whose, count, named in (
            ("student", student, self.layers),
            ("teacher", teacher, self.layers.values()),
        ):
            if wrong := [layer for layer in named if not 1 <= layer <= count]:
                raise ConfigError(
                    f"state_matching.layers names layer {wrong[0]} of the {whose}, which has {count}; "
                    f"choose from 1 to {count}"
                )
        return list(self.layers.items())

    def rows(self, inputs: LossInputs) -> torch.Tensor:
        """Distance of each query plus that of its positive."""
        assert inputs.state_query_Q is not None
        assert inputs.state_document_K is not None
        return inputs.state_query_Q + inputs.state_document_K[inputs.target_Q]


def state_distance(student_PD: torch.Tensor, teacher_PD: torch.Tensor) -> torch.Tensor:
    """Squared distance of each token's state, as a share of the teacher's square (P), fp32."""
    teacher_PD = teacher_PD.float()
    squares_P = teacher_PD.square().sum(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return (student_PD.float() - teacher_PD).square().sum(dim=1) / squares_P
