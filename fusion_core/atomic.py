"""Files and folders that are whole or absent: written under a temporary name, then renamed; their rights follow the umask."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # less what the umask takes
    mode = temporary.stat().st_mode
    try:
        yield temporary
        _give_rights(temporary, mode)
        _to_disk(temporary)  # before the name: after a power cut a file that has its name has its content
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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


def check_new(path: pathlib.Path, remedy: str = "choose another name or remove it") -> None:
    """Raise FileExistsError, with the remedy, unless ``path`` is absent or an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder; {remedy}")


@contextlib.contextmanager
def new_folder(path: pathlib.Path, *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside ``path``; renames it to ``path`` on success.

    ``path`` must be absent or an empty folder. With ``replace`` it may be any folder: it is moved aside, and removed when
    the new one has its name.
    """
    if not (replace and path.is_dir()):
        check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = None
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for inside in (temporary, *temporary.rglob("*")):
            if inside.is_file():
                _give_rights(inside, temporary.stat().st_mode)
            _to_disk(inside)
        if path.exists():
            aside = _beside(path)
            os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except BaseException:
            if aside is not None:
                os.replace(aside, path)
            raise
        _to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside is not None and path.exists():
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
