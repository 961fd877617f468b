"""Scores of checkpoints: when they are due, what is kept of them, and what a failure costs."""

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray.train
import torch

from rayembed.common.errors import ConfigError
from rayembed.common.ray_cluster import connect
from rayembed.config.loading import validate_config
from rayembed.config.run import RunConfig
from rayembed.data.lane_folder import LaneFolder
from rayembed.data.stream import StreamSpec
from rayembed.model.checkpoint import read_manifest
from rayembed.reports.runs import Run
from rayembed.training import validation
from rayembed.training.checkpoint import TrainingState, next_step, write_training_state
from rayembed.training.model import trainable_weights
from rayembed.training.run import train
from rayembed.training.stage import Stage
from rayembed.training.validation import (
    best_record,
    exported_scores,
    kept_checkpoint,
    report_scores,
    validate,
    validation_due,
)
from tests.training.stages import stage_of

BLEND = [{"source": "pairs", "weight": 1, "in_batch_negatives": True}]
STAGE = {"batch_size": 4, "learning_rate": 1e-3, "blend": BLEND}


class Scoring:
    """Scores that were set for steps, in place of those from another process; a step without one failed."""

    def __init__(self, scores: dict[int, float], folder: Path):
        self.scores, self.folder = scores, folder

    def apart(self, stage, checkpoint, score, output):
        step = int(output.name.removeprefix("step-"))
        if step not in self.scores:
            return {}
        return exported_scores(stage, checkpoint, self.of_model, output)

    def of_model(self, model: Path, output: Path) -> dict[str, float]:
        step = int(output.name.removeprefix("step-"))
        shutil.copytree(model, self.folder / f"model-{step}")
        return {"Good": self.scores[step] + 0.1, "Bad": self.scores[step] - 0.1}


def stage_run(home: Path, base: Path, index: int = 1, **validation) -> Stage:
    (home / "run").mkdir(exist_ok=True)
    config = recipe(base, **validation)
    lanes = LaneFolder.of(str(home), "lanes", steps=30, batch_size=4, workers=1)
    stream = StreamSpec(home, (), config.stages[1].blend, config.contract, str(base), 1, lanes)
    stage = stage_of(config, base, stream, home / "run", index)
    words = replace(stage.finished[0], checkpoint=home / "words") if index else None
    if words and not words.checkpoint.exists():
        words.checkpoint.mkdir()
        write_training_state(words.checkpoint, TrainingState("words", 5, 5, {}, {}))
    return replace(stage, finished=(words,)) if words else stage


def recipe(base: Path, **validation) -> RunConfig:
    return validate_config(
        {
            "name": "run",
            "base_model": str(base),
            "lora": {"rank": 2},
            "model": {"pooling": {"type": "mean"}},
            "stages": [
                {"name": "words", "kind": "mntp", "steps": 5, **STAGE},
                {"name": "pairs", "steps": 30, **STAGE},
            ],
            "training": {"checkpoint_every": 10},
            "validation": {"tasks": ["Good", "Bad"], **validation},
        },
        origin="test",
    )


def checkpoint(home: Path, run: Stage, step: int) -> ray.train.Checkpoint:
    folder = home / f"step-{step}"
    folder.mkdir()
    weights = trainable_weights(run.model.build(torch.float32))
    write_training_state(folder, TrainingState("pairs", step, step, weights, {}))
    return ray.train.Checkpoint.from_directory(folder)


def test_validations_are_due_every_so_many_steps_and_at_the_end_of_stages_with_vectors(home, tiny_base):
    run = stage_run(home, tiny_base, every=8)
    assert [step for step in range(1, 31) if validation_due(run, step)] == [8, 16, 24, 30]
    run = stage_run(home, tiny_base)
    assert [step for step in range(1, 31) if validation_due(run, step)] == [10, 20, 30]
    masked = stage_run(home, tiny_base, index=0)
    assert not any(validation_due(masked, step) for step in range(1, 6))
    assert not validation_due(replace(run, validation=None), 30)


def test_the_best_checkpoint_is_kept_and_a_failure_leaves_it(home, tiny_base, monkeypatch):
    run, stage = stage_run(home, tiny_base), home / "stage"
    monkeypatch.setattr(validation, "_scores_apart", Scoring({15: 0.5, 25: 0.4}, home).apart)
    last = home / "step-30"
    for step in (10, 20, 30):
        validate(checkpoint(home, run, step), next_step=step, stage=run, score=print, folder=stage)
        assert best_record(stage)["step"] == 15
    assert next_step(kept_checkpoint(run, stage, last)) == 10
    lines = [json.loads(line) for line in (run.run_folder / "validation.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"], line["score"]) for line in lines] == [
        ("pairs", 15, pytest.approx(0.5)),
        ("pairs", 25, pytest.approx(0.4)),
    ]
    assert lines[0]["scores"] == {"Good": pytest.approx(0.6), "Bad": pytest.approx(0.4)}
    assert read_manifest(home / "model-15")["dimensions"] == 32
    assert list((run.run_folder / "tensorboard").glob("*.validation"))


