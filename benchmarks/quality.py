"""A trained run on the built-in tasks next to BM25, all-MiniLM-L6-v2 and its own untrained base.

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
from rayembed.evaluation.scores import COLUMNS, format_table
from rayembed.mining.config import SentenceTransformersTeacher
from rayembed.mining.teachers import MINILM, prepare_teacher

TABLE = COLUMNS | {"minilm": "MiniLM"}


def minilm_scores(options: argparse.Namespace, tasks: list[str]) -> dict[str, float]:
    """Main scores of all-MiniLM-L6-v2; finished tasks are kept with the run's results."""
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
    scores = run(
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
        name: row | {"minilm": minilm[name], "trained_on": TASKS[name].source in trained}
        for name, row in scores.items()
    }
    differences = [float(row["trained"] - row["minilm"]) for row in rows.values()]
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
    print(f"\n{format_table(rows, TABLE)}\n")
    write_report([bar], options.json)


if __name__ == "__main__":
    main()
