"""A whole run."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from rayembed.common.settings import Frozen, refuse
from rayembed.config.data import DataConfig
from rayembed.config.stage import StageConfig
from rayembed.config.training import TrainingConfig
from rayembed.contract import Contract
from rayembed.model.configuration import LoraSettings, ModelConfig


class ValidationConfig(Frozen):
    """Scores checkpoints on a few tasks during training, on CPUs and GPUs that training does not use."""

    tasks: tuple[str, ...] = Field(
        min_length=1, description="names of small tasks; the score is the mean of their main scores"
    )
    task_files: tuple[str, ...] = Field((), description="YAML files that declare your own tasks")
    every: int | None = Field(
        None,
        ge=1,
        description=(
            "steps between validations; None: training.checkpoint_every. The last step of a stage"
            " is always validated, stages of kind mntp never"
        ),
    )
    keep: Literal["best", "last"] = Field(
        "best", description="a stage ends with its best or its last checkpoint"
    )
    cpus: float = Field(1, gt=0, description="CPUs of a validation, in addition to those of training")
    gpus: float = Field(0, ge=0, description="GPUs of a validation, in addition to those of training")


class EvaluationConfig(Frozen):
    """What is evaluated after training."""

    benchmark: str = Field("rayembed-quickstart", description="name of a benchmark")


class RunConfig(Frozen):
    """A whole run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="name of the run and of its folder")
    seed: int = Field(17, description="determines batches, negatives, new weights and dropout")
    output: str = Field("runs", description="parent of the run's folder, relative to the workspace")
    base_model: str = Field(
        description="packaged model, hub id, or folder of Hugging Face, sentence-transformers or rayembed"
    )
    base_layers: int | None = Field(None, ge=1, description="keep only this many first layers")
    models_directory: str = Field("models", description="folder for packaged base models")
    contract: Contract = Field(Contract(), description="how a text becomes tokens")
    model: ModelConfig = Field(ModelConfig(), description="attention and pooling")
    lora: LoraSettings | None = Field(LoraSettings(), description="None: train all weights")
    keep_zeros: bool = Field(
        False,
        description="weights of linear layers that are zero in the base model stay zero, as in a pruned one",
    )
    data: DataConfig = Field(DataConfig(), description="where the data is")
    stages: tuple[StageConfig, ...] = Field(min_length=1, description="training stages, in order")
    training: TrainingConfig = Field(TrainingConfig(), description="how training runs")
    validation: ValidationConfig | None = Field(
        None, description="scores checkpoints during training; None: does not"
    )
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="what is evaluated after training")

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        if self.contract.vector_ranges is not None:
            yield "contract.vector_ranges is measured by `rayembed compress`; remove it from the recipe"
        if self.model.pooling.type == "cls" and not self.contract.pool_instruction:
            yield (
                "model.pooling of type cls takes the first token, which is not pooled where an instruction "
                "comes before a text; set contract.pool_instruction to true"
            )
        if self.keep_zeros and self.lora and self.lora.dropout:
            yield (
                f"lora.dropout is {self.lora.dropout:g} and keep_zeros computes with merged weights, where "
                "there is none; set lora.dropout to 0"
            )
        if self.lora and self.lora.quantization:
            if self.training.zero_stage == 3:
                yield (
                    "training.zero_stage is 3 and lora.quantization nf4: packed weights cannot be split over "
                    "workers; set zero_stage to 2"
                )
            if self.keep_zeros:
                yield "keep_zeros is on and nf4 moves weights that are zero; set lora.quantization to null"
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            yield f"two stages share a name in {names}; names are folder names and must differ"
        for stage in self.stages:
            if stage.batch_size < self.training.workers:
                yield (
                    f"stage {stage.name}: batch_size {stage.batch_size} is below training.workers "
                    f"{self.training.workers}; every worker needs a row"
                )
            yield from self._check_adapters(stage)
            yield from self._check_lengths(stage)

    def _check_lengths(self, stage: StageConfig) -> Iterator[str]:
        for entry in stage.blend:
            for name in ("query_max_length", "document_max_length"):
                if (getattr(entry, name) or 0) > self.contract.max_length:
                    yield (
                        f"stage {stage.name}, source {entry.source}: {name} {getattr(entry, name)} is above "
                        f"contract.max_length {self.contract.max_length}; lower one or raise the other"
                    )

    def _check_adapters(self, stage: StageConfig) -> Iterator[str]:
        if self.lora is None and (stage.adapters == "merge" or stage.kind == "mntp"):
            cause = "adapters: merge" if stage.adapters == "merge" else "kind: mntp"
            yield f"stage {stage.name}: {cause} needs adapters and lora is null; set lora"
        if stage.adapters == "merge" and self.lora and self.lora.quantization:
            yield (
                f"stage {stage.name}: adapters: merge would round what was learned to 4 bits; set it to "
                "continue, or lora.quantization to null"
            )
        if stage.adapters == "merge" and stage is self.stages[0]:
            yield f"stage {stage.name} is the first, no adapters come before it; remove adapters"
        if stage.kind == "simcse" and not (stage.attention_dropout or (self.lora and self.lora.dropout)):
            yield (
                f"stage {stage.name}: simcse needs dropout to tell two encodings of a text apart; set "
                "attention_dropout of the stage or lora.dropout"
            )
