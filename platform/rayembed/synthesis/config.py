"""The recipe of a synthesis run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayembed.common.endpoint_client import EndpointConfig
from rayembed.common.settings import Frozen
from rayembed.synthesis.kinds import KINDS


class EndpointGenerator(EndpointConfig):
    """A language model behind an OpenAI-compatible endpoint."""

    kind: Literal["endpoint"]
    temperature: float = Field(1.0, ge=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability to sample from")
    max_tokens: int = Field(1024, ge=16, description="most tokens per answer")
    json_mode: bool = Field(
        False, description="request `response_format: json_object`, if the endpoint supports it"
    )


class LocalGenerator(Frozen):
    """A causal language model in a local Hugging Face folder, on Ray actors."""

    kind: Literal["local"]
    path: str = Field(description="model folder, relative to the workspace")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability to sample from")
    max_tokens: int = Field(512, ge=1, description="most tokens per answer")
    batch_size: int = Field(8, ge=1, description="prompts per batch")
    actors: int | None = Field(
        None, ge=0, description="Ray actors; None: one per GPU or CPU, 0: this process"
    )


Generator = Annotated[EndpointGenerator | LocalGenerator, Field(discriminator="kind")]


class KindSynthesis(Frozen):
    """How much of one kind is made."""

    kind: str = Field(description="one of short-long, long-short, short-short, sts, bitext")
    tasks: int = Field(ge=1, description="tasks to invent; for sts and bitext, settings to draw")
    examples_per_task: int = Field(2, ge=1, description="most rows per task")

    @model_validator(mode="after")
    def _check(self) -> "KindSynthesis":
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        return self


class SynthesisRecipe(Frozen):
    """A whole synthesis run."""

    name: str = Field(
        "synthetic",
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        description="name of the data set, recorded with every row",
    )
    output: str = Field("synthetic", description="folder of the results, relative to the workspace")
    seed: int = Field(17, description="determines lengths, languages and sampling")
    generator: Generator = Field(description="the language model")
    kinds: tuple[KindSynthesis, ...] = Field(min_length=1, description="kinds of rows to make, each once")
    languages: tuple[str, ...] = Field(
        ("English",), min_length=1, description="languages, one drawn per task"
    )
    language_pairs: tuple[tuple[str, str], ...] = Field(
        (("English", "German"), ("English", "French"), ("English", "Spanish")),
        min_length=1,
        description="pairs of languages, one drawn per bitext setting",
    )

    @model_validator(mode="after")
    def _check(self) -> "SynthesisRecipe":
        names = [entry.kind for entry in self.kinds]
        if len(set(names)) != len(names):
            raise ValueError(f"a kind appears twice in {names}; merge the entries")
        return self
