"""What a process computes on: the GPU that Ray gave it and no other."""

import sys

import pytest
import ray

from rayembed.common.device import granted_gpus, resolve_device


def test_a_process_without_ray_or_outside_its_workers_was_given_none(monkeypatch):
    assert granted_gpus() is None
    monkeypatch.delitem(sys.modules, "ray")
    assert granted_gpus() is None


@pytest.mark.ray
def test_a_task_uses_the_gpu_that_ray_gave_it_and_no_other(gpu_cluster, monkeypatch):
    def device(cuda: bool, visible: str | None = None) -> str:
        import os

        import torch

        torch.cuda.is_available = lambda: cuda
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        return str(resolve_device())

    task = ray.remote(device)
    assert ray.get(task.options(num_gpus=0).remote(cuda=True)) == "cpu", "all GPUs of the node are visible"
    assert ray.get(task.options(num_gpus=1).remote(cuda=True)) == "cuda:0"
    with pytest.raises(ray.exceptions.RayTaskError, match="torch sees no CUDA device"):
        ray.get(task.options(num_gpus=1).remote(cuda=False))
    fake = task.options(num_gpus=0.5, runtime_env={"env_vars": {"RAYEMBED_FAKE_GPUS": "1"}})
    assert ray.get(fake.remote(cuda=False)) == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert str(resolve_device()) == "cuda", "a driver is given none and sees all"
