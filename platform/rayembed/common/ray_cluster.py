"""Connecting to Ray; what a cluster has and can still start; one call on a node with enough memory."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import yaml
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from rayembed.common.device import FAKE_GPUS
from rayembed.common.errors import ConfigError, ResourceError, UserError
from rayembed.common.ray_compat import (
    job_variables,
    kuberay_configuration,
    monitor_command,
    reported_node_types,
    runs_inside_job,
    worker_niceness_options,
)

Result = TypeVar("Result")

_HEAD = "node:__internal_head__"
_PASSED_ON = ("RAYEMBED_HOME", FAKE_GPUS)
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
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS is {address}, a dashboard, which takes jobs only: use `ray job submit`, or set it "
            "to ray://HOST:10001 or HOST:6379"
        )
    inside_job = runs_inside_job()
    source_path = "platform" if inside_job and Path("platform/rayembed").is_dir() else str(SOURCE_ROOT)
    environment = {"PYTHONPATH": source_path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | processor_settings()
    environment |= variables or {}
    environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    given = job_variables()
    environment = {name: value for name, value in environment.items() if name not in given}
    existing = joins_cluster()
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


def joins_cluster() -> bool:
    """Whether `connect` joins a cluster, which nodes may join too, in place of starting one on loopback."""
    return runs_inside_job() or "RAY_ADDRESS" in os.environ


@dataclass(frozen=True)
class ClusterGpus:
    """GPUs of the connected cluster.

    Attributes:
        now: on nodes that are up.
        startable: on all nodes that an autoscaler may have at a time; None where one runs that does not tell.
    """

    now: int
    startable: int | None

    @property
    def most(self) -> int:
        """As many as can be counted on."""
        return max(self.now, self.startable or 0)


def cluster_gpus(accelerator_type: str | None = None) -> ClusterGpus:
    """GPUs that the connected cluster has, and those that its autoscaler can have.

    Args:
        accelerator_type: the only model to count, as Ray names it; None: any.
    """
    types = startable_nodes()
    return ClusterGpus(
        now=sum(_gpus_of(node, accelerator_type) for node in live_nodes()),
        startable=None if types is None else sum(n * _gpus_of(node, accelerator_type) for n, node in types),
    )


def _gpus_of(node: Mapping[str, float], accelerator_type: str | None) -> int:
    fits = accelerator_type is None or f"accelerator_type:{accelerator_type}" in node
    return int(node.get("GPU", 0)) if fits else 0


def counted_gpus() -> int:
    """GPUs that work which takes GPUs or CPUs can count on; 0, with a warning, where nobody can tell."""
    gpus = cluster_gpus()
    if gpus.startable is None and not gpus.now:
        logger.warning(
            "CPUs are used: no node has a GPU, and the cluster's autoscaler does not tell whether it can "
            "start one that has; start such a node first to use it"
        )
    return gpus.most


def live_nodes() -> list[dict[str, float]]:
    """Resources of each node that is up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


NodeTypes = list[tuple[int, dict[str, float]]]
"""Most nodes of a type, and the resources of one of them."""


def startable_nodes() -> NodeTypes | None:
    """Node types that an autoscaler of the connected cluster can start; none where there is no autoscaler.

    None where an autoscaler runs and its node types cannot be found out. They are on the head alone: in the
    file that its autoscaler was started with, or, under KubeRay, in the Kubernetes API.
    """
    reported = reported_node_types()
    if reported is not None:
        return reported
    address = ray.get_runtime_context().gcs_address
    own_node = ray.get_runtime_context().get_node_id()
    on_head = any(node["NodeID"] == own_node and _HEAD in node["Resources"] for node in ray.nodes())
    if on_head:
        return _node_types_on_head(address)
    asking = ray.remote(_node_types_on_head).options(num_cpus=0, resources={_HEAD: 0.001})
    return ray.get(asking.remote(address))


def _node_types_on_head(gcs_address: str) -> NodeTypes | None:
    command = monitor_command(gcs_address)
    if command is not None:
        files = [part.partition("=")[2] for part in command if part.startswith("--autoscaling-config=")]
        return node_types(yaml.safe_load(Path(files[0]).expanduser().read_text())) if files else []
    cluster, namespace = os.environ.get("RAY_CLUSTER_NAME"), os.environ.get("RAY_CLUSTER_NAMESPACE")
    if cluster is None or namespace is None:
        return []
    try:
        return node_types(kuberay_configuration(cluster, namespace))
    except Exception as error:  # noqa: BLE001  # whatever keeps the Kubernetes API from answering
        logger.warning("the node groups of RayCluster %s cannot be read: %s", cluster, error)
        return None


def node_types(configuration: Mapping[str, Any]) -> NodeTypes:
    """Worker types of a cluster launcher file, which `cluster.yaml` is an example of."""
    most = int(configuration.get("max_workers", 0))
    return [
        (min(most, int(declared.get("max_workers", most))), dict(declared.get("resources", {})))
        for name, declared in configuration.get("available_node_types", {}).items()
        if name != configuration.get("head_node_type")
    ]


def run_apart(
    function: Callable[[], Result],
    *,
    what: str,
    memory: float,
    cpus: float = 1,
    gpus: float = 0,
    accelerator_type: str | None = None,
    labels: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """What a function returns, called in another process, on a node with enough free memory.

    Args:
        function: can be pickled.
        what: subject of the sentence in errors.
        memory: bytes that it takes.
        cpus, gpus: that it uses.
        accelerator_type: model of the GPU, as Ray names it; None: any.
        labels: of the node, as Ray's label selectors.
        environment: environment variables of the process, which then serves this call alone. Other processes
            without a GPU wait for the next call: their imports take seconds.

    Raises:
        UserError: as the function raised it.
        ResourceError: no node has so much memory, or its process was killed.
    """
    connect()
    nodes = [*live_nodes(), *(node for _, node in startable_nodes() or [])]
    largest = max(node.get("memory", math.inf) for node in nodes)  # launcher files leave it out
    if memory > largest:
        raise ResourceError(
            f"{what} needs {memory / 2**30:.1f} GiB of memory on one node and the largest offers "
            f"{largest / 2**30:.1f}; add a larger node, or start Ray with --memory if it has more"
        )
    remote = ray.remote(max_calls=1) if environment else ray.remote
    task = remote(lambda: function()).options(
        num_cpus=cpus,
        num_gpus=gpus,
        accelerator_type=accelerator_type,
        label_selector=dict(labels or {}),
        memory=int(memory),
        max_retries=0,
        runtime_env={"env_vars": dict(environment or {})},
    )
    try:
        return ray.get(task.remote())
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise
    except (WorkerCrashedError, OutOfMemoryError) as error:
        raise ResourceError(f"the process of {what} was killed, most likely for its memory") from error
