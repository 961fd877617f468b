"""The instruction of a request: in words, or by the name of a task that the model was trained for."""

from typing import Literal

from rayembed.common.errors import RequestError
from rayembed.contract.contract import Contract

Side = Literal["query", "document"]


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
