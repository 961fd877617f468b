"""The whole path on one GPU with Ray: train, evaluate, embed, serve under load; without a network.

python benchmarks/gpu/whole.py --output FOLDER [--home FOLDER] [--tiny]

The model has SmolLM2-135M's shape and random weights: the work is real, the scores mean little. Recipe, rows
and tasks are the quickstart's. Each part writes FOLDER/NAME.json when it is done, with what it measured or
how it failed; what needs the trained model is left out where there is none. `--tiny` is the dry run on a CPU.
Where ray is missing, all runs in an environment with the packages of the archive that `pack.py --ray` made.
"""

import argparse
import asyncio
import importlib.util
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PORT = 8719
TASKS = ("DocstringRetrieval", "WordNetGlossRetrieval", "WordNetLexnameClustering", "VaderMovies")
SHAPE = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "sliding_window": None,
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1,
         "num_key_value_heads": 1}  # fmt: skip
STEPS = {"retrieval": (60, 1024), "blend": (20, 256)}  # of a stage, and rows of a batch
SMALL_STEPS = {"retrieval": (4, 16), "blend": (2, 8)}
Figures = dict[str, Any]


def own_python(folder: Path) -> str:
    """Interpreter that finds the archive's packages first, then this one's; all of Ray's processes use it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    first = [str(ROOT / "site"), str(ROOT / "platform")]
    lines = [f"import sys; sys.path[:0] = {first!r}", sysconfig.get_paths()["purelib"]]
    (packages / "archive.pth").write_text("\n".join(lines) + "\n")
    return str(folder / "bin" / "python")


class Run:
    """What the parts share.

    Attributes:
        home: the workspace: data, tokenizer, runs.
        tiny: whether this is the dry run.
        seconds: that the part may still take.
    """

    def __init__(self, home: Path, tiny: bool):
        self.home, self.tiny = home, tiny
        self.model = home / "runs" / "whole" / "model"
        self.seconds = 0.0

    def command(self, *arguments: object) -> float:
        """Run a command of rayembed in the workspace; returns its seconds."""
        started = time.perf_counter()
        command = [sys.executable, "-m", "rayembed", *map(str, arguments)]
        subprocess.run(command, check=True, cwd=self.home, timeout=self.seconds)
        return time.perf_counter() - started


def train(run: Run) -> Figures:
    """Both stages of the quickstart's recipe."""
    import torch
    from transformers import MistralConfig, MistralModel

    torch.manual_seed(0)
    base = run.home / "base"
    MistralModel(MistralConfig(**SHAPE | (SMALL if run.tiny else {}))).bfloat16().save_pretrained(base)
    shutil.copytree(run.home / "tokenizer", base, dirs_exist_ok=True)
    settings = ["name=whole", f"base_model={base}", "base_layers=null"]
    for stage, (count, rows) in (SMALL_STEPS if run.tiny else STEPS).items():
        sizes = {"steps": count, "batch_size": rows, "warmup_steps": 1}
        settings += [f"stages.{stage}.{key}={value}" for key, value in sizes.items()]
    seconds = run.command("train", "quickstart", *(part for each in settings for part in ("--set", each)))
    lines = (run.model.parent / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    late = [step for step in steps if step["stage"] == "retrieval"]
    late = late[len(late) // 4 :]
    names = ("tokens_per_second", "utilization", "memory")
    return {
        "seconds": seconds,
        "steps": len(steps),
        "loss": [steps[0]["loss"], late[-1]["loss"]],
        "step_seconds": statistics.median(step["seconds"] for step in late),
        "waiting_seconds": statistics.median(step["phases"]["data"] for step in late),
    } | {name: statistics.median(step[name] for step in late) for name in names}


def evaluate(run: Run) -> Figures:
    """Four of the quickstart's tasks."""
    tasks = TASKS[:1] if run.tiny else TASKS
    seconds = run.command(
        "evaluate", "--checkpoint", run.model, "--output", "scores", "--tasks", ",".join(tasks)
    )
    found = {path.stem: json.loads(path.read_text()) for path in (run.home / "scores").rglob("*.json")}
    scores = {task: found[task]["scores"]["test"][0]["main_score"] for task in tasks}
    return {"seconds": seconds, "scores": scores}


def embed(run: Run) -> Figures:
    """Texts of a file to vectors; the rate includes the start of Ray."""
    import pyarrow.parquet as pq

    name = "python-docstrings" if run.tiny else "wordnet-glosses"
    file = run.home / "data" / name / "train.parquet"
    seconds = run.command(
        "embed", file, "--checkpoint", run.model, "--output", "vectors", "--text-column", "query"
    )
    texts = pq.read_metadata(file).num_rows
    vectors = pq.read_table(run.home / "vectors" / "vectors").num_rows
    assert vectors == texts, f"{vectors} vectors of {texts} texts"
    return {"seconds": seconds, "texts": texts, "texts_per_second": texts / seconds}


def serve(run: Run) -> Figures:
    """The endpoint, idle and under load of short texts, of long and short ones, and of batches."""
    import serving

    server = serving.Server("rayembed", f"http://127.0.0.1:{PORT}/v1")
    command = serving.own_command(run.model, PORT, {})
    with serving.running([command], {}) as [process]:
        serving.wait_for(server, process)
        figures: Figures = {
            "idle_ms": asyncio.run(serving.idle_latency(server, serving.texts_of([12] * 40, 5))),
        }
        seconds = 1.0 if run.tiny else 10.0
        for name, (clients, requests) in serving.workloads(quick=run.tiny).items():
            rate, tail = asyncio.run(serving.load(server, clients, requests, seconds))
            figures[name] = {"texts_per_second": rate, "p99_ms": tail, "clients": clients}
        computed, passes = serving.computed(server)
    return figures | {"ms_of_a_pass": computed / passes * 1000}


PARTS: dict[str, tuple[Callable[[Run], Figures], int]] = {
    "train": (train, 180),
    "evaluate": (evaluate, 120),
    "embed": (embed, 90),
    "serve": (serve, 150),
}
"""Each part in order, with its budget in seconds: together nine minutes."""


def main() -> None:
    """Run the parts in order; ends with exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--home", type=Path, default=ROOT / "home", help="data and tokenizer, by pack.py")
    parser.add_argument("--tiny", action="store_true", help="a small model and few steps on a CPU")
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("ray") is None:
        python = own_python(output / "environment")
        os.execv(python, [python, __file__, *sys.argv[1:]])
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "platform")]
    from harness import machine

    home = output / "home"
    shutil.copytree(options.home, home, dirs_exist_ok=True)
    os.environ |= {"RAYEMBED_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "platform")}
    run, failed = Run(home, options.tiny), False
    for name, (part, budget) in PARTS.items():
        report: Figures = {"part": name, "machine": machine()}
        run.seconds = budget * (10 if options.tiny else 1)
        try:
            if name != "train" and not run.model.is_dir():
                raise RuntimeError("there is no trained model")
            report |= {"status": "done", **part(run)}
        except (Exception, SystemExit):  # the next part may work
            logging.exception("%s failed", name)
            failed = True
            report |= {"status": "failed", "error": traceback.format_exc()}
        (output / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps({key: value for key, value in report.items() if key != "machine"}), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
