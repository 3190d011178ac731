"""Training states as safetensors files: whole or absent, never a pickle; checksum and shapes are checked when reading."""

from __future__ import annotations

import errno
import hashlib
import json
import pathlib
import shutil
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.tensor_file import write_tensors
from fusion_core.text.json_files import parse

Tree = TypeVar("Tree")

FORMAT = "deepfusion-state-1"


class DamagedCheckpoint(InputError):
    """The file is cut off, or its checksum differs."""


def _names(tree: Any) -> tuple[list[str], list[Any], Any]:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    return names, [leaf for _, leaf in leaves], treedef


def _checksum(tensors: dict[str, np.ndarray], facts: str) -> str:
    """Return the SHA-256 of the facts and of all names, types, shapes and bytes, in the order of the names."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def save_state(path: pathlib.Path, state: Any, **facts: Any) -> None:
    """Write a pytree of arrays, with ``facts`` (JSON values) and a checksum of all in the file's header.

    Raises:
      InputError: the disk is full, or the run's folder was moved; an earlier file of this name is intact.
    """
    names, leaves, _ = _names(state)
    # ascontiguousarray makes vectors of scalars: keep the shape
    tensors = {n: np.ascontiguousarray(x).reshape(np.shape(x)) for n, x in zip(names, leaves, strict=True)}
    text = json.dumps(facts)
    header = {"format": FORMAT, "facts": text, "sha256": _checksum(tensors, text)}
    try:
        with atomic.new_file(path) as temporary:
            write_tensors(temporary, tensors, header)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        size = sum(array.nbytes for array in tensors.values())
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"there is no room for the checkpoint {path}: it takes {size:,} bytes, and {free:,} are free or "
            "allowed; those before it are intact: make room, then resume the run"
        ) from None


def _read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path} is not a training state of this software; give the folder of a run of it")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            facts = parse(header["facts"])
            if not isinstance(facts, dict):
                raise ValueError("its facts are no object")
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise DamagedCheckpoint(f"the checkpoint {path} cannot be read ({error}); it is damaged, remove it") from None
    if _checksum(found, header["facts"]) != header.get("sha256"):
        raise DamagedCheckpoint(
            f"the checkpoint {path} cannot be read (its checksum is wrong); it is damaged, remove it"
        )
    return found, facts


def load_state(path: pathlib.Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """Read a file of ``save_state`` into the structure of ``like`` (arrays or ``jax.ShapeDtypeStruct``).

    Returns:
      ``(state, facts)``.

    Raises:
      DamagedCheckpoint: the file is damaged: an InputError too.
      InputError: it is missing, of other software, or of another structure or shape than ``like``.
    """
    names, leaves, treedef = _names(like)
    tensors, facts = _read(path)
    for name, leaf in zip(names, leaves, strict=True):
        if name not in tensors or tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            found = f"{tensors[name].dtype}{list(tensors[name].shape)}" if name in tensors else "nothing"
            raise InputError(
                f"the checkpoint {path} is of another run: {name} should be {leaf.dtype}{list(leaf.shape)}, "
                f"but there is {found}; remove it, or use the run's own settings"
            )
    return jax.tree.unflatten(treedef, [jnp.asarray(tensors[name]) for name in names]), facts
