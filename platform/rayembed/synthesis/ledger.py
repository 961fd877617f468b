"""Every answer of the language model on disk as it comes, so that no request is paid for twice."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayembed.common.endpoint_client import keep_answer, stored_answers
from rayembed.synthesis.config import EndpointGenerator, LocalGenerator
from rayembed.synthesis.generators import Prompt, complete
from rayembed.synthesis.kinds import Misfit

logger = logging.getLogger(__name__)


@dataclass
class Usage:
    """What the requests of one step came to."""

    answers: int = 0
    accepted: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    misfits: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Accepted answers and attempts of one step, as JSON lines.

    Args:
        path: file of the step; made when the first answer comes.
    """

    def __init__(self, path: Path):
        self._path = path
        self.accepted: dict[str, Any] = {}
        self.attempts: Counter[str] = Counter()
        self.usage = Usage()
        for record in stored_answers(path):
            self._count(record)

    def ask(
        self,
        generator: EndpointGenerator | LocalGenerator,
        prompts: Mapping[str, Callable[[int], str]],
        parse: Callable[[str], Any],
        *,
        attempts: int,
        seed: int,
    ) -> None:
        """Ask every prompt that has no accepted answer yet, until `attempts` answers did not fit.

        Args:
            generator: the language model.
            prompts: name -> function of the attempt's number, because another attempt asks a bit differently.
            parse: an answer -> what is stored; raises Misfit.
            attempts: most answers to one prompt, earlier runs included.
            seed: decides what is sampled.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(attempts):
            open_names = [
                name for name in prompts if name not in self.accepted and self.attempts[name] == attempt
            ]
            asked = [Prompt(name, prompts[name](attempt), seed + attempt) for name in open_names]
            if asked:
                logger.info("%s: %d requests, attempt %d", self._path.stem, len(asked), attempt + 1)
            with self._path.open("a", encoding="utf-8") as stream:
                for completion in complete(generator, asked):
                    record = vars(completion) | {"value": None, "misfit": None}
                    del record["text"]
                    try:
                        record["value"] = parse(completion.text)
                    except Misfit as misfit:
                        record["misfit"] = str(misfit)
                    keep_answer(stream, record)
                    self._count(record)

    def _count(self, record: Mapping[str, Any]) -> None:
        self.attempts[record["name"]] += 1
        self.usage.answers += 1
        self.usage.prompt_tokens += record["prompt_tokens"]
        self.usage.answer_tokens += record["answer_tokens"]
        if record["misfit"] is None:
            self.accepted[record["name"]] = record["value"]
            self.usage.accepted += 1
        else:
            self.usage.misfits[record["misfit"]] += 1


def merged(parts: Sequence[Usage]) -> Usage:
    """Sum of several steps."""
    total = Usage()
    for part in parts:
        total.answers += part.answers
        total.accepted += part.accepted
        total.prompt_tokens += part.prompt_tokens
        total.answer_tokens += part.answer_tokens
        total.misfits += part.misfits
    return total
