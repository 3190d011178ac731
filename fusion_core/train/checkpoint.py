"""Training states as safetensors files: whole or absent, no pickle, shapes checked on the way in."""

from __future__ import annotations

import json
import pathlib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fusion_core import atomic
from fusion_core.errors import InputError

Tree = TypeVar("Tree")


def _names(tree: Any) -> tuple[list[str], list[Any], Any]:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    return names, [leaf for _, leaf in leaves], treedef


def save_state(path: pathlib.Path, state: Any, **facts: Any) -> None:
    """Writes a pytree of arrays, with ``facts`` (JSON values) in the file's header."""
    names, leaves, _ = _names(state)
    # ascontiguousarray makes vectors of scalars: keep the shape
    tensors = {n: np.ascontiguousarray(x).reshape(np.shape(x)) for n, x in zip(names, leaves, strict=True)}
    with atomic.new_file(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})


def load_state(path: pathlib.Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """Reads what ``save_state`` wrote into the structure of ``like`` (arrays or ``jax.ShapeDtypeStruct``).

    Returns:
      ``(state, facts)``.

    Raises:
      InputError: the file is missing, damaged, or of another structure or shape than ``like``.
    """
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}")
    names, leaves, treedef = _names(like)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"the checkpoint {path} cannot be read ({error}); it is damaged, remove it") from None
    for name, leaf in zip(names, leaves, strict=True):
        if name not in tensors or tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            found = f"{tensors[name].dtype}{list(tensors[name].shape)}" if name in tensors else "nothing"
            raise InputError(
                f"the checkpoint {path} is of another run: {name} should be {leaf.dtype}{list(leaf.shape)}, "
                f"but there is {found}; remove it, or use the run's own settings"
            )
    return jax.tree.unflatten(treedef, [jnp.asarray(tensors[name]) for name in names]), facts
