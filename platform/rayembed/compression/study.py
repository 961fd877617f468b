"""A compression study: what a recipe declares, and the cells of its grid.

A cell is one way through five choices, for example SparseGPT, 2:4, trained again with distillation, int8
weights, whole vectors. The checkpoint as it is takes part as the method `dense`, trained again too: so what
pruning costs and what more training gives can be told apart.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from rayembed.common.settings import Frozen
from rayembed.compression.layers import Sparsity
from rayembed.compression.pruning import Method, Pattern
from rayembed.engine.vector_formats import VectorForm
from rayembed.model.packed import WeightFormat

DENSE = "dense"
AXES = ("method", "pattern", "retraining", "weights", "vectors")


class CalibrationConfig(Frozen):
    """Texts that show Wanda and SparseGPT what layers get, and that the speed is measured with."""

    path: str = Field(description="file, folder or pattern in any format that training reads")
    columns: tuple[str, ...] = Field(
        ("text", "query", "positive"), description="columns whose texts are taken, where a row has them"
    )
    count: int = Field(256, ge=1, description="texts, drawn from the first rows")


class RetrainingConfig(Frozen):
    """How a pruned model is trained again; its zeros stay zero."""

    recipe: str = Field(description="training recipe, relative to the study's file, or a shipped name")
    set: dict[str, Any] = Field(default_factory=dict, description="address in that recipe -> value")
    distillation: float | None = Field(
        None, gt=0, description="weight of vector_distillation from the dense model; None: none"
    )
    state_matching: float | None = Field(
        None, gt=0, description="weight of state_matching with all layers of the dense model; None: none"
    )


class CompressionConfig(Frozen):
    """A whole study."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="name of the study and of its folder")
    output: str = Field("compressions", description="folder of the study's folder, relative to the workspace")
    checkpoint: str = Field(description="rayembed model folder to make smaller")
    calibration: CalibrationConfig = Field(description="texts that pruning looks at")
    methods: tuple[Method, ...] = Field(
        ("magnitude", "wanda", "sparsegpt"), description="how weights are chosen"
    )
    patterns: tuple[Pattern, ...] = Field(("unstructured", "4:8", "2:4"), description="where zeros may be")
    share: float = Field(0.5, gt=0, lt=1, description="of zeros in unstructured pruning")
    retraining: dict[str, RetrainingConfig] = Field(
        default_factory=dict, description="name -> how models are trained again; `none` is always in the grid"
    )
    weights: tuple[WeightFormat, ...] = Field(("stored",), description="number formats of the weights")
    vectors: tuple[VectorForm, ...] = Field((VectorForm(),), description="forms of the vectors")
    benchmark: str = Field("rayembed-quickstart", description="what every cell is scored on")
    tasks: tuple[str, ...] | None = Field(None, description="names of tasks instead of the benchmark")
    task_files: tuple[str, ...] = Field((), description="YAML files that declare your own tasks")
    data_directory: str = Field("data", description="built sources of the tasks")

    @field_validator("retraining")
    @classmethod
    def _names_are_folders(cls, retraining: dict[str, RetrainingConfig]) -> dict[str, RetrainingConfig]:
        for name in retraining:
            if name == "none" or not name.replace("-", "").isalnum() or not name.islower():
                raise ValueError(
                    f"retraining {name!r} is a folder name too, and none stands for no training; use other "
                    "lower-case letters, digits and hyphens"
                )
        return retraining

    @property
    def measures_ranges(self) -> bool:
        """Whether the ranges of vectors are measured with the calibration texts: some vectors need them."""
        return any(form.has_ranges for form in self.vectors)

    def sparsities(self) -> Iterator[Sparsity]:
        """All ways of pruning."""
        for method, pattern in itertools.product(self.methods, self.patterns):
            yield Sparsity(method, pattern, self.share)


@dataclass(frozen=True)
class StudyCell:
    """One way through the choices.

    Attributes:
        sparsity: None: dense.
        retraining: name of it, or none.
        weights: number format of the weights.
        vectors: form of the vectors.
    """

    sparsity: Sparsity | None
    retraining: str
    weights: WeightFormat
    vectors: VectorForm

    @property
    def levels(self) -> dict[str, str]:
        """The choice on each axis."""
        method, pattern = (self.sparsity.method, self.sparsity.pattern) if self.sparsity else (DENSE, "")
        return dict(
            zip(AXES, (method, pattern, self.retraining, self.weights, str(self.vectors)), strict=True)
        )


def cells(study: CompressionConfig) -> list[StudyCell]:
    """All cells, the reference first: dense, not trained again, weights and vectors as they are."""
    first = StudyCell(None, "none", "stored", VectorForm())
    grid = itertools.product(
        [None, *study.sparsities()], ["none", *study.retraining], study.weights, study.vectors
    )
    return list(dict.fromkeys([first, *(StudyCell(*choices) for choices in grid)]))
