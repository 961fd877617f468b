"""The device that training takes, and what it asks Ray for."""

import logging

import pytest

from rayembed.common.errors import ConfigError, ResourceError
from rayembed.common.ray_cluster import ClusterGpus
from rayembed.training import fit
from tests.training.recipes import tiny_recipe


def decided(monkeypatch, device: str, gpus: ClusterGpus, *, joins: bool = True, kind: str | None = None):
    monkeypatch.setattr(fit, "cluster_gpus", lambda _: gpus)
    monkeypatch.setattr(fit, "joins_cluster", lambda: joins)
    return fit.with_device(
        tiny_recipe(training={"device": device, "workers": 2, "accelerator_type": kind}).training
    ).device


def test_auto_takes_gpus_that_are_there_or_can_be_started(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert decided(monkeypatch, "auto", ClusterGpus(now=2, startable=0)) == "cuda"
    assert decided(monkeypatch, "auto", ClusterGpus(now=0, startable=8)) == "cuda"
    assert "nodes that are up have 0, the autoscaler can start nodes with 8" in caplog.text
    assert decided(monkeypatch, "auto", ClusterGpus(now=1, startable=None)) == "cuda"
    assert decided(monkeypatch, "auto", ClusterGpus(now=0, startable=0)) == "cpu"
    assert "set training.device to cuda to wait for nodes that join later" in caplog.text


def test_auto_does_not_fall_back_to_cpus_where_gpus_could_come(monkeypatch):
    with pytest.raises(ResourceError, match=r"set training\.device to cuda or cpu"):
        decided(monkeypatch, "auto", ClusterGpus(now=0, startable=None))
    with pytest.raises(ResourceError, match="accelerator_type: no node has a GPU H100 and no autoscaler"):
        decided(monkeypatch, "auto", ClusterGpus(now=0, startable=0), kind="H100")
    assert decided(monkeypatch, "cpu", ClusterGpus(now=0, startable=None)) == "cpu"
    assert decided(monkeypatch, "cuda", ClusterGpus(now=0, startable=None)) == "cuda"


def test_cuda_waits_on_a_cluster_and_is_refused_on_one_machine(monkeypatch, caplog):
    assert decided(monkeypatch, "cuda", ClusterGpus(now=0, startable=0)) == "cuda"
    assert "training waits for 2 GPUs" in caplog.text
    with pytest.raises(ResourceError, match="no node of this cluster has a GPU"):
        decided(monkeypatch, "cuda", ClusterGpus(now=0, startable=0), joins=False)


def test_workers_ask_for_a_gpu_its_type_and_labels_of_the_node():
    labels = {"market": "!spot"}
    training = {"device": "cuda", "accelerator_type": "H100", "worker_labels": labels, "workers": 2}
    scaling = fit._scaling(tiny_recipe(training=training).training)
    assert scaling._resources_per_worker_not_none["GPU"] == 1
    assert scaling._resources_per_worker_not_none["accelerator_type:H100"] > 0
    assert scaling.label_selector == labels
    assert "GPU" not in fit._scaling(tiny_recipe(training={"device": "cpu"}).training).resources_per_worker
    with pytest.raises(ConfigError, match=r"is a GPU and training\.device is cpu"):
        tiny_recipe(training=training | {"device": "cpu"})
