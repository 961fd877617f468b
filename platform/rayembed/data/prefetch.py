"""An iterator that works ahead in a thread of its own."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from rayembed.common.threads import keep_to_one_processor

Item = TypeVar("Item")

_LOOK_FOR_CLOSE_SECONDS = 0.5


class _End:
    """Put behind the last item, with the error that ended the work if there was one."""

    def __init__(self, error: BaseException | None):
        self.error = error


class Prefetched(Generic[Item]):
    """Iterates over what `make` makes, up to `size` items ahead.

    Work begins when the object is made. An error of the iterator is raised where its item would have come.
    torch has one processor there, so that making the next items leaves the others to the training step.
    """

    def __init__(self, make: Callable[[], Iterator[Item]], size: int):
        self._items: queue.Queue[Item | _End] = queue.Queue(size)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item = self._items.get()
        if not isinstance(item, _End):
            return item
        self._items.put(item)  # for whoever asks again
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Stop working ahead; items that are ready are dropped, and what follows is the end."""
        self._closed.set()
        self._thread.join()
        while not self._items.empty():
            self._items.get_nowait()
        self._items.put(_End(None))

    def _work(self, make: Callable[[], Iterator[Item]]) -> None:
        keep_to_one_processor()
        error = None
        try:
            for item in make():
                if not self._put(item):
                    return
        except BaseException as caught:  # noqa: BLE001 - handed to the consumer, which raises it
            error = caught
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put(item, timeout=_LOOK_FOR_CLOSE_SECONDS)
            except queue.Full:
                continue
            return True
        return False
