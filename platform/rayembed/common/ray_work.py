"""The one way to do many items of work: on a pool of Ray actors, or in this process.

An actor has one item at a time, or two, so that it reads the second while it computes the first. When an
actor dies, another takes its place, and its item goes to whichever is idle first. A user's mistake ends the
work at once and is raised as it is. Any other error makes an item be tried again; what fails for good is
named when all others are done. Workers leave large results on disk: work that is cut off continues with the
items that are missing.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rayembed.common.errors import UserError
from rayembed.common.progress import Progress
from rayembed.common.ray_cluster import connect, counted_gpus, live_nodes

logger = logging.getLogger(__name__)

ATTEMPTS = 3
_HEARTBEAT_SECONDS = 30.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class ItemsFailed(RuntimeError):
    """Items failed for good, although all others were done.

    Attributes:
        failures: item -> the last of its errors.
    """

    def __init__(self, title: str, failures: Mapping[Any, Exception]):
        self.failures = dict(failures)
        reasons = "; ".join(f"{item}: {reason_of(error)}" for item, error in failures.items())
        super().__init__(f"{title}: {len(failures)} failed, all others are done: {reasons}")


def run_items(
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    *,
    title: str,
    actors: int | None = None,
    gpus: bool = True,
    ordered: bool = False,
    progress: bool = True,
    environment: Mapping[str, str] | None = None,
    overlapping: bool = False,
) -> Iterator[Result]:
    """Yield what a worker makes of each item; connects to Ray, or starts a local one, where that is needed.

    Args:
        make_worker: makes a worker; called once on each actor, with its first item.
        items: what the workers get, small enough to send.
        title: what is done, for the log and for errors.
        actors: most actors; None for one a GPU, or one a CPU where there is none; 0 for this process alone.
        gpus: whether the work uses GPUs.
        ordered: yield the results in the order of the items, in place of the order in which they are done.
        progress: log how many items are done and about how long the others take.
        environment: environment variables of the actors.
        overlapping: an actor's worker is called with a second item, in another thread, before the first is
            done, while many items wait.

    Raises:
        UserError: a worker raised it; nothing else is started.
        ItemsFailed: positions of the items that failed `ATTEMPTS` times; all others were yielded.
    """
    if not items:
        return
    queue = FirstComeQueue(range(len(items)))
    if actors == 0:
        done = _run_here(make_worker, items, queue, title)
    else:
        connect()
        done = _run_there(make_worker, items, queue, title, actors, gpus, environment or {}, overlapping)
    shown = Progress(logger, title, len(items))
    early: dict[int, Result] = {}
    following = 0
    for position, result in done:
        if progress:
            shown.add()
        if not ordered:
            yield result
            continue
        early[position] = result
        while following in early:
            yield early.pop(following)
            following += 1


def pool_resources(items: int, actors: int | None = None, *, gpus: bool = True) -> tuple[int, dict[str, int]]:
    """Number of actors for so many items, and the CPUs and GPUs of each; all CPUs are used.

    No actor outgrows a node: on nodes of 8 and 4 CPUs, two actors get 4 each, and twelve get 1.

    Args:
        items: pieces of work that can be done at the same time.
        actors: wanted number; None takes one per GPU that the cluster has or can start, else one per CPU.
        gpus: whether the work uses GPUs.
    """
    cpus = [int(node["CPU"]) for node in live_nodes() if node.get("CPU", 0) >= 1]
    devices = counted_gpus() if gpus else 0
    size = min(items, actors or devices or sum(cpus) or 1)
    share = min([sum(cpus) // size, *cpus]) if cpus else 1
    return size, {"num_cpus": max(1, share), "num_gpus": 1 if devices else 0}


class Queue(Protocol[Item]):
    """Where a pool takes its items from."""

    def __len__(self) -> int:
        """Items that have not been taken."""

    def take(self, before: Sequence[Item]) -> Item | None:
        """The next item for an actor that has done the items `before`; None while all wait for others."""

    def put_back(self, item: Item) -> None:
        """Queue a taken item again."""

    def done(self, item: Item) -> None:
        """Note that an item is done."""

    def give_up(self, item: Item) -> None:
        """Note that an item has failed for good, and drop those that need it."""


class FirstComeQueue(Queue[Item]):
    """Items that do not depend on each other, first come, first served."""

    def __init__(self, items: Sequence[Item]):
        self._waiting = deque(items)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, before: Sequence[Item]) -> Item | None:
        """The item that has waited longest."""
        return self._waiting.popleft() if self._waiting else None

    def put_back(self, item: Item) -> None:
        """Queue a taken item again, behind the others."""
        self._waiting.append(item)

    def done(self, item: Item) -> None:
        """Nothing waits for it."""

    def give_up(self, item: Item) -> None:
        """Nothing waits for it."""


@dataclass
class _Place:
    """A place in the pool.

    Attributes:
        actor: fills it.
        is_up: whether the actor takes items.
        running: items that it has now.
        before: items that it has had.
        tries_suspect: whether it has an item that may have made an actor die.
        failed_starts: actors that died here in a row before they were up.
    """

    actor: Any
    is_up: bool = False
    running: list[Any] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)
    tries_suspect: bool = False
    failed_starts: int = 0


class ActorPool:
    """Does the items of a queue on actors. An actor that the cluster cannot place yet is not waited for.

    Args:
        title: what is done, for the log and for errors.
        queue: the items, which are hashable.
        start_actor: starts an actor with the methods `ready()` and `run(message)`.
        size: most actors.
        message: item -> what its actor gets.
        try_again: whether an item that raised an error gets further attempts, as one whose actor died does.
        heartbeat: told of the running items when nothing was done for half a minute.
        items_at_once: most items of an actor; a second one it gets only while every actor has one and as many
            wait.
    """

    def __init__(
        self,
        title: str,
        queue: Queue[Any],
        start_actor: Callable[[], Any],
        size: int,
        *,
        message: Callable[[Any], Any] = lambda item: item,
        try_again: bool = True,
        heartbeat: Callable[[Sequence[Any]], None] = lambda running: None,
        items_at_once: int = 1,
    ):
        self._title, self._queue, self._start_actor = title, queue, start_actor
        self._message, self._try_again, self._heartbeat = message, try_again, heartbeat
        self._items_at_once = items_at_once
        self._places = [_Place(start_actor()) for _ in range(min(size, len(queue)))]
        self._suspects: deque[Any] = deque()  # one of them made an actor die, so each is tried alone
        self._running: dict[Any, tuple[_Place, Any]] = {}  # an item of None: the actor starts
        self._attempts = _Attempts(title, queue)

    def run(self) -> Iterator[tuple[Any, Any]]:
        """Yield every item with its result, in the order in which they are done.

        Raises:
            UserError: an actor raised it; nothing else is started.
            ItemsFailed: items failed although all others were done.
            RuntimeError: actors die as they start.
        """
        try:
            for place in self._places:
                self._running[place.actor.ready.remote()] = place, None
            while len(self._queue) or self._suspects or any(place.running for place in self._places):
                yield from self._next_done()
        finally:
            for place in self._places:
                ray.kill(place.actor)
        self._attempts.raise_failures()

    def _next_done(self) -> Iterator[tuple[Any, Any]]:
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=_HEARTBEAT_SECONDS)
        if not done:
            self._heartbeat([item for _, item in self._running.values() if item is not None])
            return
        place, item = self._running.pop(done[0])
        try:
            result = ray.get(done[0])
        except (RayActorError, ObjectLostError) as error:
            # A lost node takes along results that were not read yet.
            self._replace(place, error)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            assert item is not None, "ready() has nothing that can fail"
            place.running.remove(item)
            self._attempts.failed(item, error, final=not self._try_again)
        else:
            if item is None:
                place.is_up, place.failed_starts = True, 0
            else:
                place.running.remove(item)
                self._queue.done(item)
                yield item, result
        self._assign()

    def _assign(self) -> None:
        """Give the actors their next items; they stay idle while all items wait for others."""
        for held in range(self._items_at_once):
            for place in self._places:
                if not place.is_up or len(place.running) != held:
                    continue
                if held and (place.tries_suspect or len(self._queue) < len(self._places)):
                    continue
                place.tries_suspect = bool(self._suspects) and not held
                item = self._suspects.popleft() if place.tries_suspect else self._queue.take(place.before)
                if item is None:
                    return
                place.running.append(item)
                place.before.append(item)
                self._running[place.actor.run.remote(self._message(item))] = place, item

    def _replace(self, place: _Place, error: Exception) -> None:
        """Put another actor in a dead one's place.

        Its items do not wait for that actor, which may find no free CPU: idle ones take them.
        """
        if not place.is_up:
            # Counted by place: a node that is lost while many actors start on it is one failure of each.
            place.failed_starts += 1
            if place.failed_starts >= ATTEMPTS:
                raise RuntimeError(f"{self._title}: actors die as they start: {error}") from error
        elif len(place.running) == 1:
            self._attempts.failed(place.running[0], error, died=True)
        else:
            logger.warning("%s: an actor died; %s are tried again", self._title, place.running)
            self._suspects.extend(place.running)
        self._running = {call: (of, item) for call, (of, item) in self._running.items() if of is not place}
        place.actor, place.is_up, place.running, place.before = self._start_actor(), False, [], []
        self._running[place.actor.ready.remote()] = place, None


class _Attempts:
    """Counts the attempts of items that fail: back into the queue, or given up."""

    def __init__(self, title: str, queue: Queue[Any]):
        self._title, self._queue = title, queue
        self._counts: Counter[Hashable] = Counter()
        self._failures: dict[Hashable, Exception] = {}

    def failed(self, item: Any, error: Exception, *, died: bool = False, final: bool = False) -> None:
        """Note that an attempt went wrong; `final` when there shall be no other."""
        self._counts[item] += 1
        what = "its actor died" if died else reason_of(error)
        if final or self._counts[item] >= ATTEMPTS:
            logger.warning("%s: %s is given up: %s", self._title, item, what)
            self._failures[item] = RuntimeError(f"its actor died {ATTEMPTS} times") if died else error
            self._queue.give_up(item)
        else:
            logger.warning("%s: %s is tried again: %s", self._title, item, what)
            self._queue.put_back(item)

    def raise_failures(self) -> None:
        """Raise ItemsFailed where items were given up."""
        if self._failures:
            raise ItemsFailed(self._title, self._failures) from next(iter(self._failures.values()))


def reason_of(error: Exception) -> str:
    """Type and message of an error; of one from an actor, those of its cause."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]


