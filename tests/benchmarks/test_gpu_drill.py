"""The whole path of benchmarks/gpu with Ray, dry: a tiny model on a CPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1200)]


def test_the_whole_path_trains_evaluates_embeds_and_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYEMBED_HOME", os.environ.get("RAYEMBED_HOME", str(GPU.parents[1])))
    spec = importlib.util.spec_from_file_location("pack", GPU / "pack.py")
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    pack.make_home(tmp_path / "home")
    command = [sys.executable, str(GPU / "whole.py"), "--tiny", "--home", str(tmp_path / "home")]
    done = subprocess.run([*command, "--output", str(tmp_path / "results")])
    reports = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert {name: report["status"] for name, report in reports.items()} == dict.fromkeys(
        ("train", "evaluate", "embed", "serve"), "done"
    )
    assert done.returncode == 0
    assert reports["train"]["steps"] == 6
    assert 0 < reports["evaluate"]["scores"]["DocstringRetrieval"] < 1
    assert reports["embed"]["texts"] > 3000
    assert all(reports["serve"][load]["texts_per_second"] > 0 for load in ("short", "skewed", "batch"))
