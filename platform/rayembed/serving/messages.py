"""What the HTTP side and the model replicas say to each other."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import BaseModel

from rayembed.contract.instructions import Side
from rayembed.contract.ranges import VectorRanges

_CHARACTERS_A_TOKEN = 4

Truncation = Literal["NONE", "START", "END"]
Priority = Literal["online", "bulk"]


@dataclass(frozen=True)
class Inputs:
    """N texts, or N lists of token ids, under one instruction.

    Attributes:
        texts: the inputs where they are texts.
        token_ids: the inputs where the client tokenised them.
        instruction: what they are for, in words; wins over the two below and may be empty for none.
        prompt_name: name of an instruction that the model was trained with.
        input_type: query, passage, document, or the name of an instruction to use where the model has it.
        side: with `prompt_name`, whether the inputs are the task's queries or its documents.
        max_tokens: limit on each input, its instruction apart, below the model's own; None for that.
    """

    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] = ()
    instruction: str | None = None
    prompt_name: str | None = None
    input_type: str | None = None
    side: Side = "query"
    max_tokens: int | None = None

    def __len__(self) -> int:
        return len(self.texts) + len(self.token_ids)

    @property
    def characters(self) -> int:
        """Length of all inputs, each with its instruction; a token counts as one character."""
        instructions = len(self) * len(self.instruction or "")
        return instructions + sum(map(len, self.texts)) + sum(map(len, self.token_ids))

    def at(self, positions: Sequence[int]) -> "Inputs":
        """The same group with only some of its inputs."""
        if len(positions) == len(self):
            return self
        return replace(
            self,
            texts=[self.texts[each] for each in positions] if self.texts else (),
            token_ids=[self.token_ids[each] for each in positions] if self.token_ids else (),
        )

    def estimated_tokens(self, most: int = sys.maxsize) -> int:
        """Tokens before tokenising: one for four characters, at most `most` an input."""
        before = len(self.instruction or "") // _CHARACTERS_A_TOKEN + 1
        texts = sum(min(len(text) // _CHARACTERS_A_TOKEN + before, most) for text in self.texts)
        return texts + sum(min(len(ids) + before, most) for ids in self.token_ids)


@dataclass(frozen=True)
class ReplicaRequest(ABC):
    """What the HTTP side asks of one replica.

    Attributes:
        avoid: names of replicas that were full or failed; another one is asked where there is one.
    """

    avoid: frozenset[str] = field(default=frozenset(), kw_only=True)

    @abstractmethod
    def __len__(self) -> int:
        """Number of inputs."""

    @property
    @abstractmethod
    def estimated_tokens(self) -> int:
        """Tokens of all inputs, as far as they are known before tokenising."""


@dataclass(frozen=True)
class EncodeRequest(ReplicaRequest):
    """Texts whose vectors are wanted, all from one set of weights.

    Attributes:
        groups: inputs in the order in which their vectors are wanted.
        dimensions: width to cut the vectors to; None for the full width.
        truncate: what happens to an input above the maximum length: refuse, cut its start, cut its end.
        normalize: scale vectors that were cut to `dimensions` back to unit length.
        priority: bulk work is computed when online work leaves room.
        trace: headers of the trace that the request belongs to.
        adapter: served name of the adapter to compute with; empty for the model itself.
        wants_ranges: the vectors will be quantised, for which the model's ranges are needed.
        client: name of the API key; the requests of one client take turns as one. Empty: each for itself.
    """

    groups: Sequence[Inputs]
    dimensions: int | None = None
    truncate: Truncation = "END"
    normalize: bool = True
    priority: Priority = "online"
    trace: Mapping[str, str] = field(default_factory=dict)
    adapter: str = ""
    wants_ranges: bool = False
    client: str = ""

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    @property
    def characters(self) -> int:
        """Those of all groups."""
        return sum(group.characters for group in self.groups)

    @cached_property
    def estimated_tokens(self) -> int:
        """Those of all groups, looked at once."""
        return sum(group.estimated_tokens() for group in self.groups)


@dataclass(frozen=True)
class Embeddings:
    """N vectors of one model.

    Attributes:
        vectors: fp32 vectors, shape (N, D).
        tokens: tokens of the inputs, instruction and end token included.
        truncated: number of inputs that were cut to the maximum length.
        digest: digest of the checkpoint that made the vectors.
        cached: number of inputs whose vector came from the cache.
        ranges: of the model's vectors, where they were asked for and measured.
    """

    vectors: np.ndarray
    tokens: int
    truncated: int
    digest: str
    cached: int = 0
    ranges: VectorRanges | None = None


@dataclass(frozen=True)
class TokenizeRequest(ReplicaRequest):
    """Texts whose tokens a client wants to see."""

    texts: Sequence[str]
    prompt_name: str | None = None
    add_special_tokens: bool = True

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def estimated_tokens(self) -> int:
        """One for four characters."""
        return Inputs(self.texts).estimated_tokens()


@dataclass(frozen=True)
class DecodeRequest(ReplicaRequest):
    """Lists of token ids whose texts a client wants to see."""

    ids: Sequence[Sequence[int]]
    skip_special_tokens: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def estimated_tokens(self) -> int:
        """The ids are the tokens."""
        return sum(map(len, self.ids))


@dataclass(frozen=True)
class Content:
    """A finished answer in JSON, and the tokens that it took."""

    json: bytes
    tokens: int


class ModelCard(BaseModel):
    """One entry of GET /v1/models: what a replica says of a model or an adapter that it serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rayembed"
    digest: str = ""
    dimensions: int = 0
    max_length: int = 0
    vocabulary: int = 0
    precision: str = ""
    pooling: str = ""
    instructions: dict[str, str] = {}
    symmetric: list[str] = []  # instructions that documents carry, too
    aliases: list[str] = []


@dataclass(frozen=True)
class ReplicaStatus:
    """What /debug shows of one model replica.

    Attributes:
        process: name of the replica.
        pid: its process on its node.
        queued_tokens: accepted and not yet answered.
        max_queued_tokens: where 429 begins.
        tokens_per_second: recent speed of the model; 0 before the first batch.
        uptime_s: seconds since the model was loaded.
        digest: digest of the weights.
    """

    process: str
    pid: int
    queued_tokens: int
    max_queued_tokens: int
    tokens_per_second: float
    uptime_s: float
    digest: str
