"""The kinds of rows that can be made. A new one is a prompt file and a line in `KINDS`.

The two steps, and the split of retrieval-like tasks by the lengths of their two sides, follow E5-Mistral
(arXiv 2401.00368, section 3). The prompts are our own.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from rayembed.common.templates import templates

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]


class Triplet(BaseModel):
    """What a model must answer with: a query, a text that fits it and one that only seems to."""

    model_config = ConfigDict(extra="ignore")

    query: Text
    positive: Text
    negative: Text


class Misfit(ValueError):
    """Why an answer cannot be used, in words that are the same for all such answers."""


@dataclass(frozen=True)
class Kind:
    """A kind of row.

    Attributes:
        task_type: recorded with the rows.
        invents_tasks: whether tasks are invented in a step of their own.
        long_query, long_positive: which side is a passage; checked by the number of words.
        graded: whether both texts have a grade of similarity to the query, from 1 to 5.
        instruction: of kinds without invented tasks.
    """

    task_type: str
    invents_tasks: bool
    long_query: bool = False
    long_positive: bool = False
    graded: bool = False
    instruction: str = ""


_SAME_MEANING = "Find a sentence that means the same"
KINDS: Mapping[str, Kind] = {
    "short-long": Kind("retrieval", invents_tasks=True, long_positive=True),
    "long-short": Kind("classification", invents_tasks=True, long_query=True),
    "short-short": Kind("retrieval", invents_tasks=True),
    "long-long": Kind("retrieval", invents_tasks=True, long_query=True, long_positive=True),
    "sts": Kind("sts", invents_tasks=False, instruction=_SAME_MEANING),
    "sts-graded": Kind("sts", invents_tasks=False, graded=True, instruction=_SAME_MEANING),
    "bitext": Kind("retrieval", invents_tasks=False, instruction="Find the translation of this sentence"),
}

_PROMPTS = templates("rayembed.synthesis", "prompts")
LONG_WORDS = 20  # fewer make no passage
HIGHEST_GRADE = 5
_PROMPT_CHARACTERS = 6000  # of a passage: what a model of 2,048 tokens and more can read
TEXT_FIELDS = {name: {"type": "string"} for name in Triplet.model_fields}
LIST_FIELDS = {"texts": {"type": "array", "items": {"type": "string"}}}
"""JSON schemas of the answers, for services with structured output."""
TOPICS = (
    "health", "law", "cooking", "travel", "software", "sports", "history", "finance", "gardening", "music",
    "physics", "schools", "farming", "weather", "film", "shipping", "housing", "biology", "art", "energy",
)  # fmt: skip


def tasks_prompt(kind: str, *, count: int, language: str, generator: np.random.Generator) -> str:
    """Ask for `count` new tasks of a kind; topics are drawn so that answers differ."""
    topics = generator.choice(TOPICS, size=3, replace=False).tolist()
    return _PROMPTS.get_template("tasks.txt").render(kind=kind, count=count, language=language, topics=topics)


def example_prompt(
    kind: str,
    *,
    task: str,
    languages: tuple[str, str],
    generator: np.random.Generator,
    grades: tuple[float, float] | None = None,
) -> str:
    """Ask for one triplet; length, difficulty and topic are drawn so that answers differ.

    `grades` are those of the positive and the negative, of a kind that has them.
    """
    return _PROMPTS.get_template(f"{kind}.txt").render(
        task=task,
        language=languages[0],
        other_language=languages[1],
        query_length=generator.choice(["at most 5 words", "5 to 15 words", "at least 10 words"]),
        passage_length=generator.choice(["50", "100", "200", "300"]),
        clarity=generator.choice(["clear", "understandable with some effort", "ambiguous"]),
        education=generator.choice(["high school", "college", "expert"]),
        topic=generator.choice(TOPICS),
        grades=grades,
    )


def grounded_prompt(passage: str, *, count: int, generator: np.random.Generator) -> str:
    """Ask for queries that a passage answers; their length and form are drawn so that answers differ."""
    return _PROMPTS.get_template("grounded.txt").render(
        passage=passage[:_PROMPT_CHARACTERS],
        count=count,
        query_length=generator.choice(["at most 5 words", "5 to 15 words", "at least 10 words"]),
        form=generator.choice(["questions", "keywords", "a mixture of questions, keywords and claims"]),
    )


def draw_grades(generator: np.random.Generator) -> tuple[float, float]:
    """Similarity to the query of a positive, 4 to 5, and of a negative, 1 to 3, as E5-Mistral has them."""
    return float(generator.choice([4, 4.5, 5])), float(generator.choice([1, 2, 2.5, 3]))


def parse_tasks(answer: str) -> list[str]:
    """Tasks of an answer; Misfit when it is no JSON list of texts."""
    try:
        tasks = TypeAdapter(list[Text]).validate_python(_json(answer, "[", "]"))
    except ValidationError:
        raise Misfit("not a list of texts") from None
    if not tasks:
        raise Misfit("an empty list")
    return [" ".join(task.split()) for task in tasks]


def parse_triplet(answer: str, kind: str) -> Triplet:
    """Triplet of an answer; Misfit when it lacks a text, repeats one, or a passage is too short."""
    try:
        triplet = Triplet.model_validate(_json(answer, "{", "}"))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the answer"
        raise Misfit(f"{where}: {problem['type']}") from None
    if len({triplet.query.lower(), triplet.positive.lower(), triplet.negative.lower()}) < 3:
        raise Misfit("two of the three texts are the same")
    for is_long, name in ((KINDS[kind].long_query, "query"), (KINDS[kind].long_positive, "positive")):
        if is_long and count_words(getattr(triplet, name)) < LONG_WORDS:
            raise Misfit(f"{name} is too short for a passage")
    return triplet


def count_words(text: str) -> int:
    """Words of a text in any script, roughly.

    Chinese and Japanese have no blanks and about two characters a word, Thai and its neighbours about four.
    """
    dense = re.sub(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]", "字", text)
    dense = re.sub(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]", "ก", dense)
    words = re.findall(r"\w+", re.sub(r"[字ก]+", " ", dense))
    return len(words) + dense.count("字") // 2 + dense.count("ก") // 4


def _json(answer: str, opening: str, closing: str) -> Any:
    """The longest JSON value of that kind, whatever stands around it."""
    decoder = json.JSONDecoder(strict=False)
    found: list[tuple[int, Any]] = []
    starts = [bracket.start() for bracket in re.finditer(re.escape(opening), answer)]
    for start in starts:
        try:
            value, end = decoder.raw_decode(answer, start)
            found.append((end - start, value))
        except (ValueError, RecursionError):
            continue
    if not found:
        raise Misfit("broken JSON" if starts and closing in answer else "no JSON")
    return max(found, key=lambda one: one[0])[1]
