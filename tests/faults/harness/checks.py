"""What is looked at after a fault: the folder, what is around it, and what was said."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from tests.faults.harness.processes import Outcome

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}(\.old)?")
LOCK = re.compile(r"\.lock(-.*)?")
CHANGING = {
    *("seconds", "steps_per_second", "tokens_per_second", "flops_per_second", "mfu", "input_wait", "provenance"),
    *("created", "commit", "sha256", "metrics", "metrics.jsonl", "wall_paid", "wall_given"),
}
"""Values that depend on the clock, and sums of such values."""


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(one) for name, one in value.items() if name not in CHANGING}
    return [_without(one) for one in value] if isinstance(value, list) else value


def _content(file: pathlib.Path) -> Any:
    data = file.read_bytes()
    if file.suffix in (".html", ".png", ".pdf"):
        return "whole" if _is_whole(file) else "cut off"  # times are in them
    if file.suffix == ".json":
        return _without(json.loads(data))
    if file.suffix == ".jsonl":
        return [_without(json.loads(line)) for line in data.splitlines()]
    if file.suffix == ".safetensors":  # their metadata have times in them
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        facts = _without(json.loads(header.get("__metadata__", {}).get("facts", "{}")))
        return hashlib.sha256(data[8 + size :]).hexdigest(), {**header, "__metadata__": facts}
    if file.name == "README.md":
        return re.sub(rb"commit [0-9a-f]+\S*", b"", data)
    return hashlib.sha256(data).hexdigest()


def result(folder: pathlib.Path) -> dict[str, Any]:
    """Return what a finished command has left, without what depends on the clock; of checkpoints the newest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        steps = [int(m[1]) for p in path.parent.iterdir() if (m := re.fullmatch(r"step-(\d+)\.safetensors", p.name))]
        old = path.name.startswith("step-") and path.name != f"step-{max(steps, default=-1)}.safetensors"
        if path.is_file() and not old:
            found[name] = _content(path)
        elif path.is_dir():
            found[name] = "folder"
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return where two results differ, in words; empty if they are equal."""
    names = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    kinds = {name: "differs" if name in found and name in wanted else "is missing" for name in names}
    kinds |= {name: "is too many" for name in names if name not in wanted}
    return ", ".join(f"{name} {kinds[name]}" for name in names[:4])


def state(folder: pathlib.Path) -> str:
    """Return a sum of all that is in and beside a folder, without what depends on the clock."""
    found = hashlib.sha256()
    beside = folder.parent.glob(f".{folder.name}.*")
    for path in sorted((*folder.rglob("*"), *(p for b in beside for p in (b, *b.rglob("*"))))):
        name = re.sub(r"\.[0-9a-f]{12}", ".0", str(path.relative_to(folder.parent)))
        try:
            content = _content(path) if path.is_file() else "folder"
        except (ValueError, KeyError):
            content = path.read_bytes()
        found.update(repr((name, content)).encode())
    return found.hexdigest()


def _is_whole(file: pathlib.Path) -> bool:
    data = file.read_bytes()
    try:
        match file.suffix:
            case ".json":
                json.loads(data)
            case ".jsonl":
                [json.loads(line) for line in data.split(b"\n")[:-1]]
            case ".safetensors":
                size = int.from_bytes(data[:8], "little")
                header = json.loads(data[8 : 8 + size])
                ends = [v["data_offsets"][1] for name, v in header.items() if name != "__metadata__"]
                return len(data) == 8 + size + max(ends)
            case ".npz":
                with np.load(file, allow_pickle=False) as arrays:
                    [arrays[name] for name in arrays.files]
            case ".png":
                return data.endswith(b"IEND\xaeB`\x82")
            case ".pdf":
                return data.rstrip().endswith(b"%%EOF")
            case ".html":
                return data.rstrip().endswith(b"</html>")
    except (ValueError, KeyError, OSError):
        return False
    return True


def half_written(folder: pathlib.Path, wholes: dict[str, set[str]]) -> str:
    """Return what is neither old nor new in a folder after a fault, in words.

    Args:
      folder: of the command; temporaries in it do not count.
      wholes: folders that appear at once -> the names in them.
    """
    for place, folders, files in os.walk(folder):
        here = pathlib.Path(place)
        folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]
        for name in files:
            if not (TEMPORARY.fullmatch(name) or LOCK.fullmatch(name) or _is_whole(here / name)):
                return f"{(here / name).relative_to(folder)} is half written"
        inside = here.relative_to(folder).as_posix()
        if inside in wholes and (missing := wholes[inside] - {*files, *folders}):
            return f"{inside} lacks {', '.join(sorted(missing))}"
    return ""


def temporaries(folder: pathlib.Path) -> str:
    """Return the temporary files and locks below a folder, in words."""
    names = [path for path in folder.rglob(".*") if TEMPORARY.fullmatch(path.name) or LOCK.fullmatch(path.name)]
    return ", ".join(str(path.relative_to(folder)) for path in names[:4])


def surroundings(folder: pathlib.Path, out: str) -> dict[str, Any]:
    """Return all that is in a folder but the output and its temporaries: kind, rights, time and content of each file."""
    found = {}
    for place, folders, files in os.walk(folder):
        top = pathlib.Path(place) == folder
        mine = lambda name, top=top: (
            top and (name == out or re.fullmatch(rf"\.{re.escape(out)}\.[0-9a-f]{{12}}(\.old)?", name))
        )
        folders[:] = [name for name in folders if not mine(name)]
        for name in [*folders, *files]:
            path = pathlib.Path(place, name)
            stat = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            found[str(path)] = (stat.st_mode, stat.st_mtime_ns if path.is_file() else 0, content)
    return found


def message(outcome: Outcome, interrupted: bool = False) -> str:
    """Return what is wrong with the words of a command that has failed, in words."""
    lines = outcome.stderr.rstrip().splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    for word in ("Traceback", "Exception ignored", "Fatal Python", "Segmentation"):
        if word in outcome.stderr or word in outcome.stdout:
            return f"{word} in its output: {lines[-1] if lines else ''}"
    if outcome.code == 2 and (len(errors) != 1 or not lines[-1].startswith("Error: ")):
        return f"{len(errors)} lines of error, the last {lines[-1:]}"
    if interrupted and not (lines and "Interrupted" in lines[-1]):
        return f"it does not say that it was interrupted: {lines[-1:]}"
    return ""
