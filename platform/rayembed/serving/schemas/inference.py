"""The interface of text-embeddings-inference: `/embed`, `/similarity`, `/tokenize`, `/info`.

It serves one model and names none; the optional field `model` chooses another one here.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from rayembed.serving.messages import Truncation
from rayembed.serving.schemas.fields import AnyText, Count, Text

_Texts = Annotated[Text | Annotated[list[Text], Field(min_length=1)], Field(union_mode="left_to_right")]


class Cut(BaseModel):
    """What happens to long inputs, and their instruction."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    truncate: StrictBool = Field(True, description="cut long inputs; false makes them an error")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    prompt_name: AnyText | None = None

    def truncation(self) -> Truncation:
        """The rule for long inputs."""
        if not self.truncate:
            return "NONE"
        return "START" if self.truncation_direction.lower() == "left" else "END"


class EmbedRequest(Cut):
    """Body of POST /embed."""

    inputs: _Texts
    normalize: StrictBool = True
    dimensions: Count | None = None
    model: StrictStr | None = None

    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class Sentences(BaseModel):
    """One text and those it is compared with."""

    model_config = ConfigDict(extra="forbid")

    source_sentence: Text
    sentences: Annotated[list[Text], Field(min_length=1)]


class SimilarityRequest(BaseModel):
    """Body of POST /similarity; the answer is one cosine a sentence."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    inputs: Sentences
    parameters: Cut = Field(default_factory=Cut)
    model: StrictStr | None = None


class ShowTokensRequest(BaseModel):
    """Body of POST /tokenize."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    inputs: _Texts
    add_special_tokens: StrictBool = True
    prompt_name: AnyText | None = None
    model: StrictStr | None = None

    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class ShownToken(BaseModel):
    """One token of a text."""

    id: int
    text: str
    special: bool


class ModelType(BaseModel):
    """What kind of model it is."""

    embedding: dict[str, str]


class Info(BaseModel):
    """Body of GET /info."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: ModelType
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str