class _Actor:
    """Holds the worker of an actor."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]):
        self._make_worker = make_worker
        self._worker: Callable[[Any], Any] | None = None
        self._making = threading.Lock()

    def ready(self) -> None:
        """Return once the actor is up."""

    def run(self, item: Any) -> Any:
        with self._making:
            if self._worker is None:
                self._worker = self._make_worker()
        return self._worker(item)


def _run_there(
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    queue: Queue[int],
    title: str,
    actors: int | None,
    gpus: bool,
    environment: Mapping[str, str],
    overlapping: bool,
) -> Iterator[tuple[int, Result]]:
    size, resources = pool_resources(len(items), actors, gpus=gpus)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(resources["num_cpus"]))
    at_once = 2 if overlapping else 1
    remote = ray.remote(_Actor).options(
        runtime_env={"env_vars": threads | dict(environment)}, max_concurrency=at_once, **resources
    )
    shared = ray.put(make_worker)
    pool = ActorPool(
        title,
        queue,
        lambda: remote.remote(shared),
        size,
        message=items.__getitem__,
        items_at_once=at_once,
    )
    yield from pool.run()


def _run_here(
    make_worker: Callable[[], Callable[[Item], Result]], items: Sequence[Item], queue: Queue[int], title: str
) -> Iterator[tuple[int, Result]]:
    worker = make_worker()
    attempts = _Attempts(title, queue)
    while (position := queue.take(())) is not None:
        try:
            result = worker(items[position])
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  # is tried again, and named in the end
            attempts.failed(position, error)
        else:
            yield position, result
    attempts.raise_failures()
