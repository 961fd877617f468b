"""The replicas of one model as Ray actors of their own, called as a Ray Serve handle is."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import ray
from ray.exceptions import RayActorError

from rayembed.serving.replica import Encoder

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 120
_RESTART_PAUSE_S = 1


class NoReplicaError(Exception):
    """No replica runs and none could be started in time."""


class PooledEncoder(Encoder):
    """A replica that a pool watches."""

    async def until_lost(self) -> None:
        """Never returns; the call fails when this process dies."""
        await asyncio.Event().wait()


@dataclass(eq=False)
class _Replica:
    actor: Any
    calls: int = 0


class ReplicaPool:
    """Sends each call to the least busy replica and replaces lost ones; to be used from one event loop."""

    def __init__(self, start: Callable[[], Any], size: int):
        """`start` creates the actor of a `PooledEncoder`; `size` is the number of replicas."""
        self._start = start
        self._size = size
        self._replicas: list[_Replica] = []
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
        for replica in self._replicas:
            ray.kill(replica.actor)

    def __getattr__(self, method: str) -> SimpleNamespace:
        """`pool.METHOD.remote(...)` is awaitable, as with a Serve handle."""
        return SimpleNamespace(remote=partial(self._call, method))

    def broadcast(self, method: str) -> SimpleNamespace:
        """`results_async()` gives the answers of all running replicas."""
        return SimpleNamespace(results_async=partial(self._ask_all, method))

    async def _ask_all(self, method: str) -> Sequence[Any]:
        return await asyncio.gather(*(self._ask(replica, method) for replica in self._replicas))

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            await asyncio.wait_for(self._some_ready.wait(), _LONGEST_WAIT_S)
        except TimeoutError as error:
            raise NoReplicaError from error
        replica = min(self._replicas, key=lambda replica: replica.calls)
        return await self._ask(replica, method, *arguments)

    async def _ask(self, replica: _Replica, method: str, *arguments: Any) -> Any:
        reference = getattr(replica.actor, method).remote(*arguments)
        replica.calls += 1
        try:
            return await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except RayActorError:
            self._remove(replica)
            raise
        finally:
            replica.calls -= 1

    async def _ready_replica(self) -> _Replica:
        replica = _Replica(self._start())
        await replica.actor.describe.remote()
        self._replicas.append(replica)
        self._some_ready.set()
        return replica

    async def _keep(self, replica: _Replica) -> None:
        """Replace a replica whenever it is lost."""
        while True:
            await _failure(replica.actor.until_lost.remote())
            self._remove(replica)
            logger.warning("a model replica was lost; another one is starting")
            while (started := await self._try_again()) is None:
                await asyncio.sleep(_RESTART_PAUSE_S)
            replica = started

    async def _try_again(self) -> _Replica | None:
        try:
            return await self._ready_replica()
        except RayActorError as error:
            logger.error("a model replica did not start: %s", reason_of(error))
            return None

    def _remove(self, replica: _Replica) -> None:
        if replica in self._replicas:
            self._replicas.remove(replica)
        if not self._replicas:
            self._some_ready.clear()


async def _failure(call: Coroutine) -> None:
    try:
        await call
    except RayActorError:
        return


def reason_of(error: RayActorError) -> str:
    """The last line of what made an actor fail."""
    return str(error).strip().splitlines()[-1]
