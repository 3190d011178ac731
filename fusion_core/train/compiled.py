"""Compiled steps, kept between processes: JAX's persistent compilation cache in the user's cache, with a bound.

JAX writes an entry in place, and a process that is killed meanwhile leaves half of one. So every process has a folder of its
own, with hard links to the entries; what it compiles gets its name in the common folder once it is whole.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import stat
from collections.abc import Callable
from typing import Any

import jax

from fusion_core import atomic
from fusion_core.text.cache import cache_folder

FOLDER, SUFFIX = "compiled", "-cache"
MOST_BYTES, MOST_ENTRIES = 1 << 28, 4096


def machine() -> str:
    """Return a few characters that differ between processors: code compiled for one may not run on another."""
    facts = [platform.system(), platform.machine()]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def bound(folder: pathlib.Path, most_bytes: int = MOST_BYTES, most_entries: int = MOST_ENTRIES) -> list[pathlib.Path]:
    """Remove what was used longest ago until the entries of a folder are within both bounds; return those that are left."""
    entries = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found = path.stat()
            entries.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    size, kept = 0, list[pathlib.Path]()
    for _, each, path in sorted(entries, reverse=True):
        size += each
        if size > most_bytes or len(kept) >= most_entries:
            path.unlink(missing_ok=True)
        else:
            kept.append(path)
    return kept


def keep_compiled(note: Callable[[str], None] = lambda line: None, most_bytes: int = MOST_BYTES) -> bool:
    """Take compiled programs from the user's cache (``cache_folder``) from now on, and leave new ones there at the end.

    Nothing is done if JAX has a cache already (``JAX_COMPILATION_CACHE_DIR``) or must not have one
    (``JAX_ENABLE_COMPILATION_CACHE``), if there is no user's cache, or if others may write there: they could have their code
    run. A file system without hard links keeps no compiled programs.

    Args:
      note: called with a line if the cache cannot be used.
      most_bytes: of all entries; those used longest ago are removed.

    Returns:
      Whether compiled programs are kept.
    """
    root = cache_folder()
    config: Any = jax.config  # its settings are no attributes to a type checker
    if root is None or config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return False
    folder = root / FOLDER / machine()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            note(f"others may write in {folder}, so nothing compiled is taken from there; chmod go-w makes it yours")
            return False
        own = atomic.own_folder(folder / "process")
        for path in bound(folder, most_bytes):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                os.link(path, own / path.name)
    except OSError as error:
        note(f"the cache {folder} cannot be used ({error.strerror or error}); everything is compiled anew")
        return False
    jax.config.update("jax_compilation_cache_dir", str(own))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.0
    )  # dozens of small programs take seconds together
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # their folder would be part of every key

    def publish(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            _publish(own, folder)

    jax.monitoring.register_event_duration_secs_listener(publish)
    atexit.register(_end, own, folder)
    return True


def _publish(own: pathlib.Path, folder: pathlib.Path) -> None:
    """Give what was compiled so far its name in the common folder."""
    for path in own.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):  # it is there, or there is no room
            if path.stat().st_nlink == 1:
                os.link(path, folder / path.name)


def _end(own: pathlib.Path, folder: pathlib.Path) -> None:
    _publish(own, folder)
    shutil.rmtree(own, ignore_errors=True)
