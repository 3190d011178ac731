"""What no case may do: take long or much memory, leave its folder, run code that it has read, end in a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import resource
import shutil
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import fusion_core

SECONDS = 10.0  # of a processor's time for a case at most
WAITS = 20  # times as long it may take on a clock, for it may wait for other processes, but not for ever
MEMORY = 1 << 30  # bytes on top of what the process had before the case
LONGEST_MESSAGE = 10_000  # characters of an error
ROOT = pathlib.Path(fusion_core.__file__).parent.parent
OURS = tuple(str(ROOT / name) + os.sep for name in ("bea", "deepfusion", "fusion_core", "paper_figures", "toy_models"))
# where any process may read: its own installation, and what the system tells it about itself
INSTALLED = tuple(
    {
        os.path.abspath(path)
        for path in (ROOT, sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *sys.path)
        if path
    }
    | {"/proc", "/sys", "/dev/null", "/dev/urandom", "/usr/share/zoneinfo", "/etc/localtime", "/usr/lib", "/lib"}
)
RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pickle.find_class",
)
RUNS += ("socket.connect", "socket.bind", "webbrowser.open", "urllib.Request", "code.__new__", "cpython.run_command")
# events -> how many of the first arguments are paths that are written
WRITES = {"os.rename": 2, "os.link": 2, "os.symlink": 2, "shutil.move": 2, "shutil.copyfile": 2} | dict.fromkeys(
    ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.utime", "shutil.rmtree", "tempfile.mkstemp"), 1
)
READS = ("os.listdir", "os.scandir", "os.chdir")
EVALUATES = ("sympy_parser.py", "sympify.py", "pickle.py", "literal_eval.py")


class Hang(BaseException):
    """A case has taken longer than it may; nothing catches this by accident."""


class Broken(AssertionError):
    """A promise was broken without an exception: a path, code that was run, a message, memory."""


@dataclasses.dataclass
class Watch:
    """What a case has done that it may not."""

    folders: tuple[str, ...]
    found: list[str] = dataclasses.field(default_factory=list)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """Judge one event of the interpreter."""
        if event == "open":
            path, mode, flags = (*args, None, None)[:3]
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or bool(
                mode and set(str(mode)) & set("wax+")
            )
            self.path(event, path, writes)
        elif event in WRITES:
            number = WRITES[event]
            for path, folder in zip(args[:number], [*args[number:], None, None], strict=False):
                self.path(event, path, True, folder if event.startswith("os.") else None)
        elif event in READS:
            self.path(event, args[0] if args else ".", False)
        elif event in RUNS:
            self.found.append(f"{event} {args!r:.200}")
        elif event == "exec" or (event == "compile" and args[0] is not None):
            caller = sys._getframe(2).f_code.co_filename
            if caller.startswith(OURS) or caller.endswith(EVALUATES):
                own = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OURS)][-1:]
                self.found.append(f"{event} in {caller}: {args[0]!r:.200} from {own}")

    def path(self, event: str, path: Any, writes: bool, folder: Any = None) -> None:
        """Judge a path that is opened, listed, made or removed; it may be relative to an open folder."""
        if path is None or isinstance(path, int):
            return
        open_folder = isinstance(folder, int) and folder > 2 and os.path.exists(f"/proc/self/fd/{folder}")
        base = os.readlink(f"/proc/self/fd/{folder}") if open_folder else "."
        full = os.path.abspath(os.path.join(base, os.fsdecode(path)))
        allowed = self.folders if writes else (*self.folders, *INSTALLED)
        if full != os.devnull and not any(full == root or full.startswith(root + os.sep) for root in allowed):
            self.found.append(f"{event} {'writes' if writes else 'reads'} {full[:200]}")


_watch: Watch | None = None
_hooked = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watch is not None:
        _watch.see(event, args)


@contextlib.contextmanager
def watched(*folders: pathlib.Path) -> Iterator[Watch]:
    """Watch what is done: paths outside the folders and the installation, other processes, code that is run."""
    global _watch, _hooked
    if not _hooked:  # a hook stays as long as the process
        sys.addaudithook(_hook)
        _hooked = True
    outer, watch = _watch, Watch(tuple(os.path.abspath(folder) for folder in folders))
    _watch = watch
    try:
        yield watch
    finally:
        _watch = outer


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise ``Hang`` in what takes longer."""

    def hang(number: int, frame: Any) -> None:
        raise Hang(f"more than {seconds:g} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, WAITS * seconds))
    before = {number: signal.signal(number, hang) for _, number, _ in timers}
    for timer, _, limit in timers:
        signal.setitimer(timer, limit, 1.0)  # again, should something have caught it
    try:
        yield
    finally:
        for timer, number, _ in timers:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _status(name: str) -> int:
    """Return a number of bytes from /proc/self/status; 0 on other systems."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith(name)), 0)
    except OSError:
        return 0


def memory_now() -> int:
    """Return the bytes of memory that this process has, and begin a new measurement of its peak."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status("VmRSS:")


def memory_peak() -> int:
    """Return the largest number of bytes since ``memory_now``."""
    return _status("VmHWM:")


def limit_memory(more: int) -> None:
    """Let this process have no more than so many bytes of address space on top of what it has: a seat belt."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize:") + more, hard))


def emptied(folder: pathlib.Path) -> pathlib.Path:
    """Remove all that is in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
    return folder


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
      kind: "read", "refused" (with a documented error), "crash", "hang", "memory" or "outside".
      what: the error in a line.
      where: the innermost line of ours that raised it; equal ones are taken for one mistake.
      seconds, memory: of a processor and bytes that it took.
      trace: of a crash.
    """

    kind: str
    what: str = ""
    where: str = ""
    seconds: float = 0.0
    memory: int = 0
    trace: str = ""

    @property
    def bad(self) -> bool:
        """Whether a promise was broken."""
        return self.kind not in ("read", "refused")

    @property
    def same(self) -> tuple[str, ...]:
        """By which two outcomes are taken for one."""
        return self.kind, self.what.partition(":")[0], self.where


def _where(error: BaseException) -> str:
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [line for line in lines if line[0].startswith(OURS)] or lines
    return f"{os.path.relpath(own[-1][0], ROOT)}:{own[-1][1]}" if own else ""


def tried(
    run: Callable[[bytes], None],
    data: bytes,
    folders: tuple[pathlib.Path, ...],
    allowed: tuple[type[BaseException], ...],
    seconds: float = SECONDS,
) -> Outcome:
    """Run one case under guard.

    Args:
      run: reads the case.
      data: the case.
      folders: that the case may read and write.
      allowed: errors that are documented; their messages are one text that can be shown.
      seconds: that it may take.
    """
    kind, what, where, trace = "read", "", "", ""
    before, begun = memory_now(), time.process_time()
    with watched(*folders) as watch:
        try:
            with bounded(seconds):
                run(data)
        except allowed as error:
            kind, what, where = "refused", f"{type(error).__name__}: {error}", _where(error)
            if len(str(error)) > LONGEST_MESSAGE:
                kind, what = "crash", f"a message of {len(str(error)):,} characters: {what[:300]}"
        except Hang as error:
            kind, what, where = "hang", f"Hang: {error}", _where(error)
            trace = traceback.format_exc()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            kind = "memory" if isinstance(error, MemoryError) else "crash"
            what, where = f"{type(error).__name__}: {error!s:.300}", _where(error)
            trace = traceback.format_exc(limit=-12)
    took, memory = time.process_time() - begun, max(0, memory_peak() - before)
    if watch.found and kind in ("read", "refused"):
        kind, what, where = "outside", watch.found[0], ""
    if memory > MEMORY and kind in ("read", "refused"):
        kind, what = "memory", f"{memory >> 20:,} MiB"
    return Outcome(kind, what, where, took, memory, trace[-3000:])
