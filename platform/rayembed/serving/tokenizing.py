"""Requests to token ids, under the checkpoint's contract and the request's rule for long inputs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from rayembed.contract import Contract, TokenizedTexts
from rayembed.contract.contract import beginning_ids, edge_ids, end_id
from rayembed.contract.instructions import requested_instruction
from rayembed.serving.config import ModelSettings
from rayembed.serving.errors import ApiError, Problem
from rayembed.serving.messages import DecodeRequest, Inputs, TokenizeRequest, Truncation

MOST_SHOWN = 32_768  # tokens in one answer of /tokenize; a token takes some 60 bytes there
_SLICE_CHARACTERS = 65_536


class RequestTokenizer:
    """Tokenises for one model; to be called from one thread, as a tokenizer's settings are shared state."""

    def __init__(self, contract: Contract, tokenizer: Any, settings: ModelSettings):
        """The settings may have a limit of the endpoint's own; the contract's stays the upper bound."""
        self._contract = contract
        self._tokenizer = tokenizer
        self._settings = settings
        self.max_length = min(settings.max_length or contract.max_length, contract.max_length)

    def __call__(self, inputs: Inputs, truncate: Truncation) -> TokenizedTexts:
        """Token ids of a group of inputs.

        Raises:
            ApiError: a token id is out of range, or an input is too long and `truncate` is NONE.
            RequestError: the instruction is unknown or leaves no room for text, or an input has no token to
                pool.
        """
        instruction = self._instruction(inputs)
        limit = self.max_length
        if inputs.max_tokens is not None:
            limit = min(inputs.max_tokens + self._overhead(instruction), limit)
        if inputs.token_ids:
            self._check_ids(inputs.token_ids)
            tokenized = self._contract.tokenize_ids(self._tokenizer, inputs.token_ids, instruction, limit)
        else:
            tokenized = self._contract.tokenize(self._tokenizer, inputs.texts, instruction, limit)
        if truncate == "END" or not any(tokenized.truncated):
            return tokenized
        if truncate == "NONE":
            if limit < self.max_length:  # the request's own limit says where to cut
                return tokenized
            raise ApiError(
                Problem(
                    400,
                    f"{sum(tokenized.truncated)} of {len(tokenized)} inputs are longer than the limit of "
                    f"{limit} tokens; shorten them or send truncate START or END",
                    param="input",
                    code="context_length_exceeded",
                )
            )
        return self._cut_starts(inputs, instruction, tokenized, limit)

    def show(self, request: TokenizeRequest) -> tuple[bytes, int]:
        """The tokens of each text as JSON, and how many there are.

        With special tokens it is the whole sequence that the model would compute. `start` and `stop` are
        places in the text behind its instruction, as text-embeddings-inference counts them.
        """
        prefix = self._contract.prefix(self._instruction(Inputs(prompt_name=request.prompt_name)))
        special = set(self._tokenizer.all_special_ids)
        shown: list[list[dict[str, Any]]] = []
        count = 0
        for text in request.texts:
            text = prefix + text
            encoded = self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            spans = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
            if request.add_special_tokens:
                spans = self._as_computed(text, spans)
            count += len(spans)
            if count > MOST_SHOWN:
                message = f"the inputs have more than {MOST_SHOWN} tokens; send several requests"
                raise ApiError(Problem(413, message, param="inputs"))
            shown.append([self._shown(text, number, span, number in special) for number, span in spans])
        return orjson.dumps(shown), count

    def decode(self, request: DecodeRequest) -> list[str]:
        """The texts of lists of token ids."""
        self._check_range(request.ids, "ids")
        return [
            self._tokenizer.decode(ids, skip_special_tokens=request.skip_special_tokens)
            for ids in request.ids
        ]

    def _instruction(self, inputs: Inputs) -> str | None:
        return requested_instruction(
            self._contract,
            instruction=inputs.instruction,
            prompt_name=inputs.prompt_name,
            input_type=inputs.input_type,
            side=inputs.side,
            query_name=self._settings.query_instruction,
        )

    def _as_computed(self, text: str, spans: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Tokens and places with what the contract adds, cut to the maximum length."""
        [ids] = self._contract.tokenize_prefixed(self._tokenizer, [text], "", self.max_length).input_ids
        places = [None] * len(beginning_ids(self._tokenizer)) + [span for _, span in spans]
        end = [None] if self._contract.append_eos and ids[-1] == end_id(self._tokenizer) else []
        places = [*places[: len(ids) - len(end)], *end]
        return list(zip(ids, places, strict=True))

    def _shown(self, text: str, number: int, span: Any, special: bool) -> dict[str, Any]:
        if span is None:
            token = self._tokenizer.decode([number])
            return {"id": number, "text": token, "special": special, "start": None, "stop": None}
        start, stop = span
        return {"id": number, "text": text[start:stop], "special": special, "start": start, "stop": stop}

    def _cut_starts(
        self, inputs: Inputs, instruction: str | None, tokenized: TokenizedTexts, limit: int
    ) -> TokenizedTexts:
        """Tokenise the long inputs again, from their last tokens."""
        long = [position for position, cut in enumerate(tokenized.truncated) if cut]
        room = limit - self._overhead(instruction)
        if inputs.token_ids:
            ids = [list(inputs.token_ids[position]) for position in long]
        else:
            ids = edge_ids(self._tokenizer, [inputs.texts[each] for each in long], room, from_end=True)
        shortened = self._contract.tokenize_ids(
            self._tokenizer, [each[-room:] for each in ids], instruction, limit
        )
        input_ids = list(tokenized.input_ids)
        for position, replacement in zip(long, shortened.input_ids, strict=True):
            input_ids[position] = replacement
        return TokenizedTexts(input_ids, tokenized.pool_starts, tokenized.truncated)

    def _overhead(self, instruction: str | None) -> int:
        """Tokens that the instruction and the special tokens take next to an input."""
        one = self._contract.tokenize_ids(
            self._tokenizer, [[end_id(self._tokenizer)]], instruction, self.max_length
        )
        return one.lengths[0] - 1

    def _check_ids(self, token_ids: Sequence[Sequence[int]]) -> None:
        if self._settings.token_inputs == "refuse":
            message = (
                "token ids belong to one tokenizer, and clients send those of OpenAI's: send texts "
                "(LangChain: check_embedding_ctx_length=False), or serve with token_inputs=own where clients "
                "use this model's tokenizer"
            )
            raise ApiError(Problem(400, message, param="input", code="token_ids_refused"))
        self._check_range(token_ids, "input")

    def _check_range(self, token_ids: Sequence[Sequence[int]], field: str) -> None:
        vocabulary = len(self._tokenizer)
        if any(token_id >= vocabulary for ids in token_ids for token_id in ids):
            raise ApiError(Problem(400, f"{field}: token ids must be below {vocabulary}", param=field))


def slices(inputs: Inputs) -> Iterator[Inputs]:
    """The same inputs in groups that take a tokenizer some milliseconds each."""
    if inputs.token_ids:
        yield inputs
        return
    first = characters = 0
    for position, text in enumerate(inputs.texts):
        characters += min(len(text) + len(inputs.instruction or ""), _SLICE_CHARACTERS)
        if characters >= _SLICE_CHARACTERS:
            yield replace(inputs, texts=inputs.texts[first : position + 1])
            first, characters = position + 1, 0
    if first < len(inputs.texts):
        yield replace(inputs, texts=inputs.texts[first:]) if first else inputs
