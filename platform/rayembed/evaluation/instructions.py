"""Which instruction each side of a task gets: one policy a run, recorded in every result.

auto        what the checkpoint was trained with for the task or its source, else its fixed prompts, else as
            mteb
contract    the same, but a task that the checkpoint has no instruction for is refused
mteb        mteb's prompt on queries and on all texts of tasks without sides; documents get none
paper       NV-Embed's table: as mteb with the differences below, both sides instructed for Quora
mteb-entry  as the published model's entry in mteb: a prompt that names no side goes on documents too,
            which are those of reranking and of CQADupstack
a file      YAML: task name or type -> text, or -> {query: text, document: text}
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from mteb.abstasks.abstask import get_abstask_prompt
from mteb.abstasks.task_metadata import TaskMetadata

from rayembed.common.errors import CheckpointError, ConfigError
from rayembed.common.settings import read_yaml
from rayembed.contract import Contract
from rayembed.contract.instructions import trained_instructions

NAMES = ("auto", "contract", "mteb", "paper", "mteb-entry")

_QUESTION_TO_PASSAGES = "Given a question, retrieve passages that answer the question"
_CLAIM_TO_EVIDENCE = "Given a claim, retrieve documents that support or refute the claim"
_DUPLICATES = (
    "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the "
    "given question"
)

# Where NV-Embed's evaluation differs from mteb's prompts (arXiv 2405.17428). The wording follows public
# descriptions of the table, not the table itself.
_PAPER_QUERIES = {
    "ArguAna": _CLAIM_TO_EVIDENCE,
    "FiQA2018": "Given a financial question, retrieve relevant passages that answer the query",
    "NQ": _QUESTION_TO_PASSAGES,
    "Touche2020": _QUESTION_TO_PASSAGES,
}
_PAPER_BOTH_SIDES = frozenset({"QuoraRetrieval"})
_CQADUPSTACK = "CQADupstack"
_SEARCH_TYPES = ("Retrieval", "Reranking")


@dataclass(frozen=True)
class Instructions:
    """Instructions of one task.

    Attributes:
        query: on queries, or on every text of a task without sides; None for the bare text.
        document: on documents.
        origin: who says so: contract, mteb, paper, mteb-entry or file.
    """

    query: str | None
    document: str | None
    origin: str


@dataclass(frozen=True)
class InstructionPolicy:
    """A named policy, or the table of a user's file."""

    name: str = "auto"
    table: tuple[tuple[str, Instructions], ...] = ()

    @classmethod
    def named(cls, policy: str) -> "InstructionPolicy":
        """The policy of that name, else the file of that path.

        Raises:
            ConfigError: neither a policy nor a readable table.
        """
        if policy in NAMES:
            return cls(policy)
        path = Path(policy)
        if not path.is_file():
            raise ConfigError(
                f"{policy!r} is no instruction policy; choose {', '.join(NAMES)} or a YAML file"
            )
        try:
            entries = read_yaml(path.read_bytes())
            table = {str(task): _entry(value) for task, value in entries.items()}
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{path} is not a table of instructions ({error}); each entry is `task: text` or "
                "`task: {query: text, document: text}`"
            ) from error
        return cls("file", tuple(table.items()))

    def instructions(self, task: TaskMetadata, contract: Contract) -> Instructions:
        """Instructions of `task` for a checkpoint with `contract`.

        Raises:
            CheckpointError: the policy is `contract` and the checkpoint has no instruction for the task.
            ConfigError: the user's file has none.
        """
        if self.name == "file":
            return self._from_table(task)
        if self.name in ("auto", "contract"):
            if trained := trained_instructions(contract, (task.name, str(task.dataset["path"]))):
                return Instructions(*trained, "contract")
            if self.name == "contract":
                raise CheckpointError(
                    f"the checkpoint was trained with no instruction for {task.name}; it has some for "
                    f"{', '.join(sorted(contract.instructions)) or 'nothing'}. Choose another policy"
                )
            return Instructions(*contract.prompts, "contract") if contract.prompts else _mteb(task)
        return {"mteb": _mteb, "paper": _paper, "mteb-entry": _mteb_entry}[self.name](task)

    def check(self, tasks: Iterable[TaskMetadata], contract: Contract) -> None:
        """Resolve all `tasks` before the first is run; raises as `instructions` does."""
        for task in tasks:
            self.instructions(task, contract)

    def _from_table(self, task: TaskMetadata) -> Instructions:
        table = dict(self.table)
        for key in (task.name, task.type):
            if key in table:
                return table[key]
        raise ConfigError(f"the file of instructions has no entry for {task.name} or its type {task.type}")


def _entry(value: object) -> Instructions:
    sides = {"query": value} if isinstance(value, str) else value
    if not isinstance(sides, dict) or not set(sides) <= {"query", "document"}:
        raise TypeError(f"unexpected entry {value!r}")
    return Instructions(sides.get("query") or None, sides.get("document") or None, "file")


def _prompt(task: TaskMetadata, side: str) -> str | None:
    """mteb's own prompt: the side's where it names sides, else the task's, else the one of the task type."""
    if isinstance(task.prompt, dict):
        return cast(dict[str, str], task.prompt).get(side) or None
    return task.prompt or get_abstask_prompt(task.name) or None


def _mteb(task: TaskMetadata) -> Instructions:
    named = isinstance(task.prompt, dict)
    return Instructions(_prompt(task, "query"), _prompt(task, "document") if named else None, "mteb")


def _paper(task: TaskMetadata) -> Instructions:
    query = _PAPER_QUERIES.get(task.name, _DUPLICATES if task.name.startswith(_CQADUPSTACK) else None)
    query = query or _prompt(task, "query")
    return Instructions(query, query if task.name in _PAPER_BOTH_SIDES else None, "paper")


def _mteb_entry(task: TaskMetadata) -> Instructions:
    sided = task.type in _SEARCH_TYPES
    return Instructions(_prompt(task, "query"), _prompt(task, "document") if sided else None, "mteb-entry")
