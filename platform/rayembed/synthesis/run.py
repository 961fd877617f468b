"""A synthesis run: invent tasks, write a triplet for each, drop duplicates, report.

Folder of a kind:

- `train.parquet`: rows in the pair layout with the task in a column `instruction`, an ordinary source;
- `report.json`, and `report.md` next to the kinds;
- `work/`: every answer of the language model, from which an interrupted run continues.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_file, atomic_write, resolve
from rayembed.data.contamination import NearDuplicates
from rayembed.data.plan import fingerprint
from rayembed.records.schema import PAIR_SCHEMA, document_id, pair_row
from rayembed.synthesis.answers import Ledger, Usage, merged
from rayembed.synthesis.config import KindSynthesis, SynthesisRecipe
from rayembed.synthesis.kinds import KINDS, Triplet, example_prompt, parse_tasks, parse_triplet, tasks_prompt

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a prompt is asked until an answer can be used."""

_TASKS_PER_REQUEST = 20  # few enough for one answer of 1,024 tokens
_REQUESTS_PER_TASK = 3  # that step one may need at most where answers repeat each other


@dataclass(frozen=True)
class KindReport:
    """Counts of one kind."""

    kind: str
    tasks: int
    rows: int
    answers: int
    misfits: dict[str, int]
    exact_duplicates: int
    near_duplicates: int
    prompt_tokens: int
    answer_tokens: int
    rows_per_answer: float

    @classmethod
    def of(
        cls,
        entry: KindSynthesis,
        *,
        tasks: int,
        rows: int,
        exact_duplicates: int,
        near_duplicates: int,
        usage: Usage,
    ) -> "KindReport":
        """Report of a kind."""
        return cls(
            kind=entry.kind,
            tasks=tasks,
            rows=rows,
            answers=usage.answers,
            misfits=dict(usage.misfits.most_common()),
            exact_duplicates=exact_duplicates,
            near_duplicates=near_duplicates,
            prompt_tokens=usage.prompt_tokens,
            answer_tokens=usage.answer_tokens,
            rows_per_answer=round(rows / usage.answers, 4) if usage.answers else 0.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"{self.rows} rows of {self.tasks} tasks from {self.answers} answers; "
            f"{sum(self.misfits.values())} did not fit, {self.exact_duplicates} exact and "
            f"{self.near_duplicates} near duplicates dropped; "
            f"{self.prompt_tokens + self.answer_tokens} tokens"
        )


@dataclass(frozen=True)
class SynthesizedSource:
    """Result of one kind: its Parquet file and what it took."""

    path: Path
    report: KindReport


def synthesize(recipe: SynthesisRecipe) -> list[SynthesizedSource]:
    """Make all kinds of a recipe.

    Raises:
        DataError: no usable answer came for a kind.
        ResourceError: the endpoint fails; the answers so far are kept.
    """
    results = []
    for position, entry in enumerate(recipe.kinds):
        results.append(_synthesize_kind(recipe, entry, recipe.seed + 1000 * position))
    reports = [result.report for result in results]
    atomic_write(resolve(recipe.output) / "report.md", _markdown(recipe.name, reports))
    return results


def _synthesize_kind(recipe: SynthesisRecipe, entry: KindSynthesis, seed: int) -> SynthesizedSource:
    folder = resolve(recipe.output) / entry.kind
    work = folder / "work" / _settings_key(recipe, entry)
    tasks, steps = [KINDS[entry.kind].instruction] * entry.tasks, []
    if KINDS[entry.kind].invents_tasks:
        tasks, ledger = _invent_tasks(recipe, entry, work, seed)
        steps.append(ledger.usage)
    examples = Ledger(work / "examples.jsonl")
    names = {
        f"{task}/{example}": task for task in range(len(tasks)) for example in range(entry.examples_per_task)
    }
    prompts = {
        name: partial(_example, recipe, entry, tasks[task], name, seed) for name, task in names.items()
    }
    parse = partial(_triplet, entry.kind)
    examples.ask(recipe.generator, prompts, parse, attempts=ATTEMPTS, seed=seed)
    accepted = {name: examples.accepted[name] for name in names if name in examples.accepted}
    kept, exact, near = _without_duplicates(accepted)
    if not kept:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in examples.usage.misfits.most_common(3))
        raise DataError(
            f"{entry.kind}: none of {examples.usage.answers} answers can be used ({reasons or 'no task'}); "
            "use a stronger model or raise max_tokens"
        )
    rows = [_row(recipe.name, entry.kind, tasks[names[name]], triplet) for name, triplet in kept.items()]
    path = folder / "train.parquet"
    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA), temporary, compression="zstd")
    report = KindReport.of(
        entry,
        tasks=len(set(tasks)),
        rows=len(rows),
        exact_duplicates=exact,
        near_duplicates=near,
        usage=merged([*steps, examples.usage]),
    )
    atomic_write(folder / "report.json", json.dumps(report.to_dict(), indent=2) + "\n")
    logger.info("%s: %s", entry.kind, report)
    return SynthesizedSource(path, report)


