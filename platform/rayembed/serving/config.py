"""Settings of the endpoint: the `args` of a Serve config file and the options of `rayembed serve`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rayembed.common.errors import ConfigError
from rayembed.common.paths import resolve
from rayembed.model.configuration import Precision
from rayembed.serving.cache import CacheKind

Authentication = Literal["auto", "required", "off"]


@dataclass(frozen=True)
class Served:
    """A name under which requests find a model or an adapter of it.

    Attributes:
        name: what requests give as `model`.
        aliases: what they may give as well.
        adapter: name of the adapter, which is `name`; empty for the model itself.
    """

    name: str
    aliases: tuple[str, ...]
    adapter: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may give."""
        return (self.name, *self.aliases)


ModelName = Annotated[
    str, Field(description="name that requests must give as `model`; empty takes the folder's name")
]
Aliases = Annotated[tuple[str, ...], Field(description="further names that requests may give for it")]


class AdapterSettings(BaseModel):
    """A LoRA adapter that is served as a model of its own, on the replicas of the model it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    adapter: str = Field(min_length=1, description="folder that peft saved; must be readable on every node")
    model_name: ModelName = ""
    aliases: Aliases = ()

    @property
    def adapter_path(self) -> Path:
        """Absolute path of the adapter."""
        return resolve(self.adapter)

    @property
    def served_name(self) -> str:
        """Name that requests must give as `model`."""
        return self.model_name or self.adapter_path.name


class ModelSettings(BaseModel):
    """One served model and the replicas that compute it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    checkpoint: str = Field(min_length=1, description="checkpoint folder; must be readable on every node")
    model_name: ModelName = ""
    aliases: Aliases = ()
    adapters: tuple[AdapterSettings, ...] = Field(
        (), description="LoRA adapters over this model's weights, each served under a name of its own"
    )
    precision: Precision = Field("auto", description="number format of the weights")
    max_length: int | None = Field(
        None,
        ge=4,
        description="most tokens of one input; empty takes the checkpoint's own, which it cannot exceed",
    )
    token_budget: int = Field(4096, ge=1, description="most tokens in one forward pass; bounds memory")
    max_queued_tokens: int = Field(
        131_072,
        ge=1,
        description="most tokens accepted and not yet answered, a replica; more gets status 429",
    )
    cache: CacheKind = Field("off", description="where vectors of texts are kept: off, memory or redis")
    cache_bytes: int = Field(256 * 2**20, ge=1, description="size of the memory cache of one replica")
    min_replicas: int = Field(1, ge=0, description="model replicas that always run; 0 scales to zero")
    max_replicas: int = Field(1, ge=1, description="most model replicas")
    target_ongoing_requests: float = Field(
        16, gt=0, description="requests in progress on one replica above which another one is started"
    )
    target_queued_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens in progress on one replica above which another one is started; "
        "replaces target_ongoing_requests",
    )
    upscale_delay_s: float = Field(10, ge=0, description="seconds of load before a replica is added")
    downscale_delay_s: float = Field(300, ge=0, description="seconds of rest before a replica is removed")
    num_cpus: float = Field(
        1, gt=0, description="processor cores of one model replica; also its torch threads"
    )
    num_gpus: float = Field(0, ge=0, description="GPUs of one model replica; a fraction shares one")

    @field_validator("aliases", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        """The command line gives one text."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _replicas_are_a_range(self) -> "ModelSettings":
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

    @property
    def served(self) -> tuple[Served, ...]:
        """The model and its adapters."""
        adapters = (Served(each.served_name, each.aliases, each.served_name) for each in self.adapters)
        return (Served(self.served_name, self.aliases, ""), *adapters)

    def with_absolute_paths(self) -> "ModelSettings":
        """The same settings for a process with another workspace; names stay as they are."""
        adapters = tuple(
            each.model_copy(update={"adapter": str(each.adapter_path)}) for each in self.adapters
        )
        return self.model_copy(update={"checkpoint": str(self.checkpoint_path), "adapters": adapters})


class ServeConfig(ModelSettings):
    """What to serve and within which limits; unknown keys are refused."""

    models: tuple[ModelSettings, ...] = Field(
        (),
        description="further models; what an entry leaves out it takes from the settings above, "
        "except checkpoint, model_name, aliases and adapters",
    )
    max_inputs: int = Field(2048, ge=1, description="most inputs in one request")
    max_body_bytes: int = Field(16 * 2**20, ge=1, description="largest request body; more gets status 413")
    ingress_replicas: int = Field(1, ge=1, description="HTTP front ends")
    surge_percent: int = Field(
        100,
        ge=0,
        le=100,
        description="replicas that an update starts before it stops old ones, in percent of those running; "
        "0 stops first, for a cluster without room for both",
    )
    retries: int = Field(
        4, ge=0, description="how often a request is sent again when the replica that had it dies"
    )
    authentication: Authentication = Field(
        "auto",
        description="auto asks for a key where keys are configured and refuses to listen beyond loopback "
        "without any; required always asks; off never does",
    )
    api_keys_file: str = Field("", description="file of API keys; also RAYEMBED_API_KEYS in the environment")
    access_log: bool = Field(False, description="log a line a request, as JSON and without its inputs")

    @model_validator(mode="before")
    @classmethod
    def _entries_take_what_they_leave_out(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("models"), (list, tuple)):
            return values
        own = {"checkpoint", "model_name", "aliases", "adapters"}
        shared = {
            key: value for key, value in values.items() if key in ModelSettings.model_fields.keys() - own
        }
        entries = [{**shared, **entry} if isinstance(entry, Mapping) else entry for entry in values["models"]]
        return {**values, "models": entries}

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "ServeConfig":
        names = [name for model in self.all_models for served in model.served for name in served.names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two models are called {', '.join(twice)}; give each a model_name of its own")
        return self

    @property
    def all_models(self) -> tuple[ModelSettings, ...]:
        """Every served model, the first one being the default of interfaces that name none."""
        first = {key: getattr(self, key) for key in ModelSettings.model_fields}
        return (ModelSettings.model_construct(**first), *self.models)

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
