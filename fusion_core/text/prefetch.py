"""Batches built by a thread while the device works, and the time for which the device still waited for them."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from fusion_core.errors import InputError

T = TypeVar("T")


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
        self._iterator = iterator
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._coming: collections.deque[Future[T]] = collections.deque()
        for _ in range(depth):
            self._coming.append(self._pool.submit(next, iterator))

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        if not self._coming:
            raise StopIteration
        start = time.perf_counter()
        try:
            item = self._coming.popleft().result()
        except BaseException:
            self.close()
            raise
        self.waited += time.perf_counter() - start
        self._coming.append(self._pool.submit(next, self._iterator))
        return item

    def close(self) -> None:
        """End the thread, once it has finished its item, and close the iterator."""
        self._coming.clear()
        self._pool.shutdown(cancel_futures=True)
        if hasattr(self._iterator, "close"):
            self._iterator.close()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def prefetch(iterator: Iterator[T], depth: int = 2) -> Prefetch[T]:
    """Return the iterator's items, of which a thread makes up to ``depth`` ahead. Raise InputError if ``depth`` is below 1."""
    return Prefetch(iterator, depth)
