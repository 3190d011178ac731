"""Documentation in files of Python and of text, read by several processes at once.

This file needs nothing but the standard library: as a program it reads a JSON list of paths and writes their texts.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tokenize
import warnings
from collections.abc import Iterator, Sequence

SMALL = 1 << 22  # bytes of files that one process reads at once
MOST_PROCESSES = 8

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_LISTS = ("body", "orelse", "finalbody", "handlers", "cases")  # fields of statements that hold statements


def docstrings(source: str) -> str:
    """Return all docstrings of a Python source, in order, as one text; of source that does not parse, an empty one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    found, waiting = [], [tree]
    while waiting:  # statements alone: definitions are never within expressions, of which there are ten times as many
        node = waiting.pop()
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            found.append((getattr(node, "lineno", 0), inspect.cleandoc(text)))
        for name in _LISTS:
            waiting += getattr(node, name, ())
    return "\n\n".join(text for _, text in sorted(found))


def documentation(path: pathlib.Path) -> str | None:
    """Return the docstrings of a ``.py`` file, or the text of another; None if it cannot be read."""
    try:
        if path.suffix == ".py":
            with tokenize.open(path) as source:  # by the file's own encoding declaration
                return docstrings(source.read())
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, SyntaxError):
        return None  # deliberately broken sources of tests, unreadable links


def documentation_of(paths: Sequence[pathlib.Path]) -> list[str | None]:
    """Return ``documentation`` of each path; the processors that this process may use share the work."""
    size = 0
    for path in paths:
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    count = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST_PROCESSES
    )
    if count == 1 or size < SMALL or not sys.executable:
        return _read(paths)
    helpers = [_Helper(paths[i::count]) for i in range(1, count)]
    found: list[str | None] = [None] * len(paths)
    found[::count] = _read(paths[::count])
    for i, helper in enumerate(helpers, start=1):
        found[i::count] = helper.texts()
    return found


class _Helper:
    """A process that reads files; where there can be none, or it fails, they are read here."""

    def __init__(self, paths: Sequence[pathlib.Path]) -> None:
        self._paths = paths
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps([os.fspath(path) for path in paths]).encode())
            self._process.stdin.close()

    def texts(self) -> list[str | None]:
        """Return the texts, once they are read."""
        if self._process is not None:
            assert self._process.stdout is not None
            with self._process:
                out = self._process.stdout.read()
            with contextlib.suppress(ValueError):
                found: list[str | None] = json.loads(out)
                if self._process.returncode == 0 and len(found) == len(self._paths):
                    return found
        return _read(self._paths)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Switch the search for cycles off: syntax trees are many objects, and have none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(paths: Sequence[pathlib.Path]) -> list[str | None]:
    with _uncollected():
        return [documentation(path) for path in paths]


if __name__ == "__main__":
    print(json.dumps(_read([pathlib.Path(name) for name in json.load(sys.stdin)])))
