"""An endpoint on this machine alone: this process answers HTTP, and each model replica is a Ray actor.

Under Ray Serve a request passes a proxy, an ingress replica and a model replica, which on a small machine
takes longer than a short text. Here it passes one boundary between processes, and a lost replica is replaced
and its requests sent again as there. What needs Serve stays with `deploy`: clusters, autoscaling and updates.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import ray
import uvicorn
from ray.exceptions import RayActorError

from rayembed.common.errors import CheckpointError, ResourceError
from rayembed.common.ray_compat import runs_inside_job
from rayembed.engine.engine import Engine
from rayembed.serving.app import create_app
from rayembed.serving.authentication import Keyring, load_keyring
from rayembed.serving.config import ModelSettings, ServeConfig
from rayembed.serving.deploy import (
    base_url,
    check_models,
    check_port,
    connect_for_serving,
    with_fitting_resources,
)
from rayembed.serving.front import Front
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.middleware import DropAbandoned
from rayembed.serving.replica import load_engine
from rayembed.serving.replica_pool import PooledEncoder, ReplicaPool, reason_of

logger = logging.getLogger(__name__)

_CALLS_IN_PROGRESS = 4096
_FINISH_S = 60
_POLL_S = 0.01


def can_serve_locally(config: ServeConfig) -> bool:
    """Whether this machine is meant, and the settings ask for a fixed number of processes."""
    on_cluster = "RAY_ADDRESS" in os.environ or runs_inside_job()
    fixed = all(model.min_replicas == model.max_replicas for model in config.all_models)
    return not on_cluster and fixed and config.ingress_replicas == 1


def serve_locally(
    arguments: Mapping[str, Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    load: Callable[[ModelSettings], Engine] = load_engine,
) -> "LocalEndpoint":
    """Start an endpoint in this process, with replicas on a Ray instance of this machine.

    Raises: as `deploy`.
    """
    config = ServeConfig.parse(arguments)
    keyring = load_keyring(config.authentication, config.api_keys_file, host)
    check_models(config)
    check_port(host, port)
    connect_for_serving()
    config = with_fitting_resources(config, arguments)
    check_room(config, ray.cluster_resources())
    logger.info("starting the replicas and loading the model")
    return LocalEndpoint(config, keyring, host, port, load)


def check_room(config: ServeConfig, there: Mapping[str, float]) -> None:
    """Raise ResourceError unless the replicas of all models fit the machine at once."""
    cpus = sum(model.max_replicas * model.num_cpus for model in config.all_models)
    gpus = sum(model.max_replicas * model.num_gpus for model in config.all_models)
    if cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0):
        raise ResourceError(
            f"the replicas need {cpus:g} cores and {gpus:g} GPUs, and the machine has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}; lower num_cpus, num_gpus or the replicas"
        )


class LocalEndpoint:
    """HTTP front end in a thread of this process, and its replicas."""

    def __init__(
        self,
        config: ServeConfig,
        keyring: Keyring | None,
        host: str,
        port: int,
        load: Callable[[ModelSettings], Engine],
    ):
        """Waits until all models are loaded and the port is open.

        Raises:
            CheckpointError: a model does not load.
        """
        self._load = load
        self._pools = {model.served_name: self._pool(model) for model in config.all_models}
        metrics = IngressMetrics()
        self._front = Front("front", metrics)
        app = create_app(config, self._pools, keyring=keyring, metrics=metrics, front=self._front)
        self._listening = uvicorn.Config(
            DropAbandoned(app),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_FINISH_S,
        )
        self._server = uvicorn.Server(self._listening)
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        try:
            self._started.result()
        except RayActorError as error:
            raise CheckpointError(f"the endpoint did not start: {reason_of(error)}") from error
        self.url = base_url(host, port)

    def drain(self) -> None:
        """Make the readiness probe fail; requests are answered as before."""
        self._front.draining = True

    def stop(self) -> None:
        """Answer what has begun and end."""
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._listening.get_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            await asyncio.gather(*(pool.open() for pool in self._pools.values()))
            serving = asyncio.create_task(self._server.serve())
            while not (self._server.started or serving.done()):
                await asyncio.sleep(_POLL_S)
        except Exception as error:  # noqa: BLE001 - the thread that waits for the start raises it
            self._started.set_exception(error)
        else:
            self._started.set_result(None)
            await serving
        finally:
            for pool in self._pools.values():
                pool.close()

    def _pool(self, model: ModelSettings) -> ReplicaPool:
        replica = ray.remote(PooledEncoder).options(
            num_cpus=model.num_cpus, num_gpus=model.num_gpus, max_concurrency=_CALLS_IN_PROGRESS
        )
        return ReplicaPool(
            lambda: replica.remote(model.with_absolute_paths(), self._load), model.max_replicas
        )
