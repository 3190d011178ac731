"""Safetensors files written from the first byte to the last, and shards with an index."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from fusion_core.files.ranges import Reader
from fusion_core.files.stream import FusedTensor
from fusion_core.t5.files import INDEX, WEIGHTS


def plan_shards(tensors: Sequence[FusedTensor], largest: int) -> dict[str, list[FusedTensor]]:
    """File name -> its tensors, in their order; each file has at most ``largest`` bytes of tensors, or one tensor."""
    shards: list[list[FusedTensor]] = [[]]
    room = largest
    for tensor in tensors:
        if tensor.nbytes > room and shards[-1]:
            shards.append([])
            room = largest
        shards[-1].append(tensor)
        room -= tensor.nbytes
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def header(tensors: Sequence[FusedTensor]) -> bytes:
    """The first bytes of a safetensors file, its length included; padded so that the tensors begin at a multiple of 8."""
    facts: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.nbytes
        facts[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(handle: int, data: Any) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        view = view[os.write(handle, view) :]


def write_shards(
    folder: pathlib.Path,
    shards: dict[str, list[FusedTensor]],
    reader: Reader,
    report: Callable[[str, int], None] = lambda name, count: None,
) -> None:
    """Computes and writes all tensors, and the index where there are several files.

    Args:
      folder: exists, and has none of the files.
      report: called with a tensor's name and the number of its bytes just written.

    Raises:
      InputError: a source cannot be read or is not finite.
      OSError: what the disk says.
    """
    for file, tensors in shards.items():
        handle = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write(handle, header(tensors))
            for tensor in tensors:
                for part in tensor.rows(reader):
                    _write(handle, part.reshape(-1).view("u1"))
                    report(tensor.name, part.nbytes)
        finally:
            os.close(handle)
    if len(shards) > 1:
        everything = [tensor for tensors in shards.values() for tensor in tensors]
        index = {
            "metadata": {
                "total_parameters": sum(tensor.size for tensor in everything),
                "total_size": sum(tensor.nbytes for tensor in everything),
            },
            "weight_map": {tensor.name: file for file, tensors in shards.items() for tensor in tensors},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
