"""Memory that was freed does not stay with the allocator, where a run would carry it to its end."""

import ctypes
import pathlib
import sys

import pytest

from fusion_core.memory import give_back, peak_memory

SIZE, PIECE = 1 << 26, 1 << 14


def resident() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")
def test_what_was_freed_below_what_is_used_goes_back_to_the_system():
    c = ctypes.CDLL(None)
    c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    if not hasattr(c, "malloc_trim"):
        pytest.skip("another C library")
    give_back()
    before = resident()
    pieces = [c.malloc(PIECE) for _ in range(SIZE // PIECE)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    used = resident()
    for piece in pieces[:-1]:  # the last one is at the top, so that free alone gives nothing back
        c.free(piece)
    kept = resident()
    give_back()
    left = resident()
    c.free(pieces[-1])
    assert used - before > 0.9 * SIZE
    assert kept - before > 0.9 * SIZE, "the allocator gives back by itself; the test shows nothing"
    assert left - before < 0.1 * SIZE
    assert peak_memory() > 0.98 * used
