"""The device that a process may use: decided where the work runs, by what Ray gave it.

Models and the engine use this and know no Ray, so a process without Ray does not import it here.
"""

import os
import sys

import torch

from rayembed.common.errors import ConfigError, ResourceError

FAKE_GPUS = "RAYEMBED_FAKE_GPUS"
"""Environment variable of drills: GPUs that nodes claim are granted, and the work on them is done on CPUs."""


def resolve_device(device: str = "auto") -> torch.device:
    """The device that a process may use.

    auto: in a task or actor of Ray, the GPU that Ray gave it, and the CPU where Ray gave it none. Ray leaves
    the GPUs of a node visible to those without. In any other process, CUDA where there is one, else the CPU.

    Raises:
        ConfigError: a CUDA device is asked for and there is none.
        ResourceError: Ray gave this process a GPU that torch cannot use.
    """
    if device == "auto":
        granted = granted_gpus()
        if granted is not None:
            return _granted_device(granted)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r} was asked for but no CUDA device is visible; use device: auto or cpu"
        )
    return torch.device(device)


def _granted_device(granted: list[str]) -> torch.device:
    """The first of the GPUs that Ray gave to this process.

    With GPUs "2" and CUDA_VISIBLE_DEVICES "0,2", as Ray Train shows all its workers of a node, it is cuda:1.
    """
    if not granted or FAKE_GPUS in os.environ:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError(
            f"Ray gave this process GPU {granted[0]} and torch sees no CUDA device; install the CUDA build "
            "of torch and the NVIDIA driver on that node, or start it with --num-gpus=0"
        )
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    first = granted[0]
    return torch.device("cuda", visible.index(first) if first in visible else int(first))


def granted_gpus() -> list[str] | None:
    """Ids of the GPUs that Ray gave to this task or actor, in order; None in any other process.

    `ray.get_gpu_ids()` is for tasks and actors only.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return None
    return sorted(map(str, ray.get_gpu_ids()), key=lambda name: (len(name), name))
