"""Files written one after the other in threads, while what made them goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Pieces of work that are done in the order in which they were begun; after one that fails, none of those begun is done.

    What was begun later is thus never on the disk without what was begun before.
    """

    def __init__(self) -> None:
        self._last: threading.Thread | None = None
        self._failure: Exception | None = None

    def begin(self, work: Callable[[], None]) -> threading.Thread:
        """Begin ``work``, whose arrays must not change meanwhile; return what ``wait`` takes to wait for it.

        Raises:
          Exception: what was begun before has failed.
        """
        if self._failure is not None:
            self.wait()
        before = self._last

        def run() -> None:
            if before is not None:
                before.join()
            if self._failure is None:
                try:
                    work()
                except Exception as error:
                    self._failure = error

        # no daemon: a process that ends writes what it has begun
        self._last = threading.Thread(target=run, name="writer")
        self._last.start()
        return self._last

    def wait(self, begun: threading.Thread | None = None) -> None:
        """Wait for all work, or for one piece and those before it; raise the error of the first that failed."""
        thread = begun or self._last
        if thread is not None:
            thread.join()
        if self._failure is not None:
            assert self._last is not None
            self._last.join()  # what was begun after it is not done either
            failure, self._failure = self._failure, None
            raise failure
