"""eval_resume: an actor, a node and the driver of an evaluation are killed one after the other.

A part of benchmarks/evaluation.py. Everything runs on a local cluster of two nodes with one CPU each.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from harness import Bar
from ray.cluster_utils import Cluster

from rayembed.evaluation.results import read_record

REPOSITORY = Path(__file__).resolve().parents[1]
TASKS = ["DocstringRetrieval", "WordNetGlossRetrieval"]
NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 150 * 2**20}
Shards = dict[str, int]


def resume(checkpoint: Path, data_dir: Path, scratch: Path, actors: int, shard_tokens: int) -> Bar:
    """Count the finished shards that are encoded again, and hold the scores against an unbroken run.

    The kills come when random numbers of shards are finished: an actor's in the second quarter of the run, a
    node's in the third and the driver's in the last. The node comes back before the driver does.
    """
    output, whole_output = scratch / "resume", scratch / "whole"
    command = [
        *(sys.executable, "-m", "rayembed", "evaluate"),
        *("--checkpoint", str(checkpoint), "--actors", str(actors), "--tasks", ",".join(TASKS)),
        *("--data-dir", str(data_dir), "--shard-tokens", str(shard_tokens)),
        *("--precision", "fp32", "--keep-embeddings", "--output"),
    ]
    again: set[str] = set()
    killed_at = {}
    with two_nodes() as (cluster, environment):
        subprocess.run([*command, str(whole_output)], env=environment, check=True)
        count = len(finished_shards(whole_output))
        moments = [random.randint(count * part // 4, count * (part + 1) // 4 - 1) for part in (1, 2, 3)]

        driver = subprocess.Popen([*command, str(output)], env=environment)
        before: Shards = {}
        for victim, moment in zip(("actor", "node", "driver"), moments, strict=True):
            now = wait_for_shards(driver, output, moment)
            again |= rewritten(before, now)
            if victim == "actor":
                random.choice(evaluation_actors()).kill()
            elif victim == "node":
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            else:
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
            before = finished_shards(output)
            killed_at[victim] = len(before)
        cluster.add_node(**NODE)
        subprocess.run([*command, str(output)], env=environment, check=True)
        again |= rewritten(before, finished_shards(output))
    one, other = read_record(whole_output / "trained"), read_record(output / "trained")
    difference = max(abs(a.score - b.score) for a, b in zip(one.tasks, other.tasks, strict=True))
    assert difference == 0, f"scores differ by {difference} after the kills"
    detail = {
        "shards": count,
        "finished when it was killed": killed_at,
        "finished shards encoded again": len(again),
        "largest difference of a score": difference,
    }
    value = len(again) / actors
    return Bar("eval_resume", value, 1.0, "lower", (value, value), detail)


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Cluster, dict[str, str]]]:
    """A local cluster of two nodes, and the environment in which a driver finds it."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        cluster.add_node(**NODE)
        yield (
            cluster,
            os.environ | {"PYTHONPATH": str(REPOSITORY / "platform"), "RAY_ADDRESS": cluster.address},
        )
    finally:
        cluster.shutdown()


def finished_shards(output: Path) -> Shards:
    """Name and time of writing of every finished shard."""
    found = (output / "embeddings").rglob("[!.]*.vectors.safetensors")
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in found}


def rewritten(before: Shards, after: Shards) -> set[str]:
    """Shards that were finished before and have been written since."""
    return {name for name, written in before.items() if after[name] != written}


def wait_for_shards(driver: subprocess.Popen, output: Path, count: int) -> Shards:
    """The finished shards as soon as there are so many."""
    while len(shards := finished_shards(output)) < count:
        if driver.poll() is not None:
            raise RuntimeError("the evaluation ended before it could be killed; take a larger model")
        time.sleep(0.05)
    return shards


def evaluation_actors() -> list[psutil.Process]:
    """The evaluation actors of the cluster that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::EvaluationWorker"):
                found.append(process)
    return found
