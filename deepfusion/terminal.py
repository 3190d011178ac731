"""What a command says on stderr while it works; stdout holds what a script reads."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Say on stderr, before anything slow is imported, what is being done.

    In a terminal this is a spinner that goes away; elsewhere it is one line, unless JAX is loaded already.

    Args:
      what: the work in a few words, such as "loading JAX".
      quiet: write no line where stderr is not a terminal, for commands whose output a script reads.
    """
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what):
            yield
        return
    if not quiet and "jax" not in sys.modules:
        notes(f"{what} ...")
    yield


def notes(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)
