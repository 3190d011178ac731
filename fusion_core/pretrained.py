"""Checkpoint folders of every architecture: the model type in ``config.json`` says who reads them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from fusion_core.decoder import files as decoder_files
from fusion_core.t5 import files as t5_files
from fusion_core.t5.config import T5Config


def _model_type(folder: pathlib.Path) -> Any:
    """What ``config.json`` says; None where it cannot be read, which the reader then explains."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return values.get("model_type") if isinstance(values, dict) else None


def load_pretrained(path: str | pathlib.Path) -> tuple[dict[str, Any], Any]:
    """Reads the checkpoint folder of a T5, Llama or GPT-2 in Hugging Face's layout.

    Returns:
      ``(params, config)``; params is a nested dict of arrays in Hugging Face's names, config a ``T5Config``,
      ``LlamaConfig`` or ``GPT2Config``.

    Raises:
      InputError: the folder, a file or a tensor is missing, damaged, of a wrong shape, or not finite.
    """
    reader: Any = decoder_files if _model_type(pathlib.Path(path)) in decoder_files.KINDS else t5_files
    return reader.load_pretrained(path)


def save_pretrained(path: str | pathlib.Path, params: dict[str, Any], config: Any) -> None:
    """Writes a checkpoint folder that transformers reads. The folder appears whole or not at all.

    Raises:
      InputError: a parameter's name or shape is not what ``config`` says, or its norms are grouped.
      FileExistsError: ``path`` exists and is not an empty folder.
    """
    writer: Any = t5_files if isinstance(config, T5Config) else decoder_files
    writer.save_pretrained(path, params, config)
