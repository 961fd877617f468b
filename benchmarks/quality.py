"""A trained run on the built-in tasks beside BM25, all-MiniLM-L6-v2 and its own untrained base.

python benchmarks/quality.py RUN_FOLDER [--data-dir DIR] [--models-dir DIR] [--tasks NAME ...] --json OUT

All models get the rows, the metrics and the code of mteb. The run is read under the instructions it was
trained with, MiniLM without any, as its card says, and with its own limit of 256 tokens; its weights come
from a package. The run was trained on the train splits of most tasks, which `trained_on` marks; MiniLM, as
far as its card tells, on none of them.

quality_mean: mean of the run over all tasks minus that of MiniLM
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import torch
from harness import Bar, arguments, write_report
from mteb.models import SentenceTransformerEncoderWrapper
from scipy.stats import wilcoxon
from sentence_transformers import SentenceTransformer

from rayembed import evaluation
from rayembed.evaluation.benchmarks import OFFLINE
from rayembed.evaluation.catalogue import Catalogue
from rayembed.evaluation.encoder import evaluate_task
from rayembed.evaluation.overlap import trained_sources
from rayembed.evaluation.scores import task_type
from rayembed.evaluation.tasks import TASKS
from rayembed.mining.config import SentenceTransformersTeacher
from rayembed.mining.teachers import MINILM, prepare_teacher
from rayembed.paths import atomic_write, resolve

COLUMNS = {"bm25": "BM25", "base": "untrained", "minilm": "MiniLM", "trained": "trained"}


def minilm_scores(options: argparse.Namespace, tasks: list[str]) -> dict[str, float]:
    """Main scores of all-MiniLM-L6-v2; finished tasks are kept beside the run's results."""
    teacher = prepare_teacher(
        SentenceTransformersTeacher(kind="sentence-transformers", path=MINILM), resolve(options.models_dir)
    )
    store = options.run / "results" / "minilm.json"
    scores: dict[str, float] = json.loads(store.read_text()) if store.is_file() else {}
    catalogue = Catalogue(resolve(options.data_dir))
    references = [ref for ref in catalogue.select(tasks=tasks).references if ref.name not in scores]
    catalogue.prepare(references)
    model = SentenceTransformerEncoderWrapper(SentenceTransformer(teacher.path, device="cpu"))
    for reference in references:
        scores[reference.name] = evaluate_task(model, catalogue.load(reference)).get_score()
        atomic_write(store, json.dumps(scores, indent=2) + "\n")
        print(f"MiniLM, {reference.name}: {scores[reference.name]:.3f}", flush=True)
    return scores


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a task, then the means of each type and of all tasks that every column has."""
    lines = ["| task | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    groups: dict[str, list[str]] = {}
    for name, row in rows.items():
        groups.setdefault(f"mean of {row['type']}", []).append(name)
        mark = "" if row["trained_on"] else " (not trained on)"
        lines.append(f"| {name}{mark} | " + " | ".join(_cell(row[column]) for column in COLUMNS) + " |")
    groups = {kind: members for kind, members in groups.items() if len(members) > 1}
    groups[f"mean of all {len(rows)}"] = list(rows)
    for kind, members in groups.items():
        means = [_mean([rows[name][column] for name in members]) for column in COLUMNS]
        lines.append(f"| {kind} | " + " | ".join(_cell(value) for value in means) + " |")
    return "\n".join(lines)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Evaluate what is missing and report."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--data-dir", default="data", help="folder of the built sources")
    parser.add_argument("--models-dir", default="models", help="where MiniLM is kept")
    parser.add_argument("--tasks", nargs="+", help=f"tasks instead of all of {OFFLINE}")
    options = parser.parse_args()
    tasks = options.tasks or (["PerlQuestionRetrieval", "SimLex999"] if options.quick else list(TASKS))
    options.run = options.run.resolve()
    minilm = minilm_scores(options, tasks)
    scores = evaluation.run(
        options.run / "model",
        output=options.run / "results",
        data_dir=options.data_dir,
        baseline=("untrained", options.run / "untrained"),
        with_bm25=True,
        tasks=tasks,
        actors=0,
    )
    trained = set(trained_sources(options.run / "model") or ())
    rows = {
        name: row
        | {
            "minilm": minilm[name],
            "type": task_type(name),
            "trained_on": TASKS[name].source in trained,
        }
        for name, row in scores.items()
    }
    differences = [row["trained"] - row["minilm"] for row in rows.values()]
    bar = Bar(
        "quality_mean",
        sum(differences) / len(differences),
        0.0,
        "higher",
        (min(differences), max(differences)),
        {
            "tasks": rows,
            "better_than_minilm": sum(difference > 0 for difference in differences),
            "wilcoxon_p": float(wilcoxon(differences).pvalue),
            "threads": torch.get_num_threads(),
        },
    )
    print("\n" + table(rows) + "\n")
    write_report([bar], options.json)
    if options.json:
        atomic_write(options.json.with_suffix(".md"), table(rows) + "\n")


if __name__ == "__main__":
    main()
