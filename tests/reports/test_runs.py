"""Listing runs and comparing them, from folders as training leaves them."""

import contextlib
import json
import os
import re
import time
from pathlib import Path

import pytest
import yaml
from pyarrow.fs import copy_files
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import DataError
from rayembed.reports.compare import recipe_differences
from rayembed.reports.runs import find_runs, open_run
from rayembed.training import run_folder
from rayembed.training.run_folder import noted, read_note


def write_run(
    folder: Path,
    *,
    steps: int = 4,
    rank: int = 16,
    finished: bool = False,
    log_every: int = 1,
    validations: tuple[tuple[int, float], ...] = (),
    scores: dict[str, float] | None = None,
) -> Path:
    """A run of two stages with four and six steps that took so many of them."""
    folder.mkdir(parents=True)
    stages = [{"name": "first", "steps": 4}, {"name": "second <i>", "steps": 6}]
    recipe = {"name": folder.name, "lora": {"rank": rank}, "stages": stages, "training": {"workers": 2}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [
        {
            "stage": stages[0 if step < 4 else 1]["name"],
            "step": step,
            "loss": 4.0 - step / 10,
            "tokens": 100,
            "seconds": 0.5,
            "tokens_per_second": 200.0,
            "sources": {"a": {"accuracy": 0.2, "rows": 3}, "b": {"accuracy": 0.6, "rows": 1}},
        }
        for step in range(log_every - 1, steps, log_every)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if validations:
        records = [
            {"stage": "first", "step": step, "score": score, "scores": {"Task": score}}
            for step, score in validations
        ]
        (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    if scores:
        rows = {task: {"metric": "m", "base": 0.1, "bm25": None, "trained": s} for task, s in scores.items()}
        (folder / "summary.json").write_text(json.dumps({"tasks": rows}))
    if finished:
        (folder / "model").mkdir()
        (folder / "model" / "recipe.yaml").write_text("{}")
    return folder


def invoke(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_runs_are_listed_with_status_score_and_cost(home):
    write_run(home / "runs/done", steps=10, finished=True, scores={"A": 0.4, "B": 0.6})
    write_run(home / "runs/grid/half", steps=6, validations=((4, 0.3), (2, 0.7)))
    with pytest.raises(DataError), noted(write_run(home / "runs/broken", steps=0)):
        raise DataError("no such source\nand more")
    records = {run["name"]: run for run in json.loads(invoke("runs", "--json").output)}
    assert records.keys() == {"done", "half", "broken"}
    assert [records[name]["status"] for name in ("done", "half", "broken")] == [
        "finished",
        "stopped",
        "failed",
    ]
    assert records["broken"]["error"] == "DataError: no such source"
    done, half = records["done"], records["half"]
    assert (done["score"], done["score_of"]) == (0.5, "model, mean of 2 tasks")
    assert (half["score"], half["score_of"]) == (0.7, "checkpoint of step 2, Task")
    assert half["best_checkpoint"]["step"] == 2
    assert done["best_checkpoint"] is None
    assert (half["step"], half["steps"], half["tokens"], half["seconds"]) == (6, 10, 600, 3.0)
    table = invoke("runs", "runs").output.splitlines()
    assert len(table) == 4
    [line] = [line for line in table if line.startswith("half")]
    assert re.split(r"\s{2,}", line)[1:-1] == [
        "stopped, step 6 of 10",
        "first > second <i>",
        "0.700",
        "600",
        "3 s",
    ]


def test_runs_in_a_store_are_listed_without_their_checkpoints(tmp_path, node, s3, monkeypatch):
    store, bucket = s3.open("bucket/listed/runs")
    write_run(tmp_path / "runs/done", steps=10, finished=True, scores={"A": 0.4})
    write_run(tmp_path / "runs/grid/half", steps=6, validations=((2, 0.7),))
    (tmp_path / "runs/done/stages").mkdir()
    (tmp_path / "runs/done/stages/optimizer.pt").write_bytes(b"large")
    copy_files(str(tmp_path / "runs"), bucket, destination_filesystem=store)
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAYEMBED_HOME", "s3://bucket/listed")
    cache = node("b")
    records = {run["name"]: run for run in json.loads(invoke("runs", "--json").output)}
    assert {name: run["folder"] for name, run in records.items()} == {
        "done": "s3://bucket/listed/runs/done",
        "half": "s3://bucket/listed/runs/grid/half",
    }
    assert [records[name]["status"] for name in ("done", "half")] == ["finished", "stopped"]
    assert (records["done"]["score"], records["half"]["score"]) == (0.4, 0.7)
    assert not list(cache.rglob("optimizer.pt"))
    assert "s3://bucket/listed/runs/compare.html" in invoke("compare", "done", "grid/half").output
    assert store.get_file_info(f"{bucket}/compare.html").size


def test_steps_that_were_not_logged_count_towards_the_cost(tmp_path):
    run = open_run("sparse", write_run(tmp_path / "sparse", steps=6, log_every=3).parent)
    assert len(run.records) == 2
    assert (run.step, run.tokens, run.seconds) == (6, 600, 3.0)


def test_the_note_keeps_the_first_start_and_the_last_end(tmp_path):
    with pytest.raises(RuntimeError), noted(tmp_path):
        raise RuntimeError("worker lost")
    started = read_note(tmp_path)["started"]
    with noted(tmp_path):
        assert read_note(tmp_path) == {"started": started, "ended": None, "error": None}
    note = read_note(tmp_path)
    assert note["started"] == started
    assert note["ended"] >= started
    assert note["error"] is None


def test_a_run_is_running_while_its_process_beats(tmp_path, monkeypatch):
    run = open_run("half", write_run(tmp_path / "half").parent)
    monkeypatch.setattr(run_folder, "_BEAT_SECONDS", 0.01)
    note = run.folder / "run.json"
    with contextlib.suppress(KeyboardInterrupt), noted(run.folder):
        os.utime(note, (0, 0))
        while run.status == "stopped":
            time.sleep(0.01)
        assert run.status == "running"
        raise KeyboardInterrupt
    assert read_note(run.folder)["ended"] is None
    minute_ago = time.time() - 61
    os.utime(note, (minute_ago, minute_ago))
    assert run.status == "stopped"


def test_a_comparison_is_one_file_with_the_curves_of_all(home):
    write_run(home / "runs/a", steps=10, finished=True, scores={"Task": 0.4}, validations=((4, 0.3),))
    write_run(home / "runs/b", steps=6, rank=32, validations=((2, 0.2), (4, 0.35)))
    result = invoke("compare", "a", "b", "--output", "out/page.html")
    assert result.exit_code == 0
    rows = {line.split("  ")[0].strip(): line.split() for line in result.output.splitlines()}
    assert rows["steps"][1:] == ["10", "of", "10", "6", "of", "10"]
    assert rows["accuracy, last 20 steps"][-2:] == ["0.300", "0.300"]
    assert [line.split() for line in result.output.splitlines() if "lora.rank" in line] == [
        ["lora.rank", "16", "32"]
    ]
    page = (home / "out/page.html").read_text()
    titles = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert titles == ["Loss", "Training accuracy", "Throughput", "Score", "Tasks"]
    assert page.count("<svg") == 5
    assert page.count('<li class="c1">b</li>') == 5
    # Both stages are drawn, raw and smooth, for both runs.
    loss = page[page.index('aria-label="Loss"') : page.index('aria-label="Training accuracy"')]
    assert loss.count('class="curve faint') == 2
    assert loss.count("<polyline") == 6
    assert "second &lt;i&gt;" in loss
    score = page[page.index('aria-label="Score of checkpoints"') : page.index('aria-label="Main scores"')]
    assert score.count('class="dot c0"') == 1  # the one checkpoint of the first run
    assert not re.search(r"(src|href)=|url\(|@import|https?://|<script", page)


def test_equal_recipes_and_equal_names(tmp_path):
    runs = [open_run("one", write_run(tmp_path / side / "one").parent) for side in ("a", "b")]
    assert recipe_differences(runs) == {}
    result = invoke("compare", *(str(run.folder) for run in runs), "--folder", str(tmp_path))
    assert str(tmp_path / "a" / "one") in result.output
    assert "The recipes are the same." in (tmp_path / "compare.html").read_text()


def test_mistakes_name_the_cure(home):
    with pytest.raises(DataError, match="holds no run; name the folder"):
        find_runs(home / "nowhere")
    write_run(home / "runs/a")
    write_run(home / "runs/empty", steps=0)
    for arguments, message in (
        (("a", "c"), "no run 'c' in .*; it has a, empty"),
        (("a", "empty"), "run 'empty' has no step in metrics.jsonl; wait"),
        (("a", "a"), "only run 'a' is named"),
    ):
        assert re.search(message, str(invoke("compare", *arguments).exception))


def test_a_folder_that_is_no_training_run_is_left_out(home, caplog):
    write_run(home / "runs/a")
    (home / "runs/other").mkdir()
    (home / "runs/other/recipe.yaml").write_text("name: x\n")
    assert [run.name for run in find_runs(home / "runs")] == ["a"]
    assert "left out: " in caplog.text
