"""An endpoint on this machine alone: this process answers HTTP, and each model replica is a Ray actor.

Under Ray Serve a request passes a proxy, an ingress replica and a model replica, which on a small machine
takes longer than a short text. Here it passes one boundary between processes, and a lost replica is replaced
and its requests sent again as there. What needs Serve stays with `deploy`: clusters, autoscaling and updates.
"""

import asyncio
import gc
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import ray
import uvicorn
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from rayembed.common.errors import CheckpointError, ResourceError
from rayembed.common.ray_compat import runs_inside_job
from rayembed.engine.engine import Engine
from rayembed.engine.quantization import check_torchao
from rayembed.model.compilation import check_compiler
from rayembed.serving.api.operations import IngressPeers
from rayembed.serving.app import create_app
from rayembed.serving.authentication import Keyring, load_keyring
from rayembed.serving.config import ModelSettings, ServeConfig
from rayembed.serving.deploy import (
    base_url,
    bound_socket,
    check_models,
    connect_for_serving,
    last_line,
    with_fitting_resources,
)
from rayembed.serving.errors import NoReplicaError
from rayembed.serving.metrics import IngressMetrics
from rayembed.serving.middleware import DropAbandonedMiddleware
from rayembed.serving.replica import EmbeddingReplica, load_engine
from rayembed.serving.router import answers_in_time
from rayembed.serving.token_routing import avoided_by, tokens_of
from rayembed.serving.wire import CallClient, CallServer

logger = logging.getLogger(__name__)

_CALLS_IN_PROGRESS = 4096  # of a replica
_CHECK_EVERY_S = 10
_LONGEST_CHECK_S = 60
_FINISH_S = 60
_POLL_S = 0.01
_LONGEST_WAIT_S = 120
_RESTART_PAUSE_S = 1


def why_not_locally(config: ServeConfig) -> str:
    """What needs Ray Serve, in words; empty where this machine alone is meant and enough."""
    if "RAY_ADDRESS" in os.environ or runs_inside_job():
        return "RAY_ADDRESS names a cluster"
    if any(model.min_replicas != model.max_replicas for model in config.all_models):
        return "min_replicas is below max_replicas"
    return "ingress_replicas is set" if config.ingress_replicas else ""


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
    listener = bound_socket(host, port)
    connect_for_serving()
    config = with_fitting_resources(config, arguments)
    check_room(config, ray.cluster_resources())
    check_packages(config)
    logger.info("starting the replicas and loading the model")
    return LocalEndpoint(config, keyring, listener, load)


def check_room(config: ServeConfig, there: Mapping[str, float]) -> None:
    """Raise ResourceError unless the replicas of all models fit the machine at once."""
    cpus = sum(model.max_replicas * model.num_cpus for model in config.all_models)
    gpus = sum(model.max_replicas * model.num_gpus for model in config.all_models)
    if cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0):
        raise ResourceError(
            f"the replicas need {cpus:g} cores and {gpus:g} GPUs, and the machine has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}; lower num_cpus, num_gpus or the replicas"
        )


def check_packages(config: ServeConfig) -> None:
    """Raise ResourceError unless this machine has what the options of the models' engines need."""
    for model in config.all_models:
        check_torchao(model.quantization)
        if model.compiled:
            check_compiler("cuda" if model.num_gpus else "cpu")


def freeze_loaded_objects() -> None:
    """Leave out of garbage collections what is loaded by now.

    With torch and transformers a full one takes 0.2 s, in which no request goes on. Under load it comes every
    ten seconds and finds nothing. Ray Serve does the same (RAY_SERVE_FREEZE_GC_ON_STARTUP).
    """
    gc.collect()
    gc.freeze()


class LocalEndpoint:
    """HTTP front end in a thread of this process, and its replicas."""

    def __init__(
        self,
        config: ServeConfig,
        keyring: Keyring | None,
        listener: socket.socket,
        load: Callable[[ModelSettings], Engine],
    ):
        """Waits until all models are loaded and the port of `listener` is open.

        Raises:
            CheckpointError: a model does not load.
        """
        self._load = load
        self._pools = {model.served_name: self._pool(model) for model in config.all_models}
        metrics = IngressMetrics()
        self._peers = IngressPeers("front", metrics)
        app = create_app(config, self._pools, keyring=keyring, metrics=metrics, peers=self._peers)
        self._listening = uvicorn.Config(
            DropAbandonedMiddleware(app),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_FINISH_S,
        )
        self._server = uvicorn.Server(self._listening)
        self._listener = listener
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        try:
            self._started.result()
        except RayActorError as error:
            raise CheckpointError(f"the endpoint did not start: {last_line(error)}") from error
        self.url = base_url(*listener.getsockname()[:2])

    def check(self) -> None:
        """Raise ResourceError when HTTP is no longer answered."""
        if not self._thread.is_alive():
            raise ResourceError("the HTTP side of the endpoint has ended; its log has the reason")

    def drain(self) -> None:
        """Make the readiness probe fail; requests are answered as before."""
        self._peers.draining = True

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
            freeze_loaded_objects()
            serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
            while not (self._server.started or serving.done()):
                await asyncio.sleep(_POLL_S)
        except Exception as error:  # noqa: BLE001 - the thread that waits for the start raises it
            self._started.set_exception(error)
        else:
            self._started.set_result(None)
            await serving
        finally:
            gc.unfreeze()
            for pool in self._pools.values():
                pool.close()

    def _pool(self, model: ModelSettings) -> "ReplicaPool":
        replica = ray.remote(PooledReplica).options(
            num_cpus=model.num_cpus, num_gpus=model.num_gpus, max_concurrency=_CALLS_IN_PROGRESS
        )
        return ReplicaPool(
            lambda: replica.remote(model.with_absolute_paths(), self._load), model.max_replicas
        )


