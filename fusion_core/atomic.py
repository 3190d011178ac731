"""Files and folders that are whole or absent: written under a temporary name, then renamed; their rights follow the umask."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator

from fusion_core.errors import InputError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}")
held: dict[pathlib.Path, int] = {}
"""The files of the locks that this process has -> their open files (``fusion_core.lock``)."""


def check_held() -> None:
    """Raise InputError if a folder that this process holds is not in its place any more: it would be begun anew there."""
    for path, handle in list(held.items()):
        try:
            there = os.path.samestat(os.fstat(handle), os.stat(path))
        except OSError:
            there = False
        if not there:
            raise InputError(
                f"{path.parent} was moved or removed while this process worked in it; put it back, or resume it where it is now"
            )


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on failure.

    What killed processes have left of earlier ones is removed first.

    Raises:
      InputError: a folder that this process holds was moved.
    """
    check_held()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_beside(path)
    temporary, handle = _beside(path), None
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less what the umask takes
        _lock(handle)
        mode = temporary.stat().st_mode
        yield temporary
        _give_rights(temporary, mode)
        _to_disk(temporary)  # before the name: after a power cut a file that has its name has its content
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _beside(path: pathlib.Path) -> pathlib.Path:
    """Return a name in the folder of ``path`` that nothing has."""
    return path.parent / f".{path.name}.{secrets.token_hex(6)}"


def _give_rights(file: pathlib.Path, mode: int) -> None:
    """Give a file the rights in ``mode`` to read and write: libraries write files that are their owner's alone."""
    if (file.stat().st_mode ^ mode) & 0o666:
        with contextlib.suppress(PermissionError):  # a link to a file of someone else's
            os.chmod(file, mode & 0o666)


def _to_disk(path: pathlib.Path) -> None:
    """Wait until the file's content, or the folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it
            raise
    finally:
        os.close(handle)


def check_new(
    path: pathlib.Path, remedy: str = "choose another name or remove it", *, besides: Collection[str] = ()
) -> None:
    """Raise FileExistsError, with the remedy, unless ``path`` is absent or an empty folder.

    Args:
      path: of the folder.
      remedy: the message's last words.
      besides: names that may be in the folder; if there are any, so may temporary files that a killed process has left.
    """
    if not path.is_dir():
        if path.exists() or path.is_symlink():
            raise FileExistsError(f"{path} exists and is not an empty folder; {remedy}")
        return
    if any(not besides or not (child.name in besides or _TEMPORARY.fullmatch(child.name)) for child in path.iterdir()):
        raise FileExistsError(f"{path} exists and is not an empty folder; {remedy}")


def check_apart(out: pathlib.Path, inputs: Iterable[pathlib.Path]) -> None:
    """Raise InputError if what is written would lie in a folder that is read, or be it."""
    for folder in inputs:
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{out} is in {folder}, which is read; choose a folder outside of it")


def sweep(folder: pathlib.Path) -> None:
    """Remove the temporary files and folders below ``folder`` that killed processes have left; no other may write there."""
    for place, folders, files in os.walk(folder):
        for name in [name for name in files if _TEMPORARY.fullmatch(name)]:
            pathlib.Path(place, name).unlink(missing_ok=True)
        for name in [name for name in folders if _TEMPORARY.fullmatch(name)]:
            shutil.rmtree(pathlib.Path(place, name), ignore_errors=True)
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]


def sweep_beside(path: pathlib.Path) -> None:
    """Remove the temporary files and folders for ``path`` whose processes have ended, and what was moved aside for it."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}(\.old)?")
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        match = pattern.fullmatch(other.name)
        if match and not other.is_symlink() and (path.exists() or not match[1]):
            with contextlib.suppress(OSError):  # it is another process's, which writes it now, or someone else's
                handle = os.open(other, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink()
                finally:
                    os.close(handle)


def _lock(handle: int) -> None:
    """Show others that this process lives; where there are no locks, they do not see it, and leave what is not theirs."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)


def _hold(folder: pathlib.Path) -> int:
    """Open a folder with a lock by which others see that its process lives; where there are no locks, without one."""
    handle = os.open(folder, os.O_RDONLY)
    _lock(handle)
    return handle


def own_folder(path: pathlib.Path) -> pathlib.Path:
    """Make a temporary folder beside ``path``, this process's alone; those of processes that have ended are removed first.

    It stays until it is removed, at the latest by the next process that asks for one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_beside(path)
    temporary = _beside(path)
    temporary.mkdir(0o700)
    _hold(temporary)
    return temporary


@contextlib.contextmanager
def new_folder(path: pathlib.Path, *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside ``path``; renames it to ``path`` on success.

    ``path`` must be absent or an empty folder. With ``replace`` it may be any folder: it is moved aside, and removed when
    the new one has its name. What killed processes have left beside ``path`` is removed first.
    """
    check_held()
    if path.is_symlink():
        path = path.resolve()  # a link stays one
    if not (replace and path.is_dir()):
        check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_beside(path)
    aside, handle = None, None
    temporary = _beside(path)
    try:
        temporary.mkdir()
        handle = _hold(temporary)
        yield temporary
        for inside in (temporary, *temporary.rglob("*")):
            if inside.is_file():
                _give_rights(inside, temporary.stat().st_mode)
            _to_disk(inside)
        if replace and path.exists():
            aside = pathlib.Path(f"{_beside(path)}.old")
            os.replace(path, aside)
        try:
            os.replace(temporary, path)  # of an empty folder, too; one that another process has filled meanwhile stays
        except BaseException as error:
            if aside is not None:
                os.replace(aside, path)
            elif isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                check_new(path)
            raise
        _to_disk(path.parent)
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)
        if aside is not None and path.exists():
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
