"""Fields that several interfaces share."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictStr

from rayembed.serving.messages import Truncation


def _encodable(text: str) -> str:
    """A lone surrogate is valid JSON and no valid text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text has half of a surrogate pair, which is no character") from error
    return text


def _number(value: Any) -> Any:
    """JSON does not tell 1.0 from 1, but it tells both from "1" and true."""
    if isinstance(value, (bool, str)):
        raise ValueError("a number is needed")
    return value


AnyText = Annotated[StrictStr, AfterValidator(_encodable)]
Text = Annotated[AnyText, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_number)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Truncate = Annotated[
    Truncation,
    Field(description="what happens to an input above the model's maximum length: an error, or a cut"),
]
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary"]