class PooledReplica(EmbeddingReplica):
    """A replica that a pool calls and watches."""

    async def listen(self) -> tuple[str, str]:
        """Its name and the path of its socket for calls; an answer also means that the model is loaded."""
        freeze_loaded_objects()
        return self.name, await CallServer(self).listen()

    async def until_lost(self) -> None:
        """Never returns; the call fails when this process dies."""
        await asyncio.Event().wait()


@dataclass(eq=False)
class _Member:
    name: str
    actor: Any
    calls: CallClient
    work: int = 0
    """Tokens of its calls in progress, about."""


class ReplicaPool:
    """The replicas of one model as Ray actors, called as a Ray Serve handle is.

    Sends each call to the least busy replica that it need not avoid, and replaces lost ones; to be used from
    one event loop.
    """

    def __init__(self, start: Callable[[], Any], size: int):
        """`start` creates the actor of a `PooledReplica`; `size` is the number of replicas."""
        self._start = start
        self._size = size
        self._replicas: list[_Member] = []
        self._calls = 0
        self._some_ready = asyncio.Event()
        self._keepers: list[asyncio.Task] = []

    async def open(self) -> None:
        """Start all replicas and wait until each answers; raises RayActorError when one cannot load."""
        first = await asyncio.gather(*(self._ready_replica() for _ in range(self._size)))
        self._keepers = [asyncio.create_task(self._keep(replica)) for replica in first]

    def close(self) -> None:
        """End all replicas, whatever they are doing."""
        for keeper in self._keepers:
            keeper.cancel()
        for replica in list(self._replicas):
            self._remove(replica)

    def __getattr__(self, method: str) -> SimpleNamespace:
        """`pool.METHOD.remote(...)` is awaitable, as with a Serve handle."""
        return SimpleNamespace(remote=partial(self._call, method))

    async def answers(self, method: str) -> list[Any]:
        """Answers of all running replicas that come in time."""
        return await answers_in_time(self._ask(replica, method) for replica in self._replicas)

    async def _call(self, method: str, *arguments: Any) -> Any:
        most = _CALLS_IN_PROGRESS * self._size
        if self._calls >= most:
            raise BackPressureError(self._calls, most)
        self._calls += 1
        try:
            while not self._replicas:
                await asyncio.wait_for(self._some_ready.wait(), _LONGEST_WAIT_S)
            avoided = avoided_by(arguments)
            replica = min(self._replicas, key=lambda replica: (replica.name in avoided, replica.work))
            return await self._ask(replica, method, *arguments)
        except TimeoutError as error:
            raise NoReplicaError from error
        finally:
            self._calls -= 1

    async def _ask(self, replica: _Member, method: str, *arguments: Any) -> Any:
        work = tokens_of(arguments)
        replica.work += work
        try:
            return await replica.calls.call(method, *arguments)
        except RayActorError:
            self._remove(replica)
            raise
        finally:
            replica.work -= work

    async def _ready_replica(self) -> _Member:
        actor = self._start()
        try:
            name, path = await actor.listen.remote()
            replica = _Member(name, actor, await CallClient.connect(path))
        except Exception:
            ray.kill(actor)
            raise
        self._replicas.append(replica)
        self._some_ready.set()
        return replica

    async def _keep(self, replica: _Member) -> None:
        """Replace a replica whenever it is lost."""
        while True:
            watch = asyncio.create_task(self._watch(replica))
            await _failure(replica.actor.until_lost.remote())
            watch.cancel()
            self._remove(replica)
            logger.warning("a model replica was lost; another one is starting")
            while (started := await self._try_again()) is None:
                await asyncio.sleep(_RESTART_PAUSE_S)
            replica = started

    async def _watch(self, replica: _Member) -> None:
        """End a replica whose model no longer works."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            try:
                await asyncio.wait_for(replica.actor.check_health.remote(), _LONGEST_CHECK_S)
            except RayActorError:
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the model does not work
                logger.error("a model replica is not healthy: %s", str(error).strip().splitlines()[-1:])
                self._remove(replica)
                return

    async def _try_again(self) -> _Member | None:
        try:
            return await self._ready_replica()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt may succeed
            logger.error("a model replica did not start: %s", last_line(error))
            return None

    def _remove(self, replica: _Member) -> None:
        if replica in self._replicas:
            self._replicas.remove(replica)
            replica.calls.close()
            ray.kill(replica.actor)  # it may still run, with its connection lost
        if not self._replicas:
            self._some_ready.clear()


async def _failure(call: Coroutine) -> None:
    try:
        await call
    except RayActorError:
        return
