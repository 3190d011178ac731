"""The library of ``shim.c``: built, preloaded, and told what to do."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(__file__).with_name("shim.c")
LOADED = "DEEPFUSION_FAULTS"
OPEN, WRITE, SYNC, RENAME, MKDIR, LINK, TRUNCATE, READ = (1 << i for i in range(8))
CHANGES = READ - 1  # all calls but reading
CLOCK, SHORT, KILL, TERMINATE = -1000, -1001, -signal.SIGKILL, -signal.SIGTERM
FOREVER = 1 << 60
NAMES = {CLOCK: "the clock jumps", SHORT: "a short write", KILL: "kill -9", TERMINATE: "SIGTERM"}


def name_of(action: int) -> str:
    """Return the action in words."""
    return NAMES.get(action) or errno.errorcode[action]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to the calls that reach files below a folder.

    Attributes:
      first, last: the calls that it happens to, counted from 1.
      action: an error's number, or ``KILL``, ``TERMINATE``, ``SHORT``, ``CLOCK``.
      calls: the kinds of calls that are counted.
      seconds: by which the clock jumps.
    """

    first: int = FOREVER
    last: int = FOREVER
    action: int = 0
    calls: int = CHANGES
    seconds: int = 0


def compiler() -> str | None:
    """Return the C compiler, without which there are no faults of the disk."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def preload() -> None:
    """Start this program again with the library in it, unless it is."""
    if os.environ.get(LOADED):
        return
    found = compiler()
    if found is None:
        sys.exit("the harness needs a C compiler (cc, gcc or clang)")
    library = pathlib.Path(tempfile.gettempdir()) / f"deepfusion-shim-{os.getuid()}-{SOURCE.stat().st_mtime_ns}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        subprocess.run([found, "-O1", "-shared", "-fPIC", "-o", part, SOURCE, "-ldl"], check=True)
        part.rename(library)
    os.environ |= {"LD_PRELOAD": str(library), LOADED: "1"}
    os.execv(sys.executable, sys.orig_argv)


def arm(folder: pathlib.Path, fault: Fault) -> None:
    """Let the fault happen to processes that are forked from now on, and to this one."""
    library = ctypes.CDLL(None)
    library.fault_set.argtypes = [ctypes.c_char_p, *[ctypes.c_long] * 2, *[ctypes.c_int] * 2, ctypes.c_long]
    library.fault_set(os.fsencode(folder), fault.first, fault.last, fault.action, fault.calls, fault.seconds)


def disarm() -> tuple[int, str]:
    """Return the number of calls since ``arm``, and the one that the fault happened to, empty if there was none."""
    library = ctypes.CDLL(None)
    library.fault_count.restype, library.fault_where.restype = ctypes.c_long, ctypes.c_char_p
    found = library.fault_count(), os.fsdecode(library.fault_where()) if library.fault_hit() else ""
    library.fault_set(b"", 0, 0, 0, 0, 0)
    return found
