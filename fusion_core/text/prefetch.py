"""Batches built by a thread while the device works, and the time for which the device still waited for them."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from fusion_core.errors import InputError

T = TypeVar("T")


def _work(iterator: Iterator[Any], ready: queue.Queue, stop: threading.Event) -> None:
    """Fill the queue with ("item", value); end it with ("end", None) or ("error", exception)."""

    def put(what: tuple[str, Any]) -> None:
        while not stop.is_set():
            try:
                ready.put(what, timeout=0.05)
                return
            except queue.Full:
                continue

    try:
        while not stop.is_set():
            try:
                item = next(iterator)
            except StopIteration:
                put(("end", None))
                return
            put(("item", item))
    except BaseException as error:  # raised where the items are taken
        put(("error", error))
    finally:
        if hasattr(iterator, "close"):
            iterator.close()  # in this thread: a generator that runs cannot be closed from another


class Prefetch(Generic[T]):
    """An iterator whose next items are made by a thread; an exception there is raised where the items are taken.

    ``close``, the end of a ``with`` block, an exception, the last item or the end of the object ends the thread.

    Attributes:
      waited: seconds that the consumer has waited in all.
    """

    def __init__(self, iterator: Iterator[T], depth: int = 2) -> None:
        if depth < 1:
            raise InputError(f"the depth of prefetching is {depth}; it must be at least 1")
        self.waited = 0.0
        self._ready: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_work, args=(iterator, self._ready, self._stop), name="prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, self._stop.set)
        self._thread.start()

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        start = time.perf_counter()
        kind, value = self._ready.get()
        self.waited += time.perf_counter() - start
        if kind == "item":
            return value
        self.close()
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """End the thread, once it has finished its item, and close the iterator."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        with contextlib.suppress(queue.Full):
            self._ready.put_nowait(("end", None))  # wakes a consumer in another thread

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def prefetch(iterator: Iterator[T], depth: int = 2) -> Prefetch[T]:
    """Return the iterator's items, of which a thread makes up to ``depth`` ahead. Raise InputError if ``depth`` is below 1."""
    return Prefetch(iterator, depth)
