"""The checks for GPUs, dry: a tiny model on a CPU takes the same way."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "run.py"
MEASURED = {"attention": 2, "head": 3, "training": 6, "gradcache": 2, "deepspeed": 4, "engine": 9}
NEEDS_TORCHAO = {"int8 weights", "fp8 weights", "fp8"}


def test_every_check_measures_on_a_cpu_and_writes_what_it_found(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--output", str(tmp_path)]
    done = subprocess.run(
        [*command, "--patience", "4"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {}
    for name, measured in MEASURED.items():
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert (report["status"], len(report["rows"])) == ("done", measured)
        assert {"device", "torch", "date"} <= report["machine"].keys()
        rows |= {(name, row["name"]): row for row in report["rows"]}
    failed = {key for key, row in rows.items() if "error" in row and key[0] != "head"}
    assert failed <= {("engine", name) for name in NEEDS_TORCHAO}
    assert rows["head", "agreement"]["error"] < 0.05
    assert max(rows["attention", "grouped, width 8, causal"]["errors"].values()) < 0.05
    assert all(rows["gradcache", name]["largest_error"] < 1e-5 for name in ("plain", "checkpointing"))
    assert rows["engine", "bf16 against fp32"]["smallest_cosine"] > 0.999


def test_a_check_that_outlasts_its_budget_is_ended_and_told(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--output", str(tmp_path)]
    done = subprocess.run([*command, "--only", "head", "--patience", "0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "head: out of time" in done.stdout
    assert json.loads((tmp_path / "head.json").read_text())["status"] == "out of time"
