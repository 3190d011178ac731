"""The description of a checkpoint folder, from its configuration and headers."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from fusion_core.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_config, read_entries
from fusion_core.checkpoints.tokenizers import CONTENT, check_fits
from fusion_core.errors import InputError
from fusion_core.models.registry import MODEL_TYPES
from fusion_core.text.sameness import tokenizer_file
from fusion_core.text.tokenizer import Tokenizer


def describe(path: str | pathlib.Path) -> dict[str, Any]:
    """Return facts of a checkpoint, ready for JSON; also for an architecture that is not supported.

    Returns:
      ``folder``, ``model_type``, ``supported``, ``config`` (ours if supported, else the file's), ``parameters``,
      ``bytes``, ``dtypes`` (dtype -> tensors), ``files`` (name -> bytes and tensors), ``tied``, ``unused`` (tensors that
      the network does not use), ``tokenizer`` (``files``, ``pieces`` if they can be counted, and ``unfit``: what is wrong
      with it for this network, or None).

    Raises:
      InputError: as ``open_checkpoint``.
    """
    folder = pathlib.Path(path)
    values = read_config(folder)
    supported = values.get("model_type") in MODEL_TYPES
    config, tied = values, values.get("tie_word_embeddings")
    unused: tuple[str, ...] = ()
    entries = read_entries(folder)
    parameters = sum(entry.size for entry in entries.values())
    checkpoint = None
    if supported:
        checkpoint = open_checkpoint(folder)
        config, unused, parameters = dataclasses.asdict(checkpoint.config), checkpoint.extra, checkpoint.parameters
        tied = config.get("tie_word_embeddings")
        config |= config.pop("settings", {})
    dtypes: dict[str, int] = {}
    files: dict[str, dict[str, int]] = {}
    for entry in entries.values():
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + 1
        facts = files.setdefault(entry.path.name, {"bytes": entry.path.stat().st_size, "tensors": 0})
        facts["tensors"] += 1
    found = [name for name in CONTENT if (folder / name).exists()]
    return {
        "folder": str(folder),
        "model_type": values.get("model_type"),
        "supported": supported,
        "config": config,
        "parameters": parameters,
        "bytes": sum(entry.nbytes for entry in entries.values()),
        "dtypes": dtypes,
        "files": dict(sorted(files.items())),
        "tied": tied,
        "unused": list(unused),
        "tokenizer": {"files": found, **_tokenizer(folder, checkpoint)},
    }


def _tokenizer(folder: pathlib.Path, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return the number of pieces, and why text cannot be run through the network with this tokenizer."""
    file, pieces = tokenizer_file(folder), None
    try:
        if file is not None and file.name != "vocab.json":
            tokenizer = Tokenizer.load(file)
            pieces = tokenizer.vocab_size
            if checkpoint is not None:
                check_fits(tokenizer, checkpoint.config, str(folder))
    except InputError as error:
        return {"pieces": pieces, "unfit": str(error)}
    return {"pieces": pieces, "unfit": None}
