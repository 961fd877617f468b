"""Runs on clusters that change: nodes killed, drained and joined, jobs stopped, workers told to leave.

In fp32 and without dropout a run does not depend on how many workers take part, but for the order of sums.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import fs

from rayembed.quickstart.head import local_head
from tests.stores import s3_server
from tests.training_jobs import (
    ROOT,
    assert_same_run,
    finish,
    start_training,
    trace,
    training_workers,
    wait_for,
    wait_for_step,
    write_recipe,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(1800)]

STEP = 12  # after which a drill begins
EXACT = ("lora.dropout=0", "training.precision=fp32")
NEVER = "training.checkpoint_every=1000"
ELASTIC = {"workers": 2, "min_workers": 1, "cpus_per_worker": 1}  # a node of one CPU holds one
RAY = Path(sys.executable).parent / "ray"
UNSHARE = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else []), "sh", "-c"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def unbroken(home, tiny_base):
    """Run folder of one worker that nobody disturbed."""
    recipe = write_recipe(home, tiny_base, "unbroken", stages=1)
    return finish(start_training(home, recipe, *EXACT), home, recipe)


class Nodes:
    """A cluster of processes on this machine: a head without CPUs, and nodes of one CPU.

    Args:
        folder: for logs.
        disk: folder in whose place every node has an empty one of its own; None: they share all.
        variables: environment variables of all.
    """

    def __init__(self, folder: Path, disk: Path | None = None, **variables: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": self.address,
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
            **variables,
        }
        self.apart = [] if disk is None else [*UNSHARE, f'mount -t tmpfs none {disk} && exec "$@"', "apart"]
        self._folder = folder
        self._processes: list[subprocess.Popen] = []
        self._start(
            "--head", "--port", self.address.split(":")[1], "--num-cpus", "0", "--include-dashboard=false"
        )

    def join(self, gpus: int = 0, cpus: int = 1) -> psutil.Process:
        """A node that claims so many GPUs, as the process that holds its raylet and workers."""
        return self._start("--address", self.address, "--num-cpus", str(cpus), "--num-gpus", str(gpus))

    def _start(self, *arguments: str) -> psutil.Process:
        log = self._folder / f"node-{len(self._processes)}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [*self.apart, str(RAY), "start", "--block", "--node-ip-address", "127.0.0.1", *arguments],
                env=os.environ | self.variables | {"RAY_health_check_period_ms": "1000"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        wait_for(lambda: "Ray runtime started" in log.read_text(), log)
        return psutil.Process(process.pid)

    def workers(self) -> list[psutil.Process]:
        """Training workers on all nodes."""
        return [
            worker
            for process in self._processes
            if process.poll() is None
            for worker in training_workers(process)
        ]

    def stop(self) -> None:
        for process in reversed(self._processes):
            for child in [*descendants(process.pid), process]:
                child.kill()
            process.wait()


@pytest.fixture
def nodes(home):
    cluster = Nodes(home)
    yield cluster
    cluster.stop()


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def paused(workers: list[psutil.Process]) -> Iterator[None]:
    """Hold training back while the cluster changes, so that it is not over before."""
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.resume()


def resumptions(log: Path) -> list[tuple[int, int]]:
    """Step and number of workers each time that training went on from a checkpoint.

    Nodes that share a machine each forward the same lines.
    """
    found = re.findall(r"stage retrieval continues at step (\d+) of \d+, (\d+) worker", log.read_text())
    return [(int(step), int(workers)) for step, workers in dict.fromkeys(found)]


def last_steps(log: Path) -> list[int]:
    """Steps after which workers left because they were told to."""
    return [int(step) for step in dict.fromkeys(re.findall(r"all leave after step (\d+)", log.read_text()))]


def assert_same_course(run_folder: Path, unbroken: Path) -> None:
    """The same steps with the same losses, up to the rounding of another order of sums."""
    ours, theirs = trace(run_folder), trace(unbroken)
    assert [step[:2] for step in ours] == [step[:2] for step in theirs]
    np.testing.assert_allclose([step[2] for step in ours], [step[2] for step in theirs], rtol=1e-3, atol=1e-5)


def test_a_run_goes_on_with_the_nodes_that_are_there(unbroken, home, tiny_base, nodes):
    recipe = write_recipe(home, tiny_base, "elastic", stages=1, resize_seconds=1, **ELASTIC)
    log, run_folder = home / "elastic.log", home / "runs" / "elastic"
    nodes.join()
    lost = nodes.join()
    process = start_training(home, recipe, *EXACT, **nodes.variables)
    wait_for_step(run_folder, STEP, process)
    [raylet] = [child for child in lost.children(recursive=True) if child.name() == "raylet"]
    raylet.kill()
    wait_for(lambda: resumptions(log), log)
    with paused(nodes.workers()):
        nodes.join()
        wait_for(lambda: "worker group from 1 -> 2" in log.read_text(), log)
    assert_same_course(finish(process, home, recipe), unbroken)
    assert [workers for _, workers in resumptions(log)] == [1, 2]


def test_a_drained_node_costs_no_step(unbroken, home, tiny_base, nodes):
    recipe = write_recipe(home, tiny_base, "drained", stages=1, **ELASTIC)
    log = home / "drained.log"
    nodes.join()
    leaving = nodes.join()
    process = start_training(home, recipe, *EXACT, NEVER, **nodes.variables)
    wait_for_step(home / "runs" / "drained", STEP, process)
    with paused(nodes.workers()):
        leaving.terminate()  # what Kubernetes does to a pod
        wait_for(lambda: "preemption detected" in log.read_text(), log)
    assert_same_course(finish(process, home, recipe), unbroken)
    [last] = last_steps(log)
    assert resumptions(log) == [(last + 1, 1)]


def test_training_waits_for_nodes_with_gpus_that_join_late(unbroken, home, tiny_base, nodes):
    recipe = write_recipe(home, tiny_base, "late", stages=1, workers=2, device="cuda")
    log = home / "late.log"
    nodes.join()
    process = start_training(home, recipe, *EXACT, RAYEMBED_FAKE_GPUS="1", **nodes.variables)
    wait_for(lambda: "training waits for 2 GPUs" in log.read_text(), log)
    nodes.join(gpus=1)
    nodes.join(gpus=1)
    assert_same_course(finish(process, home, recipe), unbroken)


def test_eight_ranks_on_a_node_that_claims_eight_gpus_are_killed_and_resumed(
    unbroken, home, tiny_base, nodes
):
    settings = {"workers": 8, "device": "cuda", "zero_stage": 2, "checkpoint_every": 4}
    recipe = write_recipe(home, tiny_base, "eight", stages=1, **settings)
    nodes.join(gpus=8, cpus=8)
    variables = nodes.variables | {"RAYEMBED_FAKE_GPUS": "1"}
    process = start_training(home, recipe, *EXACT, **variables)
    wait_for_step(home / "runs" / "eight", STEP, process)
    process.kill()
    process.wait()
    assert_same_course(finish(start_training(home, recipe, *EXACT, **variables), home, recipe), unbroken)
    [(_, workers)] = resumptions(home / "eight.log")
    assert workers == 8


def test_a_stopped_and_resubmitted_job_continues(unbroken, home, tiny_base, monkeypatch, capfd):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    recipe, run_folder = write_recipe(home, tiny_base, "stopped", stages=1), home / "runs" / "stopped"
    metrics = run_folder / "metrics.jsonl"
    entrypoint = ["python", "jobs/train.py", str(recipe), *(f"--set={value}" for value in EXACT)]
    with local_head(home) as head:

        def ray_job(verb: str, *arguments: str) -> None:
            command = [str(RAY), "job", verb, "--address", head.dashboard, *arguments]
            subprocess.run(command, env=head.environment, check=True)

        ray_job(
            "submit", "--working-dir", str(ROOT), "--submission-id", "first", "--no-wait", "--", *entrypoint
        )
        wait_for(lambda: metrics.is_file() and len(trace(run_folder)) > STEP, home / "runs" / "ray-head.log")
        with paused(training_workers(psutil.Process(int((home / "runs" / "ray-head.pid").read_text())))):
            ray_job("stop", "first")
            assert len(trace(run_folder)) < len(trace(unbroken))
        head.submit(entrypoint, working_dir=ROOT)
    assert "stage retrieval continues at step" in capfd.readouterr().out
    assert_same_run(run_folder, unbroken)


def test_a_validation_that_was_pending_at_a_kill_is_made_up_for(unbroken, home, tiny_base):
    sentences = [{"sentence1": "sun", "sentence2": word, "score": n} for n, word in enumerate("abcdef")]
    (home / "sts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences))
    (home / "tasks.yaml").write_text("tasks:\n- {name: Words, type: STS, test: sts.jsonl}\n")
    recipe, run_folder = write_recipe(home, tiny_base, "pending", stages=1), home / "runs" / "pending"
    scored = "validation={tasks: [Words], task_files: [tasks.yaml], every: 10, cpus: 0.25, keep: last}"
    process = start_training(home, recipe, *EXACT, scored)
    recorded = run_folder / "stages/0-retrieval/ray-train/checkpoint_manager_snapshot.json"
    wait_for(lambda: recorded.is_file() and "step-0000010" in recorded.read_text(), home / "pending.log")
    process.kill()
    process.wait()
    assert not (run_folder / "validation.jsonl").exists()
    assert_same_run(finish(start_training(home, recipe, *EXACT, scored), home, recipe), unbroken)
    lines = [json.loads(line) for line in (run_folder / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]


def test_two_nodes_without_a_common_disk_train_resume_evaluate_and_embed_in_a_store(
    unbroken, home, tiny_base, tmp_path
):
    """The head, each node and the driver have a disk of their own; all that they share is a bucket."""
    pytest.importorskip("moto")
    disk, name = tmp_path / "disk", "apart"
    disk.mkdir()
    if subprocess.run([*UNSHARE, f"mount -t tmpfs none {disk}"], check=False).returncode:
        pytest.skip("this user may not mount a disk of its own")
    recipe = write_recipe(home, tiny_base, name, stages=1, resize_seconds=1, **ELASTIC)
    content = yaml.safe_load(recipe.read_text()) | {"base_model": "base"}
    recipe.write_text(yaml.safe_dump(content))
    words = [f"about {word} {number}" for word in ("sun", "rain", "snow") for number in range(4)]
    (home / "search").mkdir()
    rows = {
        "corpus": [{"_id": str(row), "text": text} for row, text in enumerate(words)],
        "queries": [{"_id": str(row), "text": text[6:]} for row, text in enumerate(words)],
        "judged": [{"query-id": str(row), "corpus-id": str(row), "score": 1} for row in range(len(words))],
    }
    for file, records in rows.items():
        (home / "search" / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    files = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "judgements": "judged.jsonl"}
    task = {"tasks": [{"name": "Search", "type": "Retrieval", **files}]}
    (home / "search" / "tasks.yaml").write_text(yaml.safe_dump(task))
    with s3_server() as server, contextlib.ExitStack() as closing:
        store, bucket = server.open("bucket/home")
        for path in (home / "pairs.jsonl", home / "labels.jsonl"):
            fs.copy_files(str(path), f"{bucket}/{path.name}", destination_filesystem=store)
        for folder, path in (("base", tiny_base), ("search", home / "search")):
            fs.copy_files(str(path), f"{bucket}/{folder}", destination_filesystem=store)
        nodes = Nodes(
            tmp_path, disk, **server.variables, RAYEMBED_HOME="s3://bucket/home", RAYEMBED_CACHE=str(disk)
        )
        closing.callback(nodes.stop)
        nodes.join()
        lost = nodes.join()
        log = home / f"{name}.log"
        process = start_training(home, recipe, *EXACT, before=nodes.apart, **nodes.variables)
        checkpoints = f"{bucket}/runs/{name}/stages/0-retrieval/ray-train"
        state = f"{checkpoints}/step-{STEP:07d}/state.json"
        wait_for(
            lambda: process.poll() is not None or store.get_file_info(state).type != fs.FileType.NotFound, log
        )
        [raylet] = [child for child in lost.children(recursive=True) if child.name() == "raylet"]
        raylet.kill()
        wait_for(lambda: process.poll() is not None or resumptions(log), log)
        finish(process, home, recipe)
        fs.copy_files(f"{bucket}/runs/{name}", str(tmp_path / "run"), source_filesystem=store)
        assert_same_course(tmp_path / "run", unbroken)
        model = ["--checkpoint", f"runs/{name}/model"]
        own = ["--task-file", "search/tasks.yaml", "--benchmark", "own"]
        for verb, *options in (
            ["evaluate", *model, *own, "--output", "results", "--actors", "1", "--shard-tokens", "20"],
            ["embed", "search/corpus.jsonl", *model, "--output", "vectors", "--keep", "_id"],
        ):
            done = subprocess.run(
                [*nodes.apart, sys.executable, f"jobs/{verb}.py", *options],
                cwd=ROOT,
                env=os.environ | nodes.variables,
                capture_output=True,
                text=True,
                timeout=400,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        with store.open_input_stream(f"{bucket}/results/scores.json") as stream:
            assert 0 < json.load(stream)["tasks"]["Search"]["trained"] <= 1
        vectors = pq.read_table(f"{bucket}/vectors/vectors", filesystem=store)
        assert vectors["_id"].to_pylist() == [str(row) for row in range(len(words))]
        assert not any(disk.iterdir()), "somebody wrote to the disk of the machine"
