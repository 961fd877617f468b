"""Settings of the endpoint: the `args` of a Serve config file and the options of `rayembed serve`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from rayembed.common.paths import resolve
from rayembed.common.settings import DEFAULT_TOKEN_BUDGETS, Backend, Frozen, Precision, Quantization
from rayembed.serving.cache import CacheKind

Authentication = Literal["auto", "required", "off"]


@dataclass(frozen=True)
class Served:
    """A model or one of its adapters, and the names that requests may give for it.

    Attributes:
        name: its main name.
        aliases: further names.
        adapter: `name` again for an adapter; empty for the model itself.
    """

    name: str
    aliases: tuple[str, ...]
    adapter: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may give."""
        return (self.name, *self.aliases)


ModelName = Annotated[
    str, Field(description="name that requests give as `model`; empty for the folder's name")
]


def _split_at_commas(value: Any) -> Any:
    """The command line may give one text."""
    return tuple(value.split(",")) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)]
Aliases = Annotated[Names, Field(description="further names for the same model")]


class AdapterSettings(Frozen):
    """A LoRA adapter, served under its own name on the replicas of its model."""

    model_config = ConfigDict(protected_namespaces=())

    adapter: str = Field(min_length=1, description="folder saved by peft; every node must be able to read it")
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


class ModelSettings(Frozen):
    """One served model and the replicas that compute it."""

    model_config = ConfigDict(protected_namespaces=())

    checkpoint: str = Field(min_length=1, description="checkpoint folder; every node must be able to read it")
    model_name: ModelName = ""
    aliases: Aliases = ()
    adapters: tuple[AdapterSettings, ...] = Field(
        (), description="LoRA adapters of this model, each served under its own name"
    )
    precision: Precision = Field("auto", description="number format of the weights")
    fp32_layers: int = Field(
        0, ge=0, description="in 16 bits, first layers that compute in fp32 altogether; for decoders"
    )
    quantization: Quantization = Field(
        "none", description="hold the layers' weights in 8 bits: int8 or fp8; needs the package torchao"
    )
    compiled: bool = Field(
        False, description="compile norms and feed-forward networks; the start takes up to a minute longer"
    )
    backend: Backend = Field(
        "auto", description="auto lets OpenVINO, where it is installed, compute short passes on a CPU"
    )
    max_length: int | None = Field(
        None,
        ge=4,
        description="most tokens of one input, at most the checkpoint's own limit; empty for that limit",
    )
    token_inputs: Literal["refuse", "own"] = Field(
        "refuse",
        description="token ids as inputs: refused, because clients send those of OpenAI's tokenizer, or read "
        "as those of this model's own",
    )
    query_instruction: str = Field(
        "",
        description="name of the instruction of requests that only say they are a query; empty: the one "
        "named query",
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="most tokens in one forward pass; limits memory; empty: 4096 on CPUs, 16384 on GPUs",
    )
    max_queued_tokens: int = Field(
        131_072,
        ge=1,
        description="most unanswered tokens per replica; requests beyond that get status 429",
    )
    max_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="resident memory above which a replica is replaced; empty: twice that after loading, "
        "cache_bytes and 4 GiB",
    )
    cache: CacheKind = Field("off", description="where computed vectors are kept: off, memory or redis")
    cache_bytes: int = Field(256 * 2**20, ge=1, description="size of the memory cache per replica")
    min_replicas: int = Field(1, ge=0, description="model replicas that always run; 0 lets the last one stop")
    max_replicas: int = Field(1, ge=1, description="most replicas")
    target_ongoing_requests: float = Field(
        16, gt=0, description="start another replica above this many requests in progress per replica"
    )
    target_queued_tokens: int | None = Field(
        None,
        ge=1,
        description="start another replica above this many unanswered tokens per replica; "
        "replaces target_ongoing_requests",
    )
    upscale_delay_s: float = Field(10, ge=0, description="seconds above the target before one is added")
    downscale_delay_s: float = Field(300, ge=0, description="seconds below it before a replica is removed")
    num_cpus: float = Field(1, gt=0, description="processor cores per model replica; also its torch threads")
    num_gpus: float = Field(0, ge=0, description="GPUs per model replica; replicas with a fraction share one")

    @property
    def tokens_per_pass(self) -> int:
        """The token budget, or that of the device that a replica gets."""
        return self.token_budget or DEFAULT_TOKEN_BUDGETS["cuda" if self.num_gpus else "cpu"]

    @model_validator(mode="after")
    def _replicas_are_a_range(self) -> "ModelSettings":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self

    @model_validator(mode="after")
    def _fp32_layers_differ_from_the_others(self) -> "ModelSettings":
        if self.fp32_layers and self.precision == "fp32":
            raise ValueError(
                f"fp32_layers {self.fp32_layers} belongs to precision bf16 and fp16; in fp32 all layers "
                "compute in fp32"
            )
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
        description="further models; an entry inherits the settings above that it leaves out, "
        "except checkpoint, model_name, aliases and adapters",
    )
    max_inputs: int = Field(2048, ge=1, description="most inputs in one request")
    max_body_bytes: int = Field(8 * 2**20, ge=1, description="largest request body; above it status 413")
    ingress_replicas: int | None = Field(
        None,
        ge=1,
        description="number of HTTP front ends on Ray Serve; empty: 2, one while the other is replaced",
    )
    surge_percent: int = Field(
        100,
        ge=0,
        le=100,
        description="replicas that an update adds before it stops old ones, in percent of the running ones; "
        "0 stops old ones first, for a cluster without room for both",
    )
    authentication: Authentication = Field(
        "auto",
        description="auto asks for a key if keys are configured, and without keys listens on loopback only; "
        "required always asks; off never does",
    )
    api_keys_file: str = Field("", description="file of API keys, next to the variable RAYEMBED_API_KEYS")
    cors_origins: Names = Field(
        (), description="addresses of web pages whose scripts may ask this endpoint; * for any page"
    )
    batches: str = Field(
        "", description="folder or URI for /v1/files and /v1/batches, which every front end reads; empty: off"
    )
    max_file_bytes: int = Field(
        200 * 2**20, ge=1, description="largest file for a batch; above it status 413"
    )
    access_log: bool = Field(False, description="log each request as a line of JSON, without its inputs")

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
            raise ValueError(f"two models are called {', '.join(twice)}; give each its own model_name")
        return self

    def with_absolute_paths(self) -> "ServeConfig":
        """The same settings for a process with another workspace."""
        location = str(resolve(self.batches)) if self.batches and "://" not in self.batches else self.batches
        return self.model_copy(update={"batches": location})

    @property
    def front_ends(self) -> int:
        """Processes that answer HTTP on Ray Serve."""
        return self.ingress_replicas or 2

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
        from rayembed.config.loading import (
            validate_recipe,  # torch takes seconds to import; --help does without
        )

        return validate_recipe(dict(arguments), cls, "serving arguments")
