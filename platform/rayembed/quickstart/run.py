"""Train, evaluate, deploy, ask, report: each phase through the entry point that a cluster uses.

Every phase continues what an interrupted run left; a second run reuses what is there.
"""

import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rayembed.common.paths import atomic_write, resolve, workspace
from rayembed.config.loading import load_config
from rayembed.data.card import full_card
from rayembed.data.store import build_source
from rayembed.engine.engine import Engine
from rayembed.evaluation.scores import format_table, read_scores
from rayembed.model.checkpoint import installed_versions
from rayembed.quickstart.head import Head, local_head
from rayembed.quickstart.questions import answers
from rayembed.reports.metrics import read_metrics
from rayembed.reports.run_report import embedding_map, sample_searches, write_report, write_summary
from rayembed.serving.deploy import check_port

logger = logging.getLogger(__name__)

RECIPE = "quickstart"
COMMAND = (sys.executable, "-m", "rayembed")


class Phases:
    """Wall time of each phase, kept on disk over an interruption; finished phases keep their first."""

    def __init__(self, path: Path):
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Announce a phase and add its time."""
        print(f"\n=== {name} ===", flush=True)
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        print(f"=== {name}: {seconds:.0f} s ===", flush=True)
        self.seconds.setdefault(name, seconds)
        atomic_write(self._path, json.dumps(self.seconds) + "\n")


def run_quickstart(recipe: str = RECIPE, *, port: int = 8000) -> Path:
    """Run the quickstart and return its report.

    Args:
        recipe: recipe file, or the name of a shipped recipe.
        port: TCP port of the endpoint on loopback.

    Raises:
        UserError: the port is taken, a package cannot be fetched, or a job failed.
    """
    config = load_config(recipe)
    check_port("127.0.0.1", port)
    run_folder = resolve(config.output) / config.name
    data_dir = resolve(config.data.directory)
    phases = Phases(run_folder / "phases.json")
    with contextlib.ExitStack() as stack:
        with phases.timed("start Ray"):
            head = stack.enter_context(local_head(workspace()))
        with phases.timed("train"):
            head.submit([*COMMAND, "train", recipe])
        with phases.timed("evaluate"):
            evaluation = [
                *COMMAND, "evaluate", "--checkpoint", str(run_folder / "model"),
                "--baseline", f"untrained={run_folder / 'untrained'}", "--bm25",
                "--benchmark", config.evaluation.benchmark, "--data-dir", str(data_dir),
                "--output", str(run_folder / "results"),
            ]  # fmt: skip
            head.submit(evaluation)
        build_source("python-docstrings", data_dir)
        with phases.timed("serve"):
            url = _deploy(head, run_folder / "model", config.name, port)
            shown = list(answers(url, config.name, data_dir))
    scores = read_scores(run_folder / "results")
    with phases.timed("report"):
        trained, untrained = Engine.load(run_folder / "model"), Engine.load(run_folder / "untrained")
        report = write_report(
            run_folder,
            title=f"rayembed {config.name}",
            records=read_metrics(run_folder / "metrics.jsonl"),
            scores=scores,
            seconds=phases.seconds,
            versions=installed_versions(),
            embeddings=embedding_map(untrained, trained, data_dir),
            searches=sample_searches(trained, data_dir),
            cards=[
                full_card(data_dir, name)
                for name in dict.fromkeys(entry.source for stage in config.stages for entry in stage.blend)
            ],
        )
    write_summary(run_folder, tasks=scores, seconds=phases.seconds, versions=installed_versions())
    print("\nThe endpoint's answers from functions the model has never seen:")
    print("\n".join(shown))
    print("\n" + format_table(scores))
    model = run_folder / "model"
    print(f"\nreport: {report}\nmodel:  {model}\nserve it: make serve CHECKPOINT={model}")
    return report


def _deploy(head: Head, model: Path, name: str, port: int) -> str:
    """Deploy on the head with the command that a user would give; it returns when the endpoint answers."""
    command = [
        *COMMAND, "serve", str(model), "--no-blocking",
        "--port", str(port), "--model-name", name,
    ]  # fmt: skip
    subprocess.run(command, env=head.environment | {"RAY_ADDRESS": head.address}, check=True)
    return f"http://127.0.0.1:{port}"
