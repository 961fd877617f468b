"""What a stage minimises: one loss, or several that are added up.

A loss is one file here (its settings and its tensor function) and one entry in `LossConfig`.
"""

from typing import Annotated, get_args

from pydantic import Field

from rayembed.losses.base import LossInputs, LossSettings
from rayembed.losses.infonce import InfoNCEConfig
from rayembed.losses.matryoshka import MatryoshkaConfig, row_losses
from rayembed.losses.mntp import MNTPConfig
from rayembed.losses.quantisation import QuantisationConfig
from rayembed.losses.score_distillation import ScoreDistillationConfig
from rayembed.losses.simcse import SimCSEConfig
from rayembed.losses.state_matching import StateMatchingConfig
from rayembed.losses.vector_distillation import VectorDistillationConfig

LossConfig = Annotated[
    InfoNCEConfig  # the first one for a kind of stage is that kind's default
    | ScoreDistillationConfig
    | VectorDistillationConfig
    | StateMatchingConfig
    | SimCSEConfig
    | MNTPConfig,
    Field(discriminator="type"),
]

LOSSES: tuple[type[LossSettings], ...] = get_args(get_args(LossConfig)[0])

__all__ = [
    "LOSSES",
    "InfoNCEConfig",
    "LossConfig",
    "LossInputs",
    "LossSettings",
    "MNTPConfig",
    "MatryoshkaConfig",
    "QuantisationConfig",
    "ScoreDistillationConfig",
    "SimCSEConfig",
    "StateMatchingConfig",
    "VectorDistillationConfig",
    "row_losses",
]
