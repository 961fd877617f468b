"""Requests to token ids, under the checkpoint's contract and the request's rule for long inputs."""

from collections.abc import Sequence
from typing import Any

from rayembed.contract import Contract, TokenizedTexts
from rayembed.contract.instructions import requested_instruction
from rayembed.serving.errors import ApiError, Problem
from rayembed.serving.messages import Inputs, Token, TokenizeRequest, Truncation


class RequestTokenizer:
    """Tokenises for one model; to be called from one thread, as a tokenizer's settings are shared state."""

    def __init__(self, contract: Contract, tokenizer: Any, max_length: int | None = None):
        """`max_length` is a limit of the endpoint's own; the contract's stays the upper bound."""
        self._contract = contract
        self._tokenizer = tokenizer
        self.max_length = min(max_length or contract.max_length, contract.max_length)

    def __call__(self, inputs: Inputs, truncate: Truncation) -> TokenizedTexts:
        """Token ids of a group of inputs.

        Raises:
            ApiError: a token id is out of range, or an input is too long and `truncate` is NONE.
            RequestError: the instruction is unknown or leaves no room for text, or an input has no token to
                pool.
        """
        instruction = requested_instruction(
            self._contract,
            instruction=inputs.instruction,
            prompt_name=inputs.prompt_name,
            input_type=inputs.input_type,
        )
        if inputs.token_ids:
            self._check_ids(inputs.token_ids)
            tokenized = self._contract.tokenize_ids(
                self._tokenizer, inputs.token_ids, instruction, self.max_length
            )
        else:
            tokenized = self._contract.tokenize(self._tokenizer, inputs.texts, instruction, self.max_length)
        if truncate == "END" or not any(tokenized.truncated):
            return tokenized
        if truncate == "NONE":
            raise ApiError(
                Problem(
                    400,
                    f"{sum(tokenized.truncated)} of {len(tokenized)} inputs are longer than the model's "
                    f"{self.max_length} tokens; shorten them or send truncate START or END",
                    param="input",
                    code="context_length_exceeded",
                )
            )
        return self._cut_starts(inputs, instruction, tokenized)

    def show(self, request: TokenizeRequest) -> list[list[Token]]:
        """The tokens of each text; with special tokens the whole sequence that the model would compute."""
        inputs = Inputs(request.texts, prompt_name=request.prompt_name)
        if request.add_special_tokens:
            sequences = self(inputs, "END").input_ids
        else:
            sequences = self._tokenizer(list(request.texts), add_special_tokens=False)["input_ids"]
        special = set(self._tokenizer.all_special_ids)
        return [
            [Token(number, self._tokenizer.decode([number]), number in special) for number in ids]
            for ids in sequences
        ]

    def _cut_starts(
        self, inputs: Inputs, instruction: str | None, tokenized: TokenizedTexts
    ) -> TokenizedTexts:
        """Tokenise the long inputs again, from their last tokens."""
        long = [position for position, cut in enumerate(tokenized.truncated) if cut]
        if inputs.token_ids:
            ids = [list(inputs.token_ids[position]) for position in long]
        else:
            texts = [inputs.texts[position] for position in long]
            ids = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        room = self._room(instruction)
        shortened = self._contract.tokenize_ids(
            self._tokenizer, [each[-room:] for each in ids], instruction, self.max_length
        )
        input_ids = list(tokenized.input_ids)
        for position, replacement in zip(long, shortened.input_ids, strict=True):
            input_ids[position] = replacement
        return TokenizedTexts(input_ids, tokenized.pool_starts, tokenized.truncated)

    def _room(self, instruction: str | None) -> int:
        """Most tokens of an input, next to the instruction and the special tokens."""
        one = self._contract.tokenize_ids(
            self._tokenizer, [[self._tokenizer.eos_token_id]], instruction, self.max_length
        )
        return self.max_length - one.lengths[0] + 1

    def _check_ids(self, token_ids: Sequence[Sequence[int]]) -> None:
        vocabulary = len(self._tokenizer)
        if any(token_id >= vocabulary for ids in token_ids for token_id in ids):
            raise ApiError(Problem(400, f"input: token ids must be below {vocabulary}", param="input"))
