"""The embedding contract: how a text becomes tokens and which of them are pooled.

Training, mining, evaluation and serving all tokenise through one `Contract`, which is saved with the
weights. Two vectors are comparable only when they were made under the same contract.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema

from rayembed.common.errors import CheckpointError, RequestError
from rayembed.common.paths import atomic_write, fetch
from rayembed.contract.ranges import VectorRanges

CONTRACT_FILE = "contract.json"
CONTRACT_VERSION: Literal[1] = 1
_CHARACTERS_TRIED, _CHARACTERS_READ = 8, 64  # of a text for each token wanted: at first, and at most
_MARGIN = 16  # tokens


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of N texts.

    Attributes:
        input_ids: for each text its token ids: beginning token if the tokenizer has one, instruction, text,
            end token. BERT's are [CLS] and [SEP].
        pool_starts: for each text the number of leading positions that attend but are not pooled.
        truncated: for each text whether it lost tokens to the maximum length.
    """

    input_ids: list[list[int]]
    pool_starts: list[int]
    truncated: list[bool]

    def __len__(self) -> int:
        return len(self.input_ids)

    def extend(self, more: "TokenizedTexts") -> None:
        """Add the texts of another one behind these."""
        self.input_ids.extend(more.input_ids)
        self.pool_starts.extend(more.pool_starts)
        self.truncated.extend(more.truncated)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each text."""
        return [len(ids) for ids in self.input_ids]


class Contract(BaseModel):
    """Instruction template, end token, maximum length, truncation and trained instructions of one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = Field(CONTRACT_VERSION, description="of this format")
    instruction_template: str = Field(
        "Instruct: {instruction}\nQuery: ",
        description="prefix of a text that carries an instruction, with {instruction} in it",
    )
    append_eos: bool = Field(
        True, description="end every text with the tokenizer's end token, which is pooled"
    )
    pool_instruction: bool = Field(
        False,
        description="pool the instruction and the beginning token too, as sentence-transformers does",
    )
    max_length: int = Field(
        512, ge=4, description="most tokens of one text, instruction and end token included"
    )
    truncation: Literal["keep_eos", "published"] = Field(
        "keep_eos",
        description="keep_eos cuts the text and keeps the end token; published cuts after appending, "
        "as NV-Embed does",
    )
    similarity: Literal["cosine"] = Field("cosine", description="how two vectors are compared")
    instructions: dict[str, str] = Field(
        default_factory=dict, description="task name -> instruction that the model was trained with"
    )
    symmetric: tuple[str, ...] = Field(
        (), description="task names whose documents carry the instruction too, as in training"
    )
    # Measured by `rayembed compress`; no key of recipes.
    vector_ranges: SkipJsonSchema[VectorRanges | None] = None

    @field_validator("instruction_template")
    @classmethod
    def _one_place_for_the_instruction(cls, template: str) -> str:
        try:
            fields = [field[1:] for field in Formatter().parse(template) if field[1] is not None]
        except ValueError:
            fields = []
        if fields != [("instruction", "", None)]:
            raise ValueError(
                f"instruction_template {template!r} needs {{instruction}} once and no other field: the text "
                "comes behind it. Write {{ and }} for braces"
            )
        return template

    def prefix(self, instruction: str | None) -> str:
        """Text that goes before an instructed input; empty without an instruction."""
        return self.instruction_template.format(instruction=instruction) if instruction else ""

    @property
    def prompts(self) -> tuple[str | None, str | None] | None:
        """Fixed prompts of queries and documents, as many encoders have; None: any sentence may be given.

        With them `instructions` has "query", and its text is empty or the whole prefix.
        """
        is_prefix = self.instruction_template == "{instruction}" or not self.instructions.get("query")
        if "query" not in self.instructions or not is_prefix:
            return None
        return self.instructions["query"] or None, self.instructions.get("document") or None

    def instruction_for(self, task: str, side: Literal["query", "document"] = "query") -> str | None:
        """Instruction that the model was trained with for one side of a task; None: the bare text.

        Raises:
            RequestError: the model was not trained for this task.
        """
        if task not in self.instructions:
            known = ", ".join(sorted(self.instructions)) or "none"
            raise RequestError(
                f"this model has no instruction named {task!r}, it was trained with: {known}; choose one of "
                "them or give the instruction in words"
            )
        if side == "document" and task not in self.symmetric:
            return self.prompts[1] if self.prompts else None
        return self.instructions[task] or None

    def tokenize(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        instruction: str | None = None,
        max_length: int | None = None,
    ) -> TokenizedTexts:
        """Tokenise `texts`, each with the same `instruction` in front (None: documents, no prefix).

        Raises:
            RequestError: the maximum length leaves no room for the text behind the instruction.
        """
        return self.tokenize_prefixed(tokenizer, texts, self.prefix(instruction), max_length)

    def tokenize_prefixed(
        self, tokenizer: Any, texts: Sequence[str], prefix: str, max_length: int | None = None
    ) -> TokenizedTexts:
        """Like `tokenize`, for callers that hold the finished prefix in place of the instruction."""
        if not texts:
            return TokenizedTexts([], [], [])
        limit = min(max_length or self.max_length, self.max_length)
        start = self._prefix_tokens(tokenizer, prefix, limit)
        prefixed = [prefix + text for text in texts]
        tokenized = self._assemble(tokenizer, edge_ids(tokenizer, prefixed, limit), start, limit)
        longest = _CHARACTERS_READ * (limit + _MARGIN)
        cut = [was or len(text) > longest for was, text in zip(tokenized.truncated, prefixed, strict=True)]
        return TokenizedTexts(tokenized.input_ids, tokenized.pool_starts, cut)

    def tokenize_ids(
        self,
        tokenizer: Any,
        token_ids: Sequence[Sequence[int]],
        instruction: str | None = None,
        max_length: int | None = None,
    ) -> TokenizedTexts:
        """Like `tokenize` for inputs that a client has tokenised itself (bare text, no special tokens)."""
        limit = min(max_length or self.max_length, self.max_length)
        prefix = self.prefix(instruction)
        start = self._prefix_tokens(tokenizer, prefix, limit)
        prefix_ids = tokenizer(prefix.rstrip(), add_special_tokens=False)["input_ids"] if prefix else []
        encoded = [[*prefix_ids, *ids] for ids in token_ids]
        return self._assemble(tokenizer, encoded, start, limit)

    def _prefix_tokens(self, tokenizer: Any, prefix: str, limit: int) -> int:
        """Number of leading positions that `prefix` takes; RequestError where it leaves no room for text."""
        count = _prefix_tokens(tokenizer, prefix, limit)
        if len(prefix) > _CHARACTERS_READ * (limit + _MARGIN) or count + self.append_eos >= limit:
            raise RequestError(
                f"the instruction takes at least {count} tokens of a maximum length of {limit}, which leaves "
                "no room for text; shorten the instruction or raise max_length"
            )
        return count

    def _assemble(self, tokenizer: Any, encoded: list[list[int]], prefix: int, limit: int) -> TokenizedTexts:
        beginning = beginning_ids(tokenizer)
        end = [end_id(tokenizer)] if self.append_eos else []
        room = limit - len(beginning) - (len(end) if self.truncation == "keep_eos" else 0)
        input_ids = [[*beginning, *ids[:room], *end][:limit] for ids in encoded]
        if any(len(ids) <= prefix for ids in input_ids):
            raise RequestError(
                "an empty text has no tokens to pool under this contract; send at least one character"
            )
        truncated = [len(beginning) + len(ids) + len(end) > limit for ids in encoded]
        return TokenizedTexts(input_ids, [0 if self.pool_instruction else prefix] * len(encoded), truncated)

    def save(self, folder: Path) -> None:
        """Write contract.json into `folder`."""
        content = self.model_dump(mode="json")
        # Thousands of numbers take a line each in indented JSON, so each list of them gets one line.
        ranges = content.pop("vector_ranges") or {}
        lines = [f'    "{name}": {json.dumps(numbers)}' for name, numbers in ranges.items()]
        text = json.dumps(content, indent=2, ensure_ascii=False)
        if lines:
            text = text.removesuffix("\n}") + ',\n  "vector_ranges": {\n' + ",\n".join(lines) + "\n  }\n}"
        atomic_write(folder / CONTRACT_FILE, text + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Contract":
        """Read contract.json of a checkpoint folder.

        Raises:
            CheckpointError: the file is missing, damaged or of another version.
        """
        path = fetch(folder / CONTRACT_FILE)
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {CONTRACT_FILE}; point to a rayembed checkpoint folder")
        try:
            content = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{path} is not valid JSON ({error}); copy the checkpoint again") from error
        version = content.get("version", CONTRACT_VERSION) if isinstance(content, dict) else CONTRACT_VERSION
        if version != CONTRACT_VERSION:
            raise CheckpointError(
                f"{path} has contract version {version}, this release reads {CONTRACT_VERSION}; "
                "use the release that wrote it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise CheckpointError(f"{path} is not a readable contract: {error}") from error


def edge_ids(tokenizer: Any, texts: Sequence[str], wanted: int, *, from_end: bool = False) -> list[list[int]]:
    """Token ids of each text, of long ones only from as much of the start (or end) as `wanted` tokens need.

    A whole megabyte takes most of a second to tokenise, of which 512 tokens are kept. With `wanted` 512 the
    first 4,224 characters are read, then twice as many while they gave fewer than 528 tokens, and at most 64
    characters for each token wanted: nothing that people write needs more. The margin keeps a word that the
    cut splits out of the tokens that are used.
    """
    encoded: list[list[int]] = [[]] * len(texts)
    window, longest = (each * (wanted + _MARGIN) for each in (_CHARACTERS_TRIED, _CHARACTERS_READ))
    pending = list(range(len(texts)))
    while pending:
        parts = [texts[each][-window:] if from_end else texts[each][:window] for each in pending]
        found = _ids(tokenizer, parts)
        for each, ids in zip(pending, found, strict=True):
            encoded[each] = ids
        pending = [
            each
            for each in pending
            if window < min(len(texts[each]), longest) and len(encoded[each]) < wanted + _MARGIN
        ]
        window *= 2
    return encoded


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole texts without special tokens, as `tokenizer(texts)` gives them.

    The library behind transformers is asked directly, without the masks and offsets that nobody reads: many
    texts take two thirds of the time, and one on an idle machine half. Settings are put as transformers puts
    them before each call of its own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _prefix_tokens(tokenizer: Any, prefix: str, limit: int) -> int:
    """Number of leading positions that the prefix takes, beginning token included; at least so many if long.

    NV-Embed counts the tokens of the instruction string tokenised alone, without special tokens, and masks
    that many positions of a sequence that starts with the beginning token. The count includes the lone piece
    of the trailing space, which in the sequence usually merges into the first word. So it covers the
    beginning token and the instruction exactly. A tokenizer without a beginning token needs the count without
    that space. Where that space is no piece, as in WordPiece, the beginning token is counted on top.
    Source: forward helpers of the published NV-Embed-v2 model file.
    """
    if not prefix:
        return 0
    bare, counted = map(len, edge_ids(tokenizer, [prefix.rstrip(), prefix], limit))
    if not beginning_ids(tokenizer):
        return bare
    is_published = tokenizer.bos_token_id is not None and not prefix[-1].isspace()
    return counted if is_published or counted > bare else counted + 1


@lru_cache(8)  # a loaded tokenizer keeps its special tokens; to ask for them takes as long as a short text
def beginning_ids(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer puts in front of every text: its beginning token, or nothing."""
    beginnings = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    first = tokenizer("")["input_ids"][:1] if beginnings else []
    return first if beginnings.issuperset(first) else []


@lru_cache(8)
def end_id(tokenizer: Any) -> int:
    """Id of the token that ends a text: the end token, or the separator of encoders that have no other.

    `load_tokenizer` refuses tokenizers that have neither.
    """
    return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
