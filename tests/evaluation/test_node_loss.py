"""A node that is lost in the middle of an evaluation, on a local cluster of two."""

import random
import sys
import threading
import time
from collections import Counter

import pytest
import ray
from ray.cluster_utils import Cluster

from rayembed.common.ray_cluster import connect
from rayembed.evaluation.builtin_tasks import load_task
from rayembed.evaluation.catalogue import Catalogue
from rayembed.evaluation.encoder import EngineEncoder, evaluate_task
from rayembed.evaluation.instructions import InstructionPolicy
from rayembed.evaluation.results import Candidate
from rayembed.evaluation.worker import EvaluationSetup
from tests.evaluation import conftest
from tests.evaluation.conftest import WordEngine, WordWorker, pool, units_of
from tests.ray_nodes import add_node

TASKS = ["DocstringRetrieval", "VaderTweets"]
NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}


@pytest.fixture
def two_nodes(monkeypatch):
    """A connected local cluster of two nodes with one CPU each."""
    for module in (conftest, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)  # workers do not see the tests
    cluster = Cluster()
    for _ in range(2):
        add_node(cluster, **NODE)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    connect()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class LoggingWorker(WordWorker):
    """Takes its time for a shard and leaves `<unit>@<node>#<number>` when it starts and when it ends."""

    def run(self, unit):
        node = ray.get_runtime_context().get_node_id()
        folder = self.setup.output / "log"
        name = f"{unit.key.replace('/', '_')}@{node}#{time.monotonic_ns()}"
        (folder / f"started {name}").touch()
        time.sleep(0.2 if unit.shard else 0)
        outcome = super().run(unit)
        (folder / f"ended {name}").touch()
        return outcome


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_node_costs_at_most_the_shard_of_its_actor(two_nodes, data_dir, tmp_path):
    candidate = Candidate("trained", "f" * 64, tmp_path / "unused")
    catalogue = Catalogue(data_dir)
    units = units_of(candidate, catalogue, TASKS, shard_tokens=20)
    shards = sum(unit.shard is not None for unit in units)
    assert shards > 12
    log = tmp_path / "log"
    log.mkdir()
    victim = next(iter(two_nodes.worker_nodes))
    moment = random.randint(shards // 4, 3 * shards // 4)

    def started() -> list[str]:
        return [path.name.removeprefix("started ") for path in log.glob("started *")]

    def lose_the_node() -> None:
        while len(started()) < moment or not any(victim.node_id in name for name in started()):
            time.sleep(0.01)
        two_nodes.remove_node(victim, allow_graceful=False)

    killer = threading.Thread(target=lose_the_node)
    killer.start()
    actor = ray.remote(num_cpus=1)(LoggingWorker)
    setup = EvaluationSetup(catalogue, InstructionPolicy(), tmp_path)
    across = {
        unit.reference.name: outcome.result.get_score()
        for unit, outcome in pool(units, lambda: actor.remote(setup, 1), 2).run()
        if outcome.result
    }
    killer.join()

    nodes = {name.partition("@")[2].partition("#")[0] for name in started()}
    assert len(nodes) == 2
    runs = Counter(name.partition("@")[0] for name in started())
    assert set(runs) == {unit.key.replace("/", "_") for unit in units}
    assert sum(runs.values()) - len(runs) <= 1, f"lost after {moment} starts: {runs}"
    for name in TASKS:
        alone = evaluate_task(EngineEncoder(WordEngine(candidate.digest), "one"), load_task(name, data_dir))
        assert across[name] == pytest.approx(alone.get_score(), abs=1e-6)
