"""Which instruction a request's inputs get."""

from rayembed.contract import Contract
from rayembed.serving.errors import ApiError, Problem
from rayembed.serving.messages import Inputs

QUERY_INSTRUCTION = "query"
"""Name of the contract's instruction that `input_type: query` stands for."""
_WITHOUT_INSTRUCTION = ("passage", "document")


def choose_instruction(contract: Contract, inputs: Inputs) -> str | None:
    """Instruction text of a group of inputs: literal, by name, or through the input type; None for none.

    Raises:
        ApiError: the name is unknown, or the model was trained with instructions and has none for queries.
    """
    if inputs.instruction is not None:
        return inputs.instruction or None
    known = contract.instructions
    names = ", ".join(sorted(known)) or "none; send `instruction` instead"
    if inputs.prompt_name is not None:
        if inputs.prompt_name not in known:
            raise ApiError(Problem(400, f"unknown prompt_name; this model has: {names}", param="prompt_name"))
        return known[inputs.prompt_name] or None
    if inputs.input_type is None or inputs.input_type in _WITHOUT_INSTRUCTION or not known:
        return None
    if inputs.input_type in known:
        return known[inputs.input_type] or None
    if inputs.input_type != QUERY_INSTRUCTION:
        return None
    raise ApiError(
        Problem(
            400,
            f"this model has no instruction for queries in general; choose one with prompt_name: {names}",
            param="input_type",
        )
    )
