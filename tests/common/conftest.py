from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.ray_nodes import add_node

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gpu_cluster():
    """A head without CPUs, and a node that claims two GPUs."""
    nodes = Cluster()
    add_node(nodes, num_cpus=0, include_dashboard=False)
    add_node(nodes, num_cpus=2, num_gpus=2)
    ray.init(address=nodes.address, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}})
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()
