"""A synthesis run: invent tasks, write a triplet for each, drop duplicates, report.

Folder of a kind:

- `train.parquet`: rows in the pair layout with the task in a column `instruction`, an ordinary source;
- `report.json`, and `report.md` next to the kinds;
- `work/`: every answer of the language model, from which an interrupted run continues.
"""

import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_write, resolve
from rayembed.data.contamination import NearDuplicates
from rayembed.data.plan import fingerprint
from rayembed.records.schema import PAIR_SCHEMA, pair_row
from rayembed.synthesis.answers import WORK, Ledger, Spending, draws, identity, merged
from rayembed.synthesis.config import KindSynthesis, SynthesisRecipe
from rayembed.synthesis.grounded import ground
from rayembed.synthesis.kinds import (
    HIGHEST_GRADE,
    KINDS,
    LIST_FIELDS,
    TEXT_FIELDS,
    Triplet,
    draw_grades,
    example_prompt,
    parse_tasks,
    parse_triplet,
    tasks_prompt,
)
from rayembed.synthesis.report import KindReport, SynthesizedSource, markdown, write_parquet

logger = logging.getLogger(__name__)

_TASKS_PER_REQUEST = 20  # few enough for one answer of 1,024 tokens
_REQUESTS_PER_TASK = 3  # that step one may need at most where answers repeat each other


def synthesize(recipe: SynthesisRecipe) -> list[SynthesizedSource]:
    """Make all kinds of a recipe, and rows for the passages of the user.

    A kind that gets nothing, as `max_cost` is reached before, is left out.

    Raises:
        DataError: no usable answer came for a kind.
        ResourceError: the endpoint fails; the answers so far are kept.
    """
    output = resolve(recipe.output)
    spending = Spending(recipe.generator, output)
    made = [
        _synthesize_kind(recipe, entry, recipe.seed + 1000 * position, spending)
        for position, entry in enumerate(recipe.kinds)
    ]
    if recipe.grounded is not None:
        made.append(ground(recipe, recipe.grounded, spending))
    results = [result for result in made if result is not None]
    if spending.over:
        logger.warning("max_cost is reached: %.2f of %.2f is spent", spending.cost, spending.most)
    if not results:
        raise DataError(f"max_cost is reached before the first row ({spending.cost:.2f} is spent); raise it")
    atomic_write(output / "report.md", markdown(recipe.name, [result.report for result in results]))
    return results


def _synthesize_kind(
    recipe: SynthesisRecipe, entry: KindSynthesis, seed: int, spending: Spending
) -> SynthesizedSource | None:
    folder = resolve(recipe.output) / entry.kind
    work = folder / WORK / _settings_key(recipe, entry)
    tasks, steps = [KINDS[entry.kind].instruction] * entry.tasks, []
    if KINDS[entry.kind].invents_tasks:
        tasks, ledger = _invent_tasks(recipe, entry, work, seed, spending)
        steps.append(ledger.usage)
    examples = Ledger(work / "examples.jsonl", spending)
    names = {
        f"{task}/{example}": task for task in range(len(tasks)) for example in range(entry.examples_per_task)
    }
    prompts = {
        name: partial(_example, recipe, entry, tasks[task], name, seed) for name, task in names.items()
    }
    parse = partial(_triplet, entry.kind)
    examples.ask(recipe.generator, prompts, parse, fields=TEXT_FIELDS, seed=seed)
    accepted = {name: examples.accepted[name] for name in names if name in examples.accepted}
    kept, exact, near = _without_duplicates(accepted)
    if not kept and spending.over:
        return None
    if not kept:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in examples.usage.misfits.most_common(3))
        raise DataError(
            f"{entry.kind}: none of {examples.usage.answers} answers can be used ({reasons or 'no task'}); "
            "use a stronger model or raise max_tokens"
        )
    rows = [
        _row(recipe.name, entry.kind, tasks[names[name]], triplet, _grades(entry.kind, name, seed))
        for name, triplet in kept.items()
    ]
    path = folder / "train.parquet"
    write_parquet(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA), path)
    report = KindReport.of(
        entry.kind,
        tasks=len(set(tasks)),
        rows=len(rows),
        exact_duplicates=exact,
        near_duplicates=near,
        usage=merged([*steps, examples.usage]),
    )
    atomic_write(folder / "report.json", json.dumps(report.to_dict(), indent=2) + "\n")
    logger.info("%s: %s", entry.kind, report)
    return SynthesizedSource(path, report)


def _settings_key(recipe: SynthesisRecipe, entry: KindSynthesis) -> str:
    """Folder for the answers under these settings; more tasks continue in the same one."""
    made_from = {
        "generator": identity(recipe.generator),
        "seed": recipe.seed,
        "kind": entry.kind,
        "languages": [list(recipe.languages), [list(pair) for pair in recipe.language_pairs]],
        "tasks_per_request": _TASKS_PER_REQUEST,
    }
    return fingerprint(made_from)[:12]


def _invent_tasks(
    recipe: SynthesisRecipe, entry: KindSynthesis, work: Path, seed: int, spending: Spending
) -> tuple[list[str], Ledger]:
    """The first `entry.tasks` different tasks, and the ledger of the step."""
    ledger = Ledger(work / "tasks.jsonl", spending)
    requests = -(-entry.tasks // _TASKS_PER_REQUEST)
    found: list[str] = []
    for wanted in range(requests, _REQUESTS_PER_TASK * requests + 1):
        prompts = {
            f"tasks/{number}": partial(_tasks, recipe, entry, f"tasks/{number}", seed)
            for number in range(wanted)
        }
        ledger.ask(recipe.generator, prompts, parse_tasks, fields=LIST_FIELDS, seed=seed)
        found = _different([task for name in prompts for task in ledger.accepted.get(name, [])])
        if len(found) >= entry.tasks:
            break
    else:
        logger.warning("%s: %d different tasks instead of %d", entry.kind, len(found), entry.tasks)
    return found[: entry.tasks], ledger


def _tasks(recipe: SynthesisRecipe, entry: KindSynthesis, name: str, seed: int, attempt: int) -> str:
    generator = draws(name, seed, attempt)
    language = str(generator.choice(recipe.languages))
    return tasks_prompt(entry.kind, count=_TASKS_PER_REQUEST, language=language, generator=generator)


def _example(
    recipe: SynthesisRecipe, entry: KindSynthesis, task: str, name: str, seed: int, attempt: int
) -> str:
    generator = draws(name, seed, attempt)
    if entry.kind == "bitext":
        first, second = recipe.language_pairs[int(generator.integers(len(recipe.language_pairs)))]
    else:
        first = second = str(generator.choice(recipe.languages))
    return example_prompt(
        entry.kind,
        task=task,
        languages=(first, second),
        generator=generator,
        grades=_grades(entry.kind, name, seed),
    )


def _grades(kind: str, name: str, seed: int) -> tuple[float, float] | None:
    """Grades of a request's positive and negative, the same for every attempt; None of an ungraded kind."""
    return draw_grades(draws(f"grades/{name}", seed, 0)) if KINDS[kind].graded else None


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


def _row(
    dataset: str, kind: str, task: str, triplet: Triplet, grades: tuple[float, float] | None
) -> dict[str, Any]:
    return pair_row(
        triplet.query,
        [triplet.positive],
        [triplet.negative],
        dataset=f"{dataset}-{kind}",
        task_type=KINDS[kind].task_type,
        teacher_scores=[grade / HIGHEST_GRADE for grade in grades] if grades else None,
        instruction=task,
    )
