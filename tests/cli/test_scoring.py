"""Checkpoints scored by the evaluation, from the recipe to the kept checkpoint."""

import json

import pytest

from rayembed.cli.train import score_of, train_and_score
from rayembed.common.errors import UserError
from rayembed.common.ray_cluster import connect
from rayembed.config.loading import validate_config
from rayembed.model.checkpoint import read_manifest
from rayembed.reports.runs import open_run

WORDS = ["sun", "rain", "snow", "wind", "fog", "hail", "dew", "ice", "mist", "storm", "cloud", "frost"]


@pytest.fixture
def recipe(home, tiny_base):
    """A recipe that validates on a task of the user's own."""
    pairs = [{"query": f"{word} {n}", "positive": f"about {word} {n}"} for n in range(4) for word in WORDS]
    sts = [{"sentence1": "sun", "sentence2": word, "score": float(n)} for n, word in enumerate(WORDS)]
    for name, rows in (("pairs", pairs), ("sts", sts)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "tasks.yaml").write_text("tasks:\n- {name: Words, type: STS, test: sts.jsonl}\n")
    blend = [{"source": "pairs", "weight": 1, "in_batch_negatives": True}]
    stage = {"name": "pairs", "steps": 6, "batch_size": 4, "learning_rate": 1e-2, "blend": blend}
    return {
        "name": "scored",
        "base_model": str(tiny_base),
        "lora": {"rank": 2},
        "model": {"pooling": {"type": "mean"}},
        "contract": {"max_length": 64},
        "data": {"sources": {"pairs": {"path": "pairs.jsonl"}}},
        "stages": [stage],
        "training": {"cpus_per_worker": 0.5, "threads_per_worker": 1, "checkpoint_every": 4},
        "validation": {"tasks": ["Words"], "task_files": ["tasks.yaml"], "every": 3, "cpus": 0.5},
    }


def test_an_unknown_task_is_refused_before_training(recipe, home):
    recipe["validation"]["tasks"] = ["Word"]
    with pytest.raises(UserError, match="did you mean Words"):
        train_and_score(validate_config(recipe, "test"))
    assert not (home / "runs").exists()
    assert score_of(validate_config(recipe | {"validation": None}, "test")) is None


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_keeps_the_checkpoint_with_the_best_score(recipe, home, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    connect(num_cpus=2)
    model = train_and_score(validate_config(recipe, "test"))
    run = open_run("scored", home / "runs")
    assert [(record["stage"], record["step"]) for record in run.validations] == [("pairs", 3), ("pairs", 6)]
    assert all(-1 <= record["score"] <= 1 for record in run.validations)
    [stage] = read_manifest(model)["provenance"]["stages"]
    assert stage["kept_step"] == run.best_checkpoint["step"]
    assert (run.folder / "stages/0-pairs/validation/step-3/scores.json").is_file()
