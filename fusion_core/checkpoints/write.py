"""Grown tensors written into safetensors files, each at its place, and shards with an index."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fusion_core.checkpoints.ranges import INDEX, WEIGHTS, Reader
from fusion_core.checkpoints.stream import GrownTensor
from fusion_core.tensor_file import header


def split_into_shards(tensors: Sequence[GrownTensor], largest: int) -> dict[str, list[GrownTensor]]:
    """Return file name -> its tensors, in their order; each file has at most ``largest`` bytes of tensors, or one tensor."""
    shards: list[list[GrownTensor]] = [[]]
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


def _write(handle: int, data: Any, position: int) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        count = os.pwrite(handle, view, position)
        position, view = position + count, view[count:]


def write_shards(
    folder: pathlib.Path,
    shards: dict[str, list[GrownTensor]],
    reader: Reader,
    report: Callable[[str, int], None] = lambda name, count: None,
    threads: int | None = None,
) -> None:
    """Compute and write all tensors, and the index if there are several files.

    Args:
      folder: existing folder without any of the files.
      shards: file name -> its tensors.
      reader: open reader of the sources.
      report: function that any of the threads calls with a tensor's name and the number of its bytes just written.
      threads: number of threads, each of which takes a tensor at a time; if None, one for each processor, at most 4.

    Raises:
      InputError: a source cannot be read or is not finite.
      OSError: a file cannot be written.
    """
    stop = threading.Event()

    def write_tensor(handle: int, tensor: GrownTensor, position: int) -> None:
        for part in tensor.rows(reader):
            if stop.is_set():
                return
            _write(handle, part.reshape(-1).view("u1"), position)
            position += part.nbytes
            report(tensor.name, part.nbytes)

    with contextlib.ExitStack() as stack:
        # on leaving: start no new tensors, wait for those being written, then close the files
        jobs = []
        for file, tensors in shards.items():
            handle = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(os.close, handle)
            first = header(((t.name, t.dtype, t.shape, t.nbytes) for t in tensors), {"format": "pt"})
            _write(handle, first, 0)
            ends = itertools.accumulate((tensor.nbytes for tensor in tensors), initial=len(first))
            jobs += [(handle, tensor, start) for tensor, start in zip(tensors, ends, strict=False)]
        pool = stack.enter_context(ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        stack.callback(stop.set)
        for done in [pool.submit(write_tensor, *job) for job in jobs]:
            done.result()
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
