"""Work items on a pool of Ray Data actors, or in this process."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rayembed.common.errors import UserError
from rayembed.common.ray_cluster import actor_pool, connect

logger = logging.getLogger(__name__)

Item = dict[str, Any]
Worker = Callable[[Item], Item]
_PROGRESS_SECONDS = 15.0


def run_on_actors(
    make_worker: type, arguments: tuple[Any, ...], items: Sequence[Item], *, actors: int | None, title: str
) -> Iterator[Item]:
    """Yield what a worker makes of each item, in any order, and log the progress.

    Ray Data starts and replaces the actors and gives a dead one's items to others. A worker should leave its
    large results on disk, so that a run that is cut off continues with the items that are missing.

    Args:
        make_worker: class whose instances turn an item into a result; made once on each actor.
        arguments: of its constructor.
        items: numbers and texts only.
        actors: most actors; None for one a GPU, or one a CPU where there is none; 0 for this process alone.
        title: what is done, for the log.

    Raises:
        UserError: a worker raised it.
    """
    if not items:
        return
    started = shown = time.monotonic()
    if actors == 0:
        results = _in_process(make_worker, arguments, items)
    else:
        results = _on_actors(make_worker, arguments, items, actors)
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if now - shown > _PROGRESS_SECONDS and done < len(items):
            shown = now
            left = (now - started) / done * (len(items) - done)
            logger.info("%s: %d of %d, about %.0f s left", title, done, len(items), left)
    logger.info("%s: %d in %.1f s", title, len(items), time.monotonic() - started)


def _in_process(make_worker: type, arguments: tuple[Any, ...], items: Sequence[Item]) -> Iterator[Item]:
    worker: Worker = make_worker(*arguments)
    yield from map(worker, items)


class _Answering:
    """The worker on its actor. A user's mistake is returned: Ray would wrap and repeat an exception."""

    def __init__(self, make_worker: type, arguments: tuple[Any, ...]):
        self._make = lambda: make_worker(*arguments)
        self._worker: Worker | None = None

    def __call__(self, item: Item) -> Item:
        try:
            if self._worker is None:
                self._worker = self._make()
            return {"result": self._worker(item), "mistake": None}
        except UserError as error:
            return {"result": None, "mistake": error}


def _on_actors(
    make_worker: type, arguments: tuple[Any, ...], items: Sequence[Item], actors: int | None
) -> Iterator[Item]:
    import ray.data

    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    size, resources = actor_pool(len(items), actors)
    dataset = ray.data.from_items(list(items), override_num_blocks=len(items)).map(
        _Answering,  # type: ignore[arg-type]  # Ray Data calls an instance of it
        fn_constructor_args=(make_worker, arguments),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=size),
        num_cpus=resources["num_cpus"],
        num_gpus=resources["num_gpus"],
    )
    for answer in dataset.iter_rows():
        if answer["mistake"] is not None:
            raise answer["mistake"]
        yield answer["result"]
