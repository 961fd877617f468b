"""GPUs of a cluster: those that are there, and those that an autoscaler can start."""

from pathlib import Path

import pytest
import yaml

from rayembed.common import ray_cluster
from rayembed.common.ray_cluster import ClusterGpus, cluster_gpus, node_types

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


@pytest.mark.ray
def test_nodes_that_are_up_are_counted_and_no_autoscaler_runs(gpu_cluster):
    assert cluster_gpus() == ClusterGpus(now=2, startable=0)
