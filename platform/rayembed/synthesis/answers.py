"""Answers of a language model, an endpoint or a local model on Ray actors, on disk as they come.

No request is paid for twice: a run that is cut off asks only what has no accepted answer yet.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from rayembed.common.endpoint_client import (
    Chat,
    answer_form,
    ask_all,
    endpoint_errors,
    kept_answers,
    stored_answers,
    without_reasoning,
)
from rayembed.common.errors import DataError, RefusedItemError, ResourceError
from rayembed.common.paths import fetch, location_of, resolve
from rayembed.common.progress import Progress
from rayembed.common.ray_work import run_items
from rayembed.records.schema import document_id
from rayembed.synthesis.config import EndpointGenerator, LocalGenerator
from rayembed.synthesis.kinds import Misfit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A prompt and the name of the request; `seed` decides what is sampled."""

    name: str
    text: str
    seed: int


@dataclass(frozen=True)
class Completion:
    """The answer to a prompt and what it cost in tokens; `failure` says why there is none."""

    name: str
    text: str
    prompt_tokens: int
    answer_tokens: int
    failure: str | None = None


@dataclass
class Usage:
    """What the requests of one step came to."""

    answers: int = 0
    accepted: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    misfits: Counter[str] = field(default_factory=Counter)


_ENOUGH_ANSWERS, _LEAST_ACCEPTED = 100, 0.05  # before a model that hardly ever fits costs more


_ATTEMPTS = 3  # most answers to one prompt, those of earlier runs included
WORK = "work"
"""Folder of a kind's answers, in one folder for each set of settings."""


def draws(name: str, seed: int, attempt: int) -> np.random.Generator:
    """Decides what a prompt asks for; another one for every attempt."""
    return np.random.default_rng([int(document_id(name), 16), seed, attempt])


def identity(generator: EndpointGenerator | LocalGenerator) -> dict[str, Any]:
    """What the answers of a generator depend on."""
    names = {"kind", "url", "model", "path", "temperature", "top_p", "max_tokens", "json_mode"}
    return generator.model_dump(mode="json", include=names)


def _seed(name: str, seed: int, attempt: int) -> int:
    return int(hashlib.sha256(f"{name}/{seed}/{attempt}".encode()).hexdigest()[:8], 16) >> 1


