"""Safetensors files written byte by byte: the same tensors give the same file, and an error is the operating system's own."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_NAMES = {"bool": "BOOL", "bfloat16": "BF16", "int": "I", "uint": "U", "float": "F"}


def name_of(dtype: np.dtype[Any]) -> str:
    """Return the format's name of a type: F32, BF16, I8, ..."""
    return _NAMES.get(dtype.name) or f"{_NAMES[dtype.name.rstrip('0123456789')]}{8 * dtype.itemsize}"


def header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a safetensors file, its length included; tensors begin at a multiple of 8.

    Args:
      tensors: name, the format's name of the type, shape and number of bytes of each, in the order of the file.
      metadata: texts by name.
    """
    facts: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, dtype, shape, size in tensors:
        facts[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; wide types first, so that each tensor is aligned.

    safetensors' own writer makes a temporary file of a name of its own, which stays when its process is killed, and
    has errors that are not OSErrors.

    Raises:
      OSError: it cannot be written.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    with path.open("wb") as file:
        file.write(header(((n, name_of(x.dtype), x.shape, x.nbytes) for n, x in ordered), metadata))
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
