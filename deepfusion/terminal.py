"""What a command says on stderr while it works; stdout holds what a script reads."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def working(what: str, *, quiet: bool = False, after: float | None = None) -> Iterator[None]:
    """Say on stderr, before anything slow is imported, what is being done.

    In a terminal this is a spinner that goes away; elsewhere it is one line, unless JAX is loaded already.

    Args:
      what: the work in a few words, such as "loading JAX".
      quiet: write no line where stderr is not a terminal, for commands whose output a script reads.
      after: seconds after which the line is written there all the same; if None, it is not.
    """
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what):
            yield
        return
    if after is not None:
        late = threading.Timer(after, notes, [f"{what}; it may take long, and Ctrl-C ends it ..."])
        late.daemon = True
        late.start()
        try:
            yield
        finally:
            late.cancel()
        return
    if not quiet and "jax" not in sys.modules:
        notes(f"{what} ...")
    yield


def notes(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)