def _markdown(name: str, reports: Sequence[KindReport]) -> str:
    """The report of all kinds for a person."""
    lines = [
        f"# Synthetic rows: {name}",
        "",
        "| kind | tasks | rows | answers | rows per answer | duplicates, exact and near "
        "| tokens, prompt and answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in reports:
        lines.append(
            f"| {one.kind} | {one.tasks:,} | {one.rows:,} | {one.answers:,} | {one.rows_per_answer:.2f} "
            f"| {one.exact_duplicates:,}, {one.near_duplicates:,} "
            f"| {one.prompt_tokens:,}, {one.answer_tokens:,} |"
        )
    misfits = [(one.kind, reason, count) for one in reports for reason, count in one.misfits.items()]
    if misfits:
        lines += ["", "| kind | why an answer did not fit | answers |", "|---|---|---|"]
        lines += [f"| {kind} | {reason} | {count:,} |" for kind, reason, count in misfits]
    return "\n".join(lines) + "\n"


def _settings_key(recipe: SynthesisRecipe, entry: KindSynthesis) -> str:
    """Folder for the answers under these settings; more tasks continue in the same one."""
    generator = recipe.generator.model_dump(
        mode="json",
        include={"kind", "url", "model", "path", "temperature", "top_p", "max_tokens", "json_mode"},
    )
    made_from = {
        "generator": generator,
        "seed": recipe.seed,
        "kind": entry.kind,
        "languages": [list(recipe.languages), [list(pair) for pair in recipe.language_pairs]],
        "tasks_per_request": _TASKS_PER_REQUEST,
    }
    return fingerprint(made_from)[:12]


def _invent_tasks(
    recipe: SynthesisRecipe, entry: KindSynthesis, work: Path, seed: int
) -> tuple[list[str], Ledger]:
    """The first `entry.tasks` different tasks, and the ledger of the step."""
    ledger = Ledger(work / "tasks.jsonl")
    requests = -(-entry.tasks // _TASKS_PER_REQUEST)
    found: list[str] = []
    for wanted in range(requests, _REQUESTS_PER_TASK * requests + 1):
        prompts = {
            f"tasks/{number}": partial(_tasks, recipe, entry, f"tasks/{number}", seed)
            for number in range(wanted)
        }
        ledger.ask(recipe.generator, prompts, parse_tasks, attempts=ATTEMPTS, seed=seed)
        found = _different([task for name in prompts for task in ledger.accepted.get(name, [])])
        if len(found) >= entry.tasks:
            break
    else:
        logger.warning("%s: %d different tasks instead of %d", entry.kind, len(found), entry.tasks)
    return found[: entry.tasks], ledger


def _tasks(recipe: SynthesisRecipe, entry: KindSynthesis, name: str, seed: int, attempt: int) -> str:
    generator = _generator(name, seed, attempt)
    language = str(generator.choice(recipe.languages))
    return tasks_prompt(entry.kind, count=_TASKS_PER_REQUEST, language=language, generator=generator)


def _example(
    recipe: SynthesisRecipe, entry: KindSynthesis, task: str, name: str, seed: int, attempt: int
) -> str:
    generator = _generator(name, seed, attempt)
    if entry.kind == "bitext":
        first, second = recipe.language_pairs[int(generator.integers(len(recipe.language_pairs)))]
    else:
        first = second = str(generator.choice(recipe.languages))
    return example_prompt(entry.kind, task=task, languages=(first, second), generator=generator)


def _generator(name: str, seed: int, attempt: int) -> np.random.Generator:
    return np.random.default_rng([int(document_id(name), 16), seed, attempt])


def _triplet(kind: str, answer: str) -> dict[str, str]:
    return parse_triplet(answer, kind).model_dump()


def _different(texts: list[str]) -> list[str]:
    seen = NearDuplicates()
    different: list[str] = []
    for text in dict.fromkeys(texts):
        if seen.find(text) is None:
            seen.add(text, text)
            different.append(text)
    return different


def _without_duplicates(accepted: dict[str, dict[str, str]]) -> tuple[dict[str, Triplet], int, int]:
    """Triplets whose query, and whose query and positive together, did not come before; and the counts."""
    kept: dict[str, Triplet] = {}
    queries: set[str] = set()
    seen = NearDuplicates()
    exact = near = 0
    for name, value in accepted.items():
        triplet = Triplet(**value)
        query = re.sub(r"\s+", " ", triplet.query.lower())
        both = f"{triplet.query} {triplet.positive}"
        if query in queries:
            exact += 1
        elif seen.find(both) is not None:
            near += 1
        else:
            kept[name] = triplet
            queries.add(query)
            seen.add(name, both)
    return kept, exact, near


def _row(dataset: str, kind: str, task: str, triplet: Triplet) -> dict[str, Any]:
    return pair_row(
        triplet.query,
        [triplet.positive],
        [triplet.negative],
        dataset=f"{dataset}-{kind}",
        task_type=KINDS[kind].task_type,
        instruction=task,
    )
