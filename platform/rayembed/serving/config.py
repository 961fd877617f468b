"""Settings of the endpoint: the `args` of a Serve config file and the options of `rayembed serve`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rayembed.errors import ConfigError
from rayembed.model.configuration import Precision
from rayembed.paths import resolve


class ServeConfig(BaseModel):
    """What to serve and within which limits; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    checkpoint: str = Field(min_length=1, description="checkpoint folder; must be readable on every node")
    model_name: str = Field(
        "", description="name that requests must give as `model`; empty takes the checkpoint's folder name"
    )
    precision: Precision = Field("auto", description="number format of the weights")
    max_length: int | None = Field(
        None,
        ge=4,
        description="most tokens of one input; empty takes the checkpoint's own, which it cannot exceed",
    )
    token_budget: int = Field(8192, ge=1, description="most tokens in one forward pass; bounds memory")
    max_queued_tokens: int = Field(
        131_072,
        ge=1,
        description="most tokens accepted and not yet answered, a replica; more gets status 429",
    )
    max_inputs: int = Field(2048, ge=1, description="most inputs in one request")
    max_body_bytes: int = Field(16 * 2**20, ge=1, description="largest request body; more gets status 413")
    min_replicas: int = Field(1, ge=0, description="model replicas that always run; 0 scales to zero")
    max_replicas: int = Field(1, ge=1, description="most model replicas")
    target_ongoing_requests: float = Field(
        16, gt=0, description="requests in progress on one replica above which another one is started"
    )
    upscale_delay_s: float = Field(10, ge=0, description="seconds of load before a replica is added")
    downscale_delay_s: float = Field(300, ge=0, description="seconds of rest before a replica is removed")
    num_cpus: float = Field(
        1, gt=0, description="processor cores of one model replica; also its torch threads"
    )
    num_gpus: float = Field(0, ge=0, description="GPUs of one model replica; a fraction shares one")
    ingress_replicas: int = Field(1, ge=1, description="HTTP front ends")

    @model_validator(mode="after")
    def _replicas_are_a_range(self) -> "ServeConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self

    @property
    def checkpoint_path(self) -> Path:
        """Absolute path of the checkpoint."""
        return resolve(self.checkpoint)

    @property
    def served_name(self) -> str:
        """Name that requests must give as `model`."""
        return self.model_name or self.checkpoint_path.name

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> "ServeConfig":
        """Build the settings from plain values, such as the `args` of a Serve config file.

        Raises:
            ConfigError: a key is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(dict(arguments))
        except ValidationError as error:
            raise ConfigError(f"serving arguments: {'; '.join(_sentences(error))}") from error


def _sentences(error: ValidationError) -> list[str]:
    known = ", ".join(ServeConfig.model_fields)
    sentences = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            sentences.append(f"unknown key {key!r}; known keys: {known}")
        elif problem["type"] == "missing":
            sentences.append(f"{key} is missing; give {key}=...")
        elif key:
            sentences.append(f"{key}={problem['input']!r}: {problem['msg']}")
        else:
            sentences.append(problem["msg"].removeprefix("Value error, "))
    return sentences
