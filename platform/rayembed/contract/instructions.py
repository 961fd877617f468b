"""The one picker of instructions: in words, by a trained task, or by the kind of input.

A contract with `instructions: {questions: Find it, topics: ""}` and `symmetric: [topics]` gives

    asked for                              instruction
    words "Sort"                           Sort
    task questions, side query             Find it
    task questions, side document          none, as in training
    task topics                            none: it was trained on bare texts
    input_type query                       refused: this model has no instruction of that name
    input_type passage                     none
"""

from collections.abc import Iterable
from typing import Literal

from rayembed.common.errors import RequestError
from rayembed.contract.contract import Contract

Side = Literal["query", "document"]

QUERY_TYPE = "query"
"""Name of the contract's instruction that `input_type: query` stands for."""
_DOCUMENT_TYPES = ("passage", "document")


def chosen_instruction(
    contract: Contract, instruction: str | None, task: str | None, side: Side = "query"
) -> str | None:
    """Instruction to put before every text; None: the bare text.

    Args:
        contract: contract of the model.
        instruction: the instruction in words.
        task: name of a stored instruction, in place of words.
        side: of a task, whether the texts are its queries or its documents.

    Raises:
        RequestError: both are given, or the model was not trained for the task.
    """
    if task is None:
        return instruction or None
    if instruction is not None:
        raise RequestError(
            f"an instruction in words and the task {task!r} were both given; leave out one of them"
        )
    return contract.instruction_for(task, side)


def trained_instructions(contract: Contract, names: Iterable[str]) -> tuple[str | None, str | None] | None:
    """Instructions of queries and documents under the first name that the model knows; None for none."""
    for name in names:
        if name in contract.instructions:
            return contract.instruction_for(name), contract.instruction_for(name, "document")
    return None


def requested_instruction(
    contract: Contract,
    *,
    instruction: str | None = None,
    prompt_name: str | None = None,
    input_type: str | None = None,
    side: Side = "query",
    query_name: str = "",
) -> str | None:
    """Instruction of a served request; the first of the three that is given counts, None is the bare text.

    Messages do not repeat what was asked for: a request may be private.

    Args:
        contract: contract of the model.
        instruction: the instruction in words, empty for none.
        prompt_name: name of a stored instruction.
        input_type: query, passage, document, or the name of an instruction to use where the model has it.
        side: with `prompt_name`, whether the texts are the task's queries or its documents.
        query_name: which instruction `query` stands for; empty for the one named query.

    Raises:
        RequestError: `prompt_name` is unknown, or queries need an instruction and the model has none for all.
    """
    if instruction is not None:
        return instruction or None
    known = contract.instructions
    names = ", ".join(sorted(known)) or "none; send `instruction` instead"
    if prompt_name is not None:
        if prompt_name not in known:
            raise RequestError(f"unknown prompt_name; this model has: {names}", parameter="prompt_name")
        return contract.instruction_for(prompt_name, side)
    if input_type is None or not known:
        return None
    if input_type in known:
        return known[input_type] or None
    query_name = query_name or QUERY_TYPE
    if input_type in _DOCUMENT_TYPES:
        return contract.instruction_for(query_name, "document") if query_name in known else None
    if input_type != QUERY_TYPE:
        return None
    if query_name in known:
        return known[query_name] or None
    raise RequestError(
        f"this model has no instruction for queries in general; choose one with prompt_name: {names}, or "
        "serve with query_instruction=NAME",
        parameter="input_type",
    )
