"""Connecting to Ray so that workers find this package whether or not it is installed on them."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import ray

from rayembed.common.ray_compat import runs_inside_job, worker_niceness_options

_SETUP_HOOK = "rayembed.common.ray_compat.silence_cleaner"
SOURCE_ROOT = Path(__file__).resolve().parents[2]

logger = logging.getLogger(__name__)


def processor_settings() -> dict[str, str]:
    """Environment of torch on a CPU: what this process was given, else these defaults.

    Large memory pages, where Linux leaves the choice to programs, save page faults (torch: alloc_cpu.cpp).
    Threads that wait for each other sleep after some microseconds; GNU OpenMP's usual milliseconds make a
    step several times slower as soon as another process wants a processor (libgomp's env.c).
    """
    defaults = {"THP_MEM_ALLOC_ENABLE": "1", "GOMP_SPINCOUNT": "1000"}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def connect(
    variables: Mapping[str, str] | None = None,
    *,
    num_cpus: int | None = None,
    worker_niceness: int | None = None,
) -> None:
    """Join the cluster of the surrounding job, or start a local one on loopback; does nothing when connected.

    Inside `ray job submit --working-dir .` the workers' current folder is a copy of the repository, so a
    relative PYTHONPATH names the source root there. Without a working_dir all processes share this machine's
    files and the absolute one does.

    Args:
        variables: further environment variables of all processes of the job.
        num_cpus: CPUs of a cluster started here; None for the machine's. An existing cluster keeps its own.
        worker_niceness: priority of the workers of a cluster started here; None for Ray's.
    """
    if ray.is_initialized():
        return
    inside_job = runs_inside_job()
    source_path = "platform" if inside_job and Path("platform/rayembed").is_dir() else str(SOURCE_ROOT)
    environment = {"PYTHONPATH": source_path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | processor_settings()
    environment |= variables or {}
    if home := os.environ.get("RAYEMBED_HOME"):
        environment["RAYEMBED_HOME"] = home
    existing = inside_job or "RAY_ADDRESS" in os.environ
    options = {} if existing or worker_niceness is None else worker_niceness_options(worker_niceness)
    ray.init(
        address="auto" if existing else "local",
        num_cpus=None if existing else num_cpus,
        include_dashboard=None if existing else False,
        runtime_env={"env_vars": environment}
        | ({} if existing else {"worker_process_setup_hook": _SETUP_HOOK}),
        log_to_driver=True,
        logging_level=logging.WARNING,
        **options,
    )
    logger.info("connected to Ray with %g CPUs", ray.cluster_resources().get("CPU", 0))