class Spending:
    """What the answers of a run cost, stored ones included, against the most that they may cost.

    Args:
        generator: its prices and `max_cost`.
        output: folder of the run; every answer below it counts, whatever settings it was asked with.
    """

    def __init__(self, generator: EndpointGenerator | LocalGenerator, output: Path):
        self._generator = generator if isinstance(generator, EndpointGenerator) else None
        self.most = self._generator.max_cost if self._generator else None
        self.cost = 0.0
        if self.most is None:
            return
        for path in sorted(fetch(output).glob(f"*/{WORK}/*/*.jsonl")):
            for record in stored_answers(path):
                self.add(record["prompt_tokens"], record["answer_tokens"])

    def add(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Count an answer; nothing is counted without a limit."""
        if self._generator is not None and self.most is not None:
            prices = self._generator.price_prompt, self._generator.price_answer
            self.cost += (prompt_tokens * prices[0] + answer_tokens * prices[1]) / 1e6

    @property
    def over(self) -> bool:
        """Whether nothing more may be asked."""
        return self.most is not None and self.cost >= self.most


class Ledger:
    """Accepted answers and attempts of one step, as JSON lines.

    Args:
        path: file of the step; made when the first answer comes.
        spending: of the run.
    """

    def __init__(self, path: Path, spending: Spending):
        self._path, self._spending = fetch(path), spending
        self.accepted: dict[str, Any] = {}
        self.attempts: Counter[str] = Counter()
        self.usage = Usage()
        for record in stored_answers(self._path):
            self._count(record)

    def ask(
        self,
        generator: EndpointGenerator | LocalGenerator,
        prompts: Mapping[str, Callable[[int], str]],
        parse: Callable[[str], Any],
        *,
        fields: Mapping[str, Any],
        seed: int,
    ) -> None:
        """Ask every prompt that has no accepted answer yet, until `_ATTEMPTS` answers did not fit.

        Nothing more is asked once `max_cost` is reached; what is in flight then is kept.
        Each request has a seed of its own: equal prompts get different answers.

        Args:
            generator: the language model.
            prompts: name -> function of the attempt's number, because another attempt asks a bit differently.
            parse: an answer -> what is stored; raises Misfit.
            fields: name -> JSON schema of what an answer holds, for services with structured output.
            seed: decides what is sampled.

        Raises:
            DataError: hardly any of the first answers can be used.
            ResourceError: there is a `max_cost` and the service does not say what tokens it used.
        """
        for attempt in range(_ATTEMPTS):
            open_names = [
                name for name in prompts if name not in self.accepted and self.attempts[name] == attempt
            ]
            if not open_names or self._spending.over:
                continue
            asked = [Prompt(name, prompts[name](attempt), _seed(name, seed, attempt)) for name in open_names]
            shown = Progress(logger, f"{self._path.stem}, attempt {attempt + 1}", len(asked), unit="requests")
            with kept_answers(self._path) as keep:
                for completion in complete(generator, asked, fields, self._spending):
                    record = vars(completion) | {"value": None, "misfit": completion.failure}
                    del record["text"], record["failure"]
                    try:
                        if completion.failure is None:
                            record["value"] = parse(completion.text)
                    except Misfit as misfit:
                        record["misfit"] = str(misfit)
                    keep(record)
                    self._count(record)
                    self._spend(completion)
                    self._give_up_in_time()
                    shown.add()

    def _spend(self, completion: Completion) -> None:
        self._spending.add(completion.prompt_tokens, completion.answer_tokens)
        if self._spending.most is not None and completion.text and not completion.answer_tokens:
            raise ResourceError(
                "the service does not say how many tokens an answer took, so that max_cost cannot be kept; "
                "remove max_cost"
            )

    def _give_up_in_time(self) -> None:
        usage = self.usage
        if usage.answers >= _ENOUGH_ANSWERS and usage.accepted < _LEAST_ACCEPTED * usage.answers:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in usage.misfits.most_common(3))
            raise DataError(
                f"{self._path.stem}: {usage.accepted} of {usage.answers} answers can be used ({reasons}); "
                "use a stronger model or raise max_tokens, then run again"
            )

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


def complete(
    config: EndpointGenerator | LocalGenerator,
    prompts: Sequence[Prompt],
    fields: Mapping[str, Any],
    spending: Spending,
) -> Iterator[Completion]:
    """Yield the answers to all prompts, each as soon as it is there where the generator allows.

    Raises:
        RequestError: the endpoint refuses all requests, for want of a right for example.
        ResourceError: it fails after all repetitions, or a package is missing.
        DataError: there is no local model.
    """
    if isinstance(config, EndpointGenerator):
        yield from _from_endpoint(config, takewhile(lambda _: not spending.over, prompts), fields)
        return
    folder = resolve(config.path)
    if not fetch(folder / "config.json").is_file():
        raise DataError(f"generator: {location_of(folder)} is no Hugging Face model folder")
    config = config.model_copy(update={"path": str(folder)})
    size = config.batch_size
    batches = [
        {"prompts": [vars(prompt) for prompt in prompts[start : start + size]]}
        for start in range(0, len(prompts), size)
    ]
    for batch in run_items(partial(LocalModel, config), batches, actors=config.actors, title="generating"):
        for answer in batch["answers"]:
            yield Completion(**answer)


def _from_endpoint(
    config: EndpointGenerator, prompts: Iterable[Prompt], fields: Mapping[str, Any]
) -> Iterator[Completion]:
    options: dict[str, Any] = {"response_format": answer_form(**fields)} if config.json_mode else {}
    chat = Chat(
        config, temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, **options
    )

    def ask(prompt: Prompt) -> Completion:
        try:
            with endpoint_errors(config):
                answer = chat(prompt.text, seed=prompt.seed)
        except RefusedItemError as error:
            return Completion(prompt.name, "", 0, 0, f"refused: {error}")
        failure = "cut off at max_tokens" if answer.cut else None
        return Completion(prompt.name, answer.text, answer.prompt_tokens, answer.answer_tokens, failure)

    yield from ask_all(config, ask, prompts)


class LocalModel:
    """A causal language model in transformers; an actor's worker."""

    def __init__(self, config: LocalGenerator):
        self._config = config

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from rayembed.common.device import resolve_device
        from rayembed.model.precision import resolve_precision

        folder, device = fetch(self._config.path), resolve_device("auto")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=resolve_precision("auto", device))
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.eval()
        return torch.nn.Module.to(model, device), tokenizer

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Answer the prompts of a batch; the batch's names and seeds decide what is sampled."""
        import torch

        model, tokenizer = self._loaded
        prompts = [Prompt(**prompt) for prompt in item["prompts"]]
        inputs = tokenizer(
            [_chat(tokenizer, prompt.text) for prompt in prompts], return_tensors="pt", padding=True
        ).to(model.device)
        key = "|".join(f"{prompt.name}/{prompt.seed}" for prompt in prompts)
        torch.manual_seed(int(hashlib.sha256(key.encode()).hexdigest()[:12], 16))
        with torch.inference_mode():
            outputs = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=self._config.max_tokens,
                do_sample=True,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = outputs[:, inputs["input_ids"].shape[1] :]
        return {
            "answers": [
                {
                    "name": prompt.name,
                    "text": without_reasoning(tokenizer.decode(tokens, skip_special_tokens=True)),
                    "prompt_tokens": int(mask.sum()),
                    "answer_tokens": int((tokens != tokenizer.pad_token_id).sum()),
                }
                for prompt, tokens, mask in zip(prompts, answers, inputs["attention_mask"], strict=True)
            ]
        }


def _chat(tokenizer: Any, text: str) -> str:
    """The prompt as the model's chat template has it, or as it is."""
    if not tokenizer.chat_template:
        return text
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
