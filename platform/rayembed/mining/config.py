"""The recipe of a mining run: teachers, sources, filters."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayembed.common.endpoint_client import EndpointConfig
from rayembed.common.settings import Frozen, refuse
from rayembed.config.data import DataConfig
from rayembed.mining.filters import FilterConfig


class CheckpointTeacher(Frozen):
    """A checkpoint of this platform."""

    kind: Literal["checkpoint"]
    path: str = Field(description="checkpoint folder, relative to the workspace")
    token_budget: int | None = Field(None, ge=1, description="most tokens per forward pass; None: by device")


class SentenceTransformersTeacher(Frozen):
    """A folder that sentence-transformers loads."""

    kind: Literal["sentence-transformers"]
    path: str = Field(description="model folder, or all-minilm-l6-v2 from a package index")
    query_prompt: str | None = Field(
        None, description="text before every query, with {instruction} replaced; None: the model's own"
    )
    document_prompt: str | None = Field(None, description="text before every document; None: the model's own")
    batch_size: int = Field(64, ge=1, description="texts per forward pass")


class EndpointTeacher(EndpointConfig):
    """An OpenAI-compatible embeddings endpoint."""

    kind: Literal["endpoint"]
    batch_size: int = Field(64, ge=1, description="texts per request")
    dimensions: int | None = Field(None, ge=1, description="width to request; None: the model's own")
    query_prompt: str = Field("", description="text before every query, with {instruction} replaced")
    document_prompt: str = Field("", description="text before every document")
    send_instruction: bool = Field(
        False, description="send the instruction in the field `instruction` of a rayembed endpoint"
    )


class BM25Teacher(Frozen):
    """Shared words."""

    kind: Literal["bm25"]


Teacher = Annotated[
    CheckpointTeacher | SentenceTransformersTeacher | EndpointTeacher | BM25Teacher,
    Field(discriminator="kind"),
]


Anchor = Literal["own", "best", "min"]


class SourceMining(Frozen):
    """How one source's hard negatives are found."""

    source: str = Field(description="a built-in source or one of data.sources")
    instruction: str | None = Field(None, description="instruction for the queries")
    symmetric: bool = Field(False, description="documents carry the instruction too")
    corpus: str | None = Field(
        None, description="file, folder or URI with a column `text`: more documents to search"
    )
    teachers: tuple[str, ...] | None = Field(None, min_length=1, description="names of teachers; None: all")
    top_k: int = Field(100, ge=1, description="candidates per teacher and query")
    index: Literal["exact", "ivf", "hnsw"] = Field(
        "exact", description="search over vectors: all of them, or approximately with faiss, on CPUs"
    )
    nprobe: int | None = Field(
        None, ge=1, description="of ivf: clusters that a query looks into; None: one of 32, at least 16"
    )
    efSearch: int | None = Field(
        None, ge=1, description="of hnsw: documents that a query remembers on its way; None: twice top_k"
    )
    round_trip: int | None = Field(
        None, ge=1, description="drop rows whose positive no teacher ranks among so many; None: keep all"
    )
    negatives_per_query: int = Field(4, ge=1, description="negatives per row")
    filters: tuple[FilterConfig, ...] = Field(
        (FilterConfig(name="percentage"),), description="a candidate must pass all of them"
    )
    anchor: Anchor = Field(
        "own",
        description="positive to compare with: the row's own, or the best or the least of its query",
    )
    sample_from: int | None = Field(
        None, ge=1, description="draw negatives from this many of the best; None: take the best"
    )
    fill: Literal["random", "none"] = Field(
        "random", description="complete short rows with random documents, or leave them short"
    )
    known_positives: str | None = Field(
        None,
        description=(
            "Parquet file with `query` and `positives`: answers hidden from mining, to measure "
            "false negatives"
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> "SourceMining":
        for key, index in (("nprobe", "ivf"), ("efSearch", "hnsw")):
            if getattr(self, key) is not None and self.index != index:
                raise ValueError(
                    f"source {self.source}: {key} belongs to index {index}, not {self.index}; remove it"
                )
        if self.round_trip is not None and self.round_trip > self.top_k:
            raise ValueError(
                f"source {self.source}: round_trip {self.round_trip} is above top_k {self.top_k}; raise top_k"
            )
        if self.sample_from is not None and self.sample_from < self.negatives_per_query:
            raise ValueError(
                f"source {self.source}: sample_from {self.sample_from} is below negatives_per_query "
                f"{self.negatives_per_query}; raise it"
            )
        return self


class _Rescoring(Frozen):
    """Another model looks at the candidates that passed the filters."""

    top: int = Field(8, ge=1, description="candidates to check at a time, until a query has its negatives")
    promote: bool = Field(
        False, description="candidates that are right after all become positives of the query's rows"
    )
    share: float = Field(
        0.95, gt=0, le=1, description="of scores: reject from this share of the positive's probability on"
    )


class Judge(_Rescoring, EndpointConfig):
    """A chat model behind an endpoint decides whether a document answers."""

    kind: Literal["judge"]


class Reranker(_Rescoring, EndpointConfig):
    """A cross-encoder behind `/rerank`."""

    kind: Literal["reranker"]
    scale: Literal["logits", "probabilities"] | None = Field(
        None,
        description="of its scores; None: logits if one of the first `top` of all queries is outside 0 to 1",
    )


class CrossEncoder(_Rescoring):
    """A cross-encoder in a local folder that sentence-transformers loads, on Ray actors."""

    kind: Literal["cross-encoder"]
    path: str = Field(description="model folder, relative to the workspace")
    batch_size: int = Field(64, ge=1, description="pairs per forward pass")
    scale: Literal["logits"] = Field("logits", description="of its scores, before any activation")


Rescoring = Annotated[Judge | Reranker | CrossEncoder, Field(discriminator="kind")]


class MiningRecipe(Frozen):
    """A whole mining run."""

    output: str = Field("mined", description="folder of the results, relative to the workspace")
    seed: int = Field(17, description="determines random choices")
    data: DataConfig = Field(DataConfig(), description="settings of the data")
    models_directory: str = Field("models", description="folder for packaged teachers")
    teachers: dict[str, Teacher] = Field(min_length=1, description="name -> teacher")
    sources: tuple[SourceMining, ...] = Field(min_length=1, description="sources to mine, each once")
    rescoring: Rescoring | None = Field(None, description="check candidates with another model; None: do not")
    actors: int | None = Field(
        None, ge=0, description="Ray actors; None: one per GPU or CPU, 0: this process"
    )

    @model_validator(mode="after")
    def _check(self) -> "MiningRecipe":
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        names = [entry.source for entry in self.sources]
        if len(set(names)) != len(names):
            yield f"a source appears twice in {names}; merge the entries"
        for entry in self.sources:
            for unknown in sorted(set(entry.teachers or ()) - self.teachers.keys()):
                yield (
                    f"source {entry.source}: no teacher is named {unknown!r}; there are "
                    f"{', '.join(self.teachers)}"
                )
