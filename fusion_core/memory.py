"""Resident memory of this process: its peak, and giving back what the allocator keeps of memory that is free."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import pathlib
import sys
from collections.abc import Callable


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return 0


def give_back() -> None:
    """Give the system back what the C library's allocator keeps after memory was freed.

    Text in many small pieces, and compilers, leave hundreds of megabytes in free lists between what is still used. Nothing
    is done where the C library has no ``malloc_trim`` (it is glibc's).
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