def test_the_last_checkpoint_is_kept_on_request_or_when_none_was_scored(home, tiny_base, caplog, monkeypatch):
    last = home / "step-30"
    assert kept_checkpoint(stage_run(home, tiny_base), home / "stage", last) == last
    assert "no checkpoint could be scored" in caplog.text
    run = stage_run(home, tiny_base, keep="last")
    monkeypatch.setattr(validation, "_scores_apart", Scoring({15: 0.5}, home).apart)
    validate(checkpoint(home, run, 10), next_step=10, stage=run, score=print, folder=home / "stage")
    assert kept_checkpoint(run, home / "stage", last) == last


class Notebook:
    """A tracker that remembers."""

    def __init__(self):
        self.lines = []

    def log(self, values, step):
        self.lines.append((step, values))

    def close(self):
        self.lines.append("closed")


def test_trackers_get_each_score_once_and_what_has_none_is_named(home, tiny_base, caplog, monkeypatch):
    run = stage_run(home, tiny_base)
    monkeypatch.setattr(validation, "_scores_apart", Scoring({15: 0.5, 35: 0.3}, home).apart)
    notebook = Notebook()
    monkeypatch.setattr(validation, "start_trackers", lambda names, folder, settings: [notebook])
    for step in (10, 30):
        saved = checkpoint(home, run, step)
        for _ in range(2):  # as after a kill between the note and its record by Ray Train
            shutil.rmtree(home / f"model-{step + 5}", ignore_errors=True)
            validate(saved, next_step=step, stage=run, score=print, folder=home / "stage")
    report_scores(run)
    first = {"score": 0.5, "Good": 0.6, "Bad": 0.4}
    second = {"score": 0.3, "Good": 0.4, "Bad": 0.2}
    assert notebook.lines == [
        *((step, {f"validation/{name}": pytest.approx(value) for name, value in scores.items()})
          for step, scores in ((15, first), (35, second))),
        "closed",
    ]  # fmt: skip
    assert "stage pairs: checkpoints without a score, after steps 25" in caplog.text


def test_a_recipe_with_validation_needs_a_scorer(home, tiny_base):
    with pytest.raises(ConfigError, match="nothing to score with"):
        train(recipe(tiny_base))
    with pytest.raises(ConfigError, match=r"validation\.tasks"):
        recipe(tiny_base, tasks=[])


def score_when_training_is_done(model, output, *, metrics: Path, steps: int):
    """Answers when training has taken its last step, and fails after that."""
    if output.name == f"step-{steps}":
        raise RuntimeError("no memory")
    for _ in range(600):
        if len(metrics.read_text().splitlines()) == steps:
            return {"Waited": 1.0}
        time.sleep(0.1)
    return {"Waited": 0.0}


def die(model, output):
    os._exit(1)


@pytest.mark.ray
def test_a_scoring_whose_process_dies_gives_no_scores(home, tiny_base, caplog):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests
    connect(num_cpus=2)
    run = stage_run(home, tiny_base)
    saved = Path(checkpoint(home, run, 10).path)
    assert validation._scores_apart(run, saved, die, home / "step-15") == {}
    assert "stage pairs: no score for step-15" in caplog.text


@pytest.mark.ray
@pytest.mark.slow
def test_training_neither_waits_for_a_validation_nor_fails_with_it(home, tiny_base, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests
    connect(num_cpus=2)
    rows = [{"query": f"word {n}", "positive": f"about {n}"} for n in range(40)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = validate_config(
        {
            "name": "waiting",
            "base_model": str(tiny_base),
            "lora": {"rank": 2},
            "model": {"pooling": {"type": "mean"}},
            "contract": {"max_length": 64},
            "data": {"sources": {"pairs": {"path": "pairs.jsonl"}}},
            "stages": [{"name": "pairs", "steps": 6, **STAGE}],
            "training": {"cpus_per_worker": 0.5, "threads_per_worker": 1},
            "validation": {"tasks": ["Waited"], "every": 2},
        },
        origin="test",
    )
    folder = home / "runs" / "waiting"
    train(config, partial(score_when_training_is_done, metrics=folder / "metrics.jsonl", steps=6))
    run = Run(folder, config.model_dump())
    assert [(record["step"], record["score"]) for record in run.validations] == [(2, 1.0), (4, 1.0)]
    assert run.status == "finished"
    [stage] = read_manifest(folder / "model")["provenance"]["stages"]
    assert (stage["steps"], stage["kept_step"]) == (6, 2)
