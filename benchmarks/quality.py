"""A trained run on the built-in tasks next to BM25, all-MiniLM-L6-v2, its untrained base and the last report.

python benchmarks/quality.py RUN_FOLDER [--data-dir DIR] [--models-dir DIR] [--tasks NAME ...] --json OUT

All models get the rows, the metrics and the code of mteb. The run is read under the instructions it was
trained with, MiniLM without any, as its card says, and with its own limit of 256 tokens; its weights come
from a package. The run was trained on the train splits of most tasks, which `trained_on` marks; MiniLM, as
far as its card tells, on none of them. Only tasks whose source was held out of training tell whether the run
is a general model.

Each figure is a mean of the run minus that of MiniLM:

quality_mean        over all tasks
quality_retrieval   over the searches
quality_held_out    over the tasks whose source the run was not trained on, none of them where there is none
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import torch
from harness import Bar, arguments, write_report
from mteb.models import SentenceTransformerEncoderWrapper
from scipy.stats import wilcoxon
from sentence_transformers import SentenceTransformer

from rayembed.common.paths import atomic_write, resolve
from rayembed.evaluation.builtin_tasks import TASKS
from rayembed.evaluation.catalogue import OFFLINE, Catalogue
from rayembed.evaluation.encoder import evaluate_task
from rayembed.evaluation.results import trained_sources
from rayembed.evaluation.run import run
from rayembed.evaluation.scores import COLUMNS, Scores, format_table
from rayembed.mining.config import SentenceTransformersTeacher
from rayembed.mining.teachers import MINILM, prepare_teacher
from rayembed.model.checkpoint import read_manifest

LAST = Path(__file__).parent / "results" / "2026-11-22-quality-12-layers-xeon-amx-2-cores.json"
TABLE = COLUMNS | {"minilm": "MiniLM", "last": "last report"}


def minilm_scores(options: argparse.Namespace, tasks: list[str]) -> dict[str, float]:
    """Main scores of all-MiniLM-L6-v2; finished tasks are kept with the run's results."""
    store = options.run / "results" / "minilm.json"
    scores: dict[str, float] = json.loads(store.read_text()) if store.is_file() else {}
    catalogue = Catalogue(resolve(options.data_dir))
    references = [ref for ref in catalogue.select(tasks=tasks).references if ref.name not in scores]
    if not references:
        return scores
    catalogue.prepare(references)
    teacher = prepare_teacher(
        SentenceTransformersTeacher(kind="sentence-transformers", path=MINILM), resolve(options.models_dir)
    )
    model = SentenceTransformerEncoderWrapper(SentenceTransformer(teacher.path, device="cpu"))
    for reference in references:
        scores[reference.name] = evaluate_task(model, catalogue.load(reference)).get_score()
        atomic_write(store, json.dumps(scores, indent=2) + "\n")
        print(f"MiniLM, {reference.name}: {scores[reference.name]:.3f}", flush=True)
    return scores


def mean_bar(name: str, rows: Scores) -> Bar:
    """Mean of the run minus that of MiniLM over the tasks of a table."""
    differences = [float(row["trained"] - row["minilm"]) for row in rows.values()]
    detail = {
        "tasks": rows,
        "better_than_minilm": sum(difference > 0 for difference in differences),
        "wilcoxon_p": float(wilcoxon(differences).pvalue),
        "threads": torch.get_num_threads(),
    }
    spread = min(differences), max(differences)
    return Bar(name, sum(differences) / len(differences), 0.0, "higher", spread, detail)


def main() -> None:
    """Evaluate what is missing and report."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--data-dir", default="data", help="folder of the built sources")
    parser.add_argument("--models-dir", default="models", help="where MiniLM is kept")
    parser.add_argument("--tasks", nargs="+", help=f"tasks instead of all of {OFFLINE}")
    options = parser.parse_args()
    tasks = options.tasks or (["PerlQuestionRetrieval", "SimLex999"] if options.quick else list(TASKS))
    options.run = resolve(options.run)
    minilm = minilm_scores(options, tasks)
    scores = run(
        options.run / "model",
        output=options.run / "results",
        data_dir=options.data_dir,
        baseline=("untrained", options.run / "untrained"),
        with_bm25=True,
        tasks=tasks,
        actors=0,
    )
    trained = set(trained_sources(read_manifest(options.run / "model")) or ())
    [before, *_] = json.loads(LAST.read_text())["bars"]
    rows = {
        name: row
        | {
            "minilm": minilm[name],
            "last": before["detail"]["tasks"].get(name, {}).get("trained"),
            "trained_on": TASKS[name].source in trained,
        }
        for name, row in scores.items()
    }
    searches = {name: row for name, row in rows.items() if TASKS[name].type == "Retrieval"}
    held_out = {name: row for name, row in rows.items() if not row["trained_on"]}
    groups = {"quality_mean": rows, "quality_retrieval": searches, "quality_held_out": held_out}
    print(f"\n{format_table(rows, TABLE)}\n")
    if held_out:
        print(f"Not trained on:\n{format_table(held_out, TABLE)}\n")
    write_report([mean_bar(name, group) for name, group in groups.items() if group], options.json)


if __name__ == "__main__":
    main()
