"""Run configuration: one YAML recipe plus dotted overrides -> one frozen, validated object."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rayembed.contract import Contract
from rayembed.errors import ConfigError
from rayembed.model.configuration import Frozen, LoraSettings, ModelConfig, Precision


class MiningConfig(Frozen):
    """How hard negatives are found for a source that brings none."""

    method: Literal["bm25"] = Field("bm25", description="how candidates are searched")
    top_k: int = Field(30, ge=1, description="candidates looked at for each query")
    positive_share: float = Field(
        0.95, gt=0, le=1, description="a candidate must score below this share of the positive's score"
    )


class SourceConfig(Frozen):
    """One source of a stage's blend."""

    source: str = Field(description="name of a built-in source, or of one declared under data.sources")
    weight: float = Field(gt=0, description="share of the rows of a batch, relative to the other sources")
    instruction: str | None = Field(None, description="task instruction in front of the query")
    symmetric: bool = Field(False, description="put the instruction in front of the documents as well")
    in_batch_negatives: bool = Field(
        description="whether other rows' documents are negatives for this source's rows"
    )
    negatives_per_query: int = Field(1, ge=0, description="hard negatives a row brings")
    labels: Literal["example", "label"] = Field(
        "example", description="for labelled sources: documents are examples of a class, or the label texts"
    )
    mining: MiningConfig | None = Field(None, description="mine hard negatives; None: the source's own")


class StageConfig(Frozen):
    """One contrastive training stage."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="lower-case letters, digits and hyphens")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(ge=1, description="rows of a global batch, all workers together")
    learning_rate: float = Field(gt=0, description="highest rate, reached after warm-up")
    pooling_learning_rate: float | None = Field(
        None, gt=0, description="of the pooling head; None: learning_rate"
    )
    warmup_steps: int = Field(
        0, ge=0, description="linear warm-up, then linear decay to zero at the last step"
    )
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    gradient_clipping: float = Field(1.0, gt=0, description="largest norm of the gradient of all parameters")
    temperature: float = Field(0.02, gt=0, description="divisor of the cosine in the loss")
    document_to_query_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the loss in the direction document to query, for rows with in-batch negatives",
    )
    batching: Literal["blended", "homogeneous"] = Field(
        "blended", description="blended: each batch mixes the sources; homogeneous: one source a batch"
    )
    blend: tuple[SourceConfig, ...] = Field(min_length=1, description="sources, each at most once")

    @model_validator(mode="after")
    def _check(self) -> "StageConfig":
        names = [entry.source for entry in self.blend]
        if len(set(names)) != len(names):
            raise ValueError(
                f"stage {self.name}: a source appears twice in the blend {names}; merge the entries"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"stage {self.name}: warmup_steps {self.warmup_steps} must be below steps {self.steps}"
            )
        for entry in self.blend:
            if not entry.in_batch_negatives and entry.negatives_per_query == 0:
                raise ValueError(
                    f"stage {self.name}, source {entry.source}: without in-batch negatives and with "
                    "negatives_per_query 0 a row has nothing to learn from; set one of them"
                )
        return self


class UserSourceConfig(Frozen):
    """A source of the user's own."""

    path: str = Field(description="Parquet or JSON-lines file, or a folder of them")
    kind: Literal["pairs", "labels"] = Field("pairs", description="layout of the rows, see data.md")
    task_type: Literal["retrieval", "classification", "clustering", "sts"] = Field(
        "retrieval", description="recorded with every row"
    )


class DataConfig(Frozen):
    """Where the data is."""

    directory: str = Field("data", description="built sources, relative to the workspace")
    sources: dict[str, UserSourceConfig] = Field(
        default_factory=dict, description="name -> source of the user's own"
    )


class TrainingConfig(Frozen):
    """How training runs, whatever it learns."""

    workers: int = Field(1, ge=1, description="training processes; each takes a GPU where there are any")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for a worker")
    threads_per_worker: int | None = Field(
        None, ge=1, description="None: the machine's cores divided by its workers"
    )
    precision: Precision = Field(
        "auto", description="of the weights; auto: bf16 where the processor multiplies it natively, else fp32"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints of a stage that are kept")
    log_every: int = Field(1, ge=1, description="steps between lines of metrics.jsonl and the progress line")
    max_failures: int = Field(
        3, ge=-1, description="worker failures survived in one submission; -1: any number"
    )


class EvaluationConfig(Frozen):
    """What is evaluated after training."""

    benchmark: str = Field("rayembed-quickstart", description="name of a list of tasks")
    actors: int = Field(2, ge=1, description="Ray actors that share the tasks")


class RunConfig(Frozen):
    """A whole run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="name of the run and of its folder")
    seed: int = Field(17, description="decides batches, negatives, new weights and dropout")
    output: str = Field("runs", description="folder that holds the run's folder, relative to the workspace")
    base_model: str = Field(description="packaged model name, local Hugging Face folder, or hub id")
    base_layers: int | None = Field(None, ge=1, description="keep only the first layers of the base model")
    models_directory: str = Field("models", description="where packaged base models are built")
    contract: Contract = Field(Contract(), description="how a text becomes tokens")
    model: ModelConfig = Field(ModelConfig(), description="attention and pooling")
    lora: LoraSettings | None = Field(LoraSettings(), description="None: train all weights")
    data: DataConfig = Field(DataConfig(), description="where the data is")
    stages: tuple[StageConfig, ...] = Field(min_length=1, description="trained one after the other")
    training: TrainingConfig = Field(TrainingConfig(), description="how training runs")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="what is evaluated after training")

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages share a name in {names}; names are folder names and must differ")
        for stage in self.stages:
            if stage.batch_size < self.training.workers:
                raise ValueError(
                    f"stage {stage.name}: batch_size {stage.batch_size} is below training.workers "
                    f"{self.training.workers}; every worker needs a row"
                )
        return self

    def to_yaml(self) -> str:
        """Resolved configuration as YAML, every value spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply `a.b.0.c=value` overrides; values are YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing key, or a value of the wrong kind.
    """
    if not path.is_file():
        raise ConfigError(f"no recipe at {path}; the shipped ones are in jobs/configs/")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(raw).__name__}")
    for override in overrides:
        _apply_override(raw, override)
    return validate_config(raw, origin=str(path))


def validate_config(raw: dict[str, Any], origin: str) -> RunConfig:
    """Build the configuration object, turning the first problem into one sentence.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong kind.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_problem(error, raw)}") from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"override {override!r} must have the form key.subkey=value")
    *parents, last = name.split(".")
    node: Any = raw
    try:
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if isinstance(node, list):
            node[int(last)] = yaml.safe_load(text)
        else:
            node[last] = yaml.safe_load(text)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"override {override!r} does not fit the recipe: {name!r} cannot be set there"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def _first_problem(error: ValidationError, raw: dict[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_nearest_key(problem['loc'])}"
    if problem["type"] == "missing":
        return f"missing key {where!r}; add it to the recipe"
    message = problem["msg"].removeprefix("Value error, ")
    shown = (
        ""
        if isinstance(problem["input"], dict | list) or problem["type"] == "value_error"
        else (f" (value {problem['input']!r})")
    )
    return f"{where}: {message}{shown}" if where else message


def _nearest_key(location: tuple[int | str, ...]) -> str:
    known = _known_keys(RunConfig)
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "; remove it"


def _known_keys(model: type[Frozen]) -> list[str]:
    definitions = model.model_json_schema().get("$defs", {})
    nested = [key for definition in definitions.values() for key in definition.get("properties", {})]
    return [*model.model_fields, *nested]
