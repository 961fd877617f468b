"""The recipe of a synthesis run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayembed.common.endpoint_client import EndpointConfig
from rayembed.common.settings import Frozen
from rayembed.mining.config import BM25Teacher, Rescoring, Teacher
from rayembed.synthesis.kinds import KINDS


class EndpointGenerator(EndpointConfig):
    """A language model behind an OpenAI-compatible endpoint."""

    kind: Literal["endpoint"]
    temperature: float = Field(1.0, ge=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability to sample from")
    max_tokens: int = Field(1024, ge=16, description="most tokens per answer")
    json_mode: bool = Field(
        True, description="ask for the form of an answer by `response_format`, where the service has it"
    )
    price_prompt: float = Field(0.0, ge=0, description="price of a million prompt tokens")
    price_answer: float = Field(0.0, ge=0, description="price of a million answer tokens")
    max_cost: float | None = Field(
        None, gt=0, description="ask nothing more once all answers in `output` cost so much; None: no limit"
    )

    @model_validator(mode="after")
    def _check(self) -> "EndpointGenerator":
        if self.max_cost is not None and not (self.price_prompt or self.price_answer):
            raise ValueError("max_cost needs price_prompt and price_answer, per million tokens; give them")
        return self


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

    kind: str = Field(description=f"one of {', '.join(KINDS)}")
    tasks: int = Field(ge=1, description="tasks to invent; for sts, sts-graded and bitext, settings to draw")
    examples_per_task: int = Field(2, ge=1, description="most rows per task")

    @model_validator(mode="after")
    def _check(self) -> "KindSynthesis":
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        return self


class Grounding(Frozen):
    """Queries for passages of the user's own files."""

    corpus: str = Field(description="file, folder or URI of the passages")
    column: str = Field("text", description="column of the files that holds a passage")
    passages: int = Field(1000, ge=1, description="passages to sample, those of fewer than 20 words left out")
    queries_per_passage: int = Field(2, ge=1, description="queries to ask for")
    instruction: str = Field(
        "Given a query, find the passage that answers it", description="recorded with every row"
    )
    teacher: Teacher = Field(BM25Teacher(kind="bm25"), description="searches the corpus, as in mining")
    round_trip: int = Field(
        20, ge=1, description="drop queries whose passage is not among so many results of the search"
    )
    negatives_per_query: int = Field(4, ge=1, description="hard negatives per row")
    rescoring: Rescoring | None = Field(
        None, description="what is right among the results becomes a positive, what is wrong a negative"
    )
    actors: int | None = Field(
        None, ge=0, description="Ray actors of the search; None: one per GPU or CPU, 0: this process"
    )


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
    kinds: tuple[KindSynthesis, ...] = Field((), description="kinds of rows to invent, each once")
    grounded: Grounding | None = Field(None, description="rows for passages of your own; None: none")
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
        if not names and self.grounded is None:
            raise ValueError("nothing is to be made; give kinds or grounded")
        if len(set(names)) != len(names):
            raise ValueError(f"a kind appears twice in {names}; merge the entries")
        return self
