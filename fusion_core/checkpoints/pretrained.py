"""Checkpoint folders of every architecture, whole in memory: one reader and one writer.

Other modules here fuse folders without loading them; the form of each architecture's files is in its registry record.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion_core import atomic
from fusion_core.checkpoints.checkpoint import open_checkpoint
from fusion_core.checkpoints.ranges import INDEX, WEIGHTS, Reader
from fusion_core.errors import InputError
from fusion_core.models.registry import MODEL_TYPES, architecture, layouts
from fusion_core.models.units import by_name, nested
from fusion_core.tensor_file import write_tensors


def load_pretrained(path: str | pathlib.Path) -> tuple[dict[str, Any], Any]:
    """Read the checkpoint folder of a network in Hugging Face's layout; docs/checkpoints.md lists the kinds.

    Copies of the embedding that are saved beside it are ignored, and so are buffers of old files; decoders without
    ``model.`` or ``transformer.`` in front of their names, as in old files of the bare model, are read too.

    Returns:
      ``(params, config)``; params is a nested dict of arrays in Hugging Face's names, config a ``T5Config``,
      ``LlamaConfig`` or of the class of another kind (``fusion_core.models.registry.MODEL_TYPES``).

    Raises:
      InputError: the folder, a file or a tensor is missing, damaged, of a wrong shape, or not finite; a copy of the
        embedding differs from it.
    """
    checkpoint = open_checkpoint(path)
    with Reader() as reader:
        flat = {name: jnp.asarray(reader.whole(entry)) for name, entry in checkpoint.tensors.items()}
    return nested(flat), checkpoint.config


def _contents(params: dict[str, Any], config: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (values of config.json, tensors by name), checked."""
    files = architecture(config).files
    if files is None:
        known = ", ".join(record.config.__name__ for record in MODEL_TYPES.values())
        raise InputError(
            f"no checkpoint holds a configuration of type {type(config).__name__}; those of {known} are written"
        )
    values = files.write_config(config)  # raises for what cannot be exported
    expected, arrays = {name: layout.shape for name, layout in layouts(config).items()}, by_name(params)
    found = {name: tuple(leaf.shape) for name, leaf in arrays.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(f"{name} has shape {found.get(name)}, but the config says {expected.get(name)}")
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in arrays.items()}
    return values | {"dtype": str(next(iter(tensors.values())).dtype)}, tensors


def _write(folder: pathlib.Path, values: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_pretrained(folder: pathlib.Path, params: dict[str, Any], config: Any) -> None:
    """Write into an existing folder what ``save_pretrained`` writes into a new one."""
    _write(folder, *_contents(params, config))


def save_pretrained(path: str | pathlib.Path, params: dict[str, Any], config: Any, *, overwrite: bool = False) -> None:
    """Write a checkpoint folder that transformers reads. The folder appears whole or not at all.

    Args:
      path: path of the folder.
      params, config: the network.
      overwrite: whether to replace a checkpoint that is there; nothing of the old folder stays.

    Raises:
      InputError: a parameter's name or shape does not fit ``config``, or the norms are grouped.
      FileExistsError: ``path`` exists and is not an empty folder, and ``overwrite`` is false; or it holds no checkpoint.
    """
    contents, path = _contents(params, config), pathlib.Path(path)  # checked before there is a folder
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise FileExistsError(
                f"{path} exists and is not an empty folder; choose another name or remove it, or pass overwrite=True to "
                "replace the checkpoint in it"
            )
        if not (path / "config.json").is_file() or not any((path / name).is_file() for name in (WEIGHTS, INDEX)):
            raise FileExistsError(
                f"{path} exists and holds no checkpoint, so that it is not overwritten; choose another name or remove it"
            )
    with atomic.new_folder(path, replace=overwrite) as folder:
        _write(folder, *contents)
