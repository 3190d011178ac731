"""One process at a time in a folder: a lock that ends with the process, however that ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence

from fusion_core import atomic
from fusion_core.errors import InputError

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # file systems without locks
_held: set[pathlib.Path] = set()  # by this process, whole


def lock_names(folder: pathlib.Path) -> list[str]:
    """Return the names of the files of locks in a folder, which do not make it a folder in use."""
    return [NAME, *(path.name for path in folder.glob(f"{NAME}-*"))]


@contextlib.contextmanager
def locked(folder: pathlib.Path, parts: Sequence[str] = ()) -> Iterator[None]:
    """Hold a folder, or parts of it that may be worked on beside others.

    The kernel frees the lock (``flock`` on ``.lock``, with host, process and time in it) when its process ends, also by a kill:
    there is none to be removed by hand. A process that holds the folder may take it again.

    Args:
      folder: of the work; it is made if it is missing.
      parts: names of parts; if empty, the whole folder.

    Raises:
      InputError: another process holds the folder or a part of it; the message names the process.
    """
    folder = folder.resolve()
    if folder in _held:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for name in (NAME, *(f"{NAME}-{part}" for part in sorted(parts))):
            shared = bool(parts) and name == NAME
            stack.enter_context(_flock(folder / name, shared, folder))
        if not parts:
            _held.add(folder)
            stack.callback(_held.discard, folder)
        yield


def check_free(folder: pathlib.Path) -> None:
    """Raise InputError, with the name of the process, if another process holds the whole folder."""
    try:
        handle = os.open(folder / NAME, os.O_RDONLY)
    except OSError:
        return  # there is none
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        if folder.resolve() not in _held:
            raise _in_use(folder) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def _in_use(folder: pathlib.Path) -> InputError:
    return InputError(
        f"{folder} is in use: {_holder(folder)} works in it; wait until that has ended, end it, or choose another folder"
    )


@contextlib.contextmanager
def _flock(path: pathlib.Path, shared: bool, folder: pathlib.Path) -> Iterator[None]:
    handle = _taken(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    if handle is None:
        raise _in_use(folder)
    atomic.held[path] = handle
    try:
        if not shared:
            own = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps(own).encode() + b"\n", 0)
        yield
    finally:
        del atomic.held[path]
        with contextlib.suppress(OSError):  # others share it, or the folder is gone
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        os.close(handle)


def _taken(path: pathlib.Path, kind: int) -> int | None:
    """Return the open file with the lock on it; None if another process has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(handle)
                raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # the one before removed it meanwhile


def _holder(folder: pathlib.Path) -> str:
    """Return the process that holds the folder, in words: of those that hold parts of it, one."""
    for path in sorted(folder.glob(f"{NAME}*"), reverse=True):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    said = json.loads(os.pread(handle, 1 << 12, 0))
                    return f"process {said['pid']} on {said['host']}, since {said['since']},"
            finally:
                os.close(handle)
    return "another process"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
