"""GPUs of a cluster: those that are there, and those that an autoscaler can start."""

from pathlib import Path

import pytest
import ray
import yaml

from rayembed.common import ray_cluster
from rayembed.common.ray_cluster import ClusterGpus, cluster_gpus, counted_gpus, node_types, run_apart
from tests.ray_nodes import add_node

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = {
    "max_workers": 4,
    "head_node_type": "headgroup",
    "available_node_types": {
        "headgroup": {"max_workers": 0, "resources": {"CPU": 4, "GPU": 1}},
        "trainers": {"max_workers": 2, "resources": {"CPU": 8, "GPU": 8}},
    },
}


def test_the_types_of_the_launcher_file_are_those_of_its_workers():
    shipped = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (most, resources), *_ = node_types(shipped)
    assert (most, resources["GPU"]) == (8, 1)
    assert node_types(KUBERAY) == [(2, {"CPU": 8, "GPU": 8})]


def test_an_autoscaler_of_kubernetes_that_cannot_be_asked_tells_nothing(monkeypatch):
    monkeypatch.setattr(ray_cluster, "monitor_command", lambda _: None)
    assert ray_cluster._node_types_on_head("here:1") == []
    monkeypatch.setenv("RAY_CLUSTER_NAME", "rayembed")
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "default")
    monkeypatch.setattr(ray_cluster, "kuberay_configuration", lambda *_: KUBERAY)
    assert ray_cluster._node_types_on_head("here:1") == [(2, {"CPU": 8, "GPU": 8})]
    monkeypatch.setattr(ray_cluster, "kuberay_configuration", lambda *_: {}["no answer"])
    assert ray_cluster._node_types_on_head("here:1") is None


def test_the_file_of_the_autoscaler_is_read_where_it_runs(monkeypatch):
    command = ["python", "monitor.py", f"--autoscaling-config={ROOT / 'cluster.yaml'}"]
    monkeypatch.setattr(ray_cluster, "monitor_command", lambda _: command)
    assert ray_cluster._node_types_on_head("here:1") == node_types(
        yaml.safe_load((ROOT / "cluster.yaml").read_text())
    )


def test_gpus_are_counted_by_their_type(monkeypatch):
    shipped = node_types(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    monkeypatch.setattr(ray_cluster, "startable_nodes", lambda: shipped)
    monkeypatch.setattr(ray_cluster, "live_nodes", lambda: [{"GPU": 1, "accelerator_type:L4": 1}])
    assert cluster_gpus() == ClusterGpus(now=1, startable=8 + 8 * 8)
    assert cluster_gpus("H100") == ClusterGpus(now=0, startable=8 * 8)
    assert cluster_gpus("A100") == ClusterGpus(now=0, startable=0)


def test_work_for_gpus_or_cpus_says_that_it_takes_cpus(monkeypatch, caplog):
    monkeypatch.setattr(ray_cluster, "live_nodes", lambda: [{"CPU": 8}])
    monkeypatch.setattr(ray_cluster, "startable_nodes", lambda: [(2, {"GPU": 4})])
    assert counted_gpus() == 8
    assert not caplog.messages
    monkeypatch.setattr(ray_cluster, "startable_nodes", lambda: None)
    assert counted_gpus() == 0
    assert "CPUs are used: no node has a GPU" in caplog.text


@pytest.mark.ray
def test_nodes_that_are_up_are_counted_and_no_autoscaler_runs(gpu_cluster):
    assert cluster_gpus() == ClusterGpus(now=2, startable=0)


def gpu_types() -> list[str]:
    own = ray.get_runtime_context().get_node_id()
    return [name for node in ray.nodes() if node["NodeID"] == own for name in node["Resources"]]


@pytest.mark.ray
def test_a_call_gets_the_gpu_of_its_type(gpu_cluster):
    add_node(gpu_cluster, num_cpus=1, num_gpus=1, resources={"accelerator_type:H100": 1})
    gpu_cluster.wait_for_nodes()
    there = run_apart(gpu_types, what="this", memory=0, gpus=1, accelerator_type="H100")
    assert "accelerator_type:H100" in there
