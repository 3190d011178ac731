"""Origin of a result: versions, devices, commit, time."""

from __future__ import annotations

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "sympy", "diffrax", "optax", "sentencepiece", "tokenizers", "matplotlib")


def commit() -> str | None:
    """Return the commit of this software's checkout, with "-dirty" after local changes; None if it is an installed copy."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of this software, Python and the numerical packages."""
    found = {"python": platform.python_version()}
    for name in ("deepfusion", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def provenance() -> dict[str, Any]:
    """Return ``versions``, ``devices``, ``commit`` and ``created`` (UTC, ISO 8601), ready for JSON."""
    import jax  # here, because the command line calls ``versions`` without it

    return {
        "versions": versions(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.local_devices()],
        "commit": commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
