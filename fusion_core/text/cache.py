"""A cache of files by the key of what they were made from, shared by runs and by processes.

An entry is a folder that is renamed into place once it is whole, with the sums of its files beside them. Nothing needs it:
runs keep hard links or copies of what they take, and an entry that is missing or damaged is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence

from fusion_core import atomic
from fusion_core.text.json_files import read_json

VARIABLE = "DEEPFUSION_CACHE"
SUMS = "sums.json"


def cache_folder() -> pathlib.Path | None:
    """Return ``$DEEPFUSION_CACHE``, else ``$XDG_CACHE_HOME/deepfusion``, else ``~/.cache/deepfusion``.

    If ``$DEEPFUSION_CACHE`` is empty, or if there is no home, there is no cache: None.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return pathlib.Path(chosen).expanduser() if chosen else None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:
        return None
    return pathlib.Path(base) / "deepfusion"


def fetch(key: str, folder: pathlib.Path, note: Callable[[str], None] = lambda line: None) -> bool:
    """Place the files of an entry in ``folder``, in the order in which they were stored.

    Returns:
      Whether there was an entry. A damaged one is removed, and ``note`` is called with a line that says so.
    """
    root = cache_folder()
    if root is None or not os.path.exists(root / key):  # False where it may not be seen
        return False
    entry = root / key
    try:
        sums = read_json(entry / SUMS)
        if any(file_sum(entry / name) != expected for name, expected in sums.items()):
            raise ValueError("a file has another sum")
    except (OSError, ValueError, AttributeError) as error:
        note(f"{entry} is damaged ({error}); it is made again")
        shutil.rmtree(entry, ignore_errors=True)
        return False
    try:
        for name in sums:
            _place(entry / name, folder / name)
    except FileNotFoundError:  # removed meanwhile
        return False
    return True


def store(
    key: str, folder: pathlib.Path, names: Sequence[str], note: Callable[[str], None] = lambda line: None
) -> None:
    """Keep files of ``folder`` as the entry of ``key``, unless there is one.

    Args:
      key: of the entry.
      folder: with the files.
      names: of the files, with their folders.
      note: called with a line if the cache cannot be written.
    """
    root = cache_folder()
    if root is None or os.path.exists(root / key):
        return
    try:
        with atomic.new_folder(root / key) as temporary:
            for name in names:
                _place(folder / name, temporary / name)
            sums = {name: file_sum(temporary / name) for name in names}
            (temporary / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        if not os.path.exists(root / key):  # otherwise another process has stored it meanwhile
            note(
                f"the cache {root} cannot be written ({error.strerror or error}); the run's folder keeps its files alone"
            )


def file_sum(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raise OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(source: pathlib.Path, path: pathlib.Path) -> None:
    """Make ``path`` a hard link to ``source``, or a copy on another file system."""
    with atomic.new_file(path) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
