"""Checkpoints that are damaged, cannot be written or are kept elsewhere change nothing of what is learned."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from rayembed.common.ray_cluster import connect
from rayembed.config.loading import load_config
from rayembed.model.checkpoint import read_manifest
from rayembed.training import checkpoint
from rayembed.training.run import train
from tests.training_jobs import (
    STEPS,
    assert_same_run,
    finish,
    start_training,
    trace,
    training_workers,
    wait_for_step,
    write_recipe,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def unbroken(home, tiny_base):
    """Run folder of a training that nobody disturbed."""
    recipe = write_recipe(home, tiny_base, "unbroken", stages=1)
    return finish(start_training(home, recipe), home, recipe)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def kill_at(step: int, process: subprocess.Popen, run_folder: Path) -> None:
    """End a job and its cluster at once, as a machine that loses power does."""
    wait_for_step(run_folder, step, process)
    for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait()
    assert len(trace(run_folder)) < STEPS[0]


def test_damaged_checkpoints_are_passed_over(unbroken, home, tiny_base):
    storage = home / "elsewhere"
    recipe = write_recipe(home, tiny_base, "damaged", stages=1, checkpoint_storage=storage.as_uri())
    run_folder, log = home / "runs" / "damaged", home / "damaged.log"
    checkpoints = storage / "damaged" / "0-retrieval" / "ray-train"

    kill_at(13, start_training(home, recipe), run_folder)
    newest = max(checkpoints.glob("step-*/state.json")).parent
    flip_a_bit(newest / "moments.safetensors")
    snapshot = checkpoints / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:100])
    process = start_training(home, recipe)
    kill_at(21, process, run_folder)
    text = log.read_text()
    assert "checkpoint_manager_snapshot.json is damaged; it is set aside" in text
    assert f"{newest.name}/moments.safetensors is damaged; the one before it is used" in text
    assert f"continues at step {int(newest.name[5:]) - 4} of {STEPS[0]}" in text

    for weights in checkpoints.glob("step-*/trainable.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-100])
    finish(start_training(home, recipe), home, recipe)
    assert "stage retrieval: all its checkpoints are damaged, it starts at step 0" in log.read_text()
    assert_same_run(run_folder, unbroken)
    assert not (run_folder / "stages" / "0-retrieval" / "ray-train").exists()


def test_a_full_disk_ends_a_run_only_when_it_stays_full(unbroken, home, tiny_base):
    recipe = write_recipe(home, tiny_base, "full", stages=1)
    run_folder, log = home / "runs" / "full", home / "full.log"
    process = start_training(home, recipe, "training.max_failures=0")
    wait_for_step(run_folder, 9, process)
    [worker] = training_workers(process)
    # Between the sizes of the metrics and of the moments, so that only checkpoints do not fit.
    psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))
    assert process.wait(timeout=600) == 2
    lines = log.read_text().splitlines()
    assert sum("could not be written" in line and "training goes on" in line for line in lines) == 2
    assert "those before it are kept: free space there, then run the same command again" in lines[-1]
    kept = sorted((run_folder / "stages" / "0-retrieval" / "ray-train").glob("step-*/state.json"))
    assert len(kept) == 2, "the checkpoints before the disk was full are gone"

    finish(start_training(home, recipe), home, recipe)
    assert f"continues at step {int(kept[-1].parent.name[5:])} of {STEPS[0]}" in log.read_text()
    assert_same_run(run_folder, unbroken)


def test_training_continues_from_a_store_that_is_not_a_local_folder(home, tiny_base, monkeypatch):
    monkeypatch.setenv("RAYEMBED_HOME", str(home))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    bucket = home / "bucket"
    bucket.mkdir()
    store = SubTreeFileSystem(str(bucket), LocalFileSystem())
    monkeypatch.setattr(checkpoint, "open_location", lambda location: (store, "prefix"))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests
    connect(num_cpus=2)
    config = load_config(
        write_recipe(home, tiny_base, "remote", workers=2, checkpoint_storage=f"{bucket.as_uri()}/prefix")
    )
    model = train(config)
    files = read_manifest(model)["files"]
    run_folder = home / "runs" / "remote"
    losses = trace(run_folder)
    stored = bucket / "prefix" / "remote" / "1-blend" / "ray-train"
    assert sorted(path.name for path in stored.glob("step-*")) == ["step-0000004", "step-0000006"]

    # As if the second stage had been stopped after its fourth step, on a machine that is gone.
    shutil.rmtree(stored / "step-0000006")
    shutil.rmtree(model)
    shutil.rmtree(run_folder / "stages" / "1-blend")
    lines = (run_folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    train(config)
    assert trace(run_folder) == losses
    assert read_manifest(model)["files"] == files
    assert json.loads((run_folder / "stages/1-blend/trained/state.json").read_text())["next_step"] == 6
    assert len(losses) == sum(STEPS)
