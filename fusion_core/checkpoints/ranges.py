"""Tensors in safetensors files, by ranges of bytes: headers are checked strictly, and nothing is read whole.

The safetensors library reads whole tensors or slices of them into new arrays; fusing needs a tensor's position in its
file, to read a few rows at a time into one buffer. Files are not memory-mapped: mapped pages that were read once count as
this process's memory until the kernel reclaims them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import threading
from typing import Any

import ml_dtypes
import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.encoding import check_pointer
from fusion_core.text.json_files import parse, short

# dtype in a header -> bits of one entry
BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "BOOL": 8, "C64": 64},
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
    **{f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)},
}
# dtypes of weights
FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in FLOATS.items()}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # files of a checkpoint folder
LARGEST_HEADER = 100_000_000  # bytes, as in the library
MOST_AXES, LONGEST_NAME = 64, 1000  # of an array, as in numpy; letters

# dtype -> (its bits as unsigned and as signed integers, the bits of +inf): larger magnitudes are inf or NaN
_BITS: dict[np.dtype, tuple[Any, Any, int]] = {
    FLOATS["F64"]: (np.uint64, np.int64, 0x7FF0_0000_0000_0000),
    FLOATS["F32"]: (np.uint32, np.int32, 0x7F80_0000),
    FLOATS["F16"]: (np.uint16, np.int16, 0x7C00),
    FLOATS["BF16"]: (np.uint16, np.int16, 0x7F80),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """The place of a tensor in a file.

    Attributes:
      path: the safetensors file.
      name: the tensor's name in it.
      dtype: its dtype in the spelling of headers, such as ``"BF16"``.
      shape: its shape.
      start: position of its first byte, from the beginning of the file.
    """

    path: pathlib.Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return -(-self.size * BITS[self.dtype] // 8)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_AXES
        and all(map(_is_count, value))
        and _is_count(math.prod(value))
    )


def read_header(path: pathlib.Path) -> dict[str, Entry]:
    """Return the tensors of a safetensors file, by name, from its header alone.

    Raises:
      InputError: the file is shorter than its header declares, or the header is not valid: its length is absurd, it is no
        JSON, offsets are outside the file, overlap or leave gaps, or a size does not fit the shape.
    Source: the format's description in the safetensors repository.
    """

    def refuse(why: str) -> InputError:
        return InputError(f"{path} cannot be read ({why}); it is truncated or damaged, copy it again")

    check_pointer(path)
    total = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        if len(first) < 8:
            raise refuse(f"it has {total} bytes, fewer than the 8 that every file begins with")
        length = int.from_bytes(first, "little")
        if length > min(total - 8, LARGEST_HEADER):
            raise refuse(f"its header should have {length:,} bytes, but the file has {total:,}")
        try:
            header = parse(file.read(length))
        except ValueError as error:
            raise refuse(f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise refuse("its header is no JSON object")
    header.pop("__metadata__", None)
    base, spans, entries = 8 + length, [], {}
    for name, facts in header.items():
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise refuse(f"a tensor has the name {short(name)}")
        if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
            raise refuse(f"{name} lacks dtype, shape or data_offsets")
        dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            raise refuse(f"{name} has the unknown dtype {short(dtype)}, unless the format is newer")
        if not _is_shape(shape):
            raise refuse(f"{name} has the shape {short(shape)}")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
            raise refuse(f"{name} has the offsets {short(offsets)}")
        start, end = offsets
        if not start <= end <= total - base:
            raise refuse(f"{name} should lie at bytes {start:,} to {end:,}, but {total - base:,} bytes are there")
        entry = Entry(path, name, dtype, tuple(shape), base + start)
        packed = (
            BITS[dtype] < 8 and entry.size == end - start
        )  # some writers count bytes, and not entries, in the shape
        if entry.nbytes != end - start and not packed:
            raise refuse(f"{name} has {end - start:,} bytes, but {dtype} of shape {entry.shape} takes {entry.nbytes:,}")
        entries[name] = entry
        spans.append((start, end, name))
    position, before = 0, "the header"
    for start, end, name in sorted(spans):
        if start != position:
            raise refuse(f"{name} {'overlaps with' if start < position else 'leaves a gap after'} {before}")
        position, before = end, name
    if position != total - base:
        raise refuse(f"{total - base - position:,} bytes at its end belong to no tensor")
    return entries


class Reader:
    """A context that reads ranges of tensors and keeps their files open; threads may share one."""

    def __init__(self) -> None:
        self._open: dict[pathlib.Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()

    def into(self, entry: Entry, first: int, block: np.ndarray) -> None:
        """Fill a contiguous ``block`` with the entries from number ``first`` on, and check that they are finite.

        Raises:
          InputError: the file ends too early, or has NaN or infinite entries there.
        """
        with self._lock:
            if entry.path not in self._open:
                self._open[entry.path] = os.open(entry.path, os.O_RDONLY)
        handle, position = self._open[entry.path], entry.start + first * block.itemsize
        view = block.reshape(-1).view(np.uint8).data
        while len(view):
            count = os.preadv(handle, [view], position)
            if not count:
                raise InputError(f"{entry.path} ends within {entry.name}: it was cut while it was read; copy it again")
            position, view = position + count, view[count:]
        if not all_finite(block):
            raise InputError(
                f"{entry.path}: {entry.name} has entries that are not finite; the checkpoint is of a diverged run"
            )

    def whole(self, entry: Entry) -> np.ndarray:
        """Return the tensor as a new array."""
        block = np.empty(entry.shape, FLOATS[entry.dtype])
        self.into(entry, 0, block)
        return block


def all_finite(block: np.ndarray) -> bool:
    """Return whether no entry is NaN or infinite, by two reductions over the bits, with no array in between.

    The largest of the bits as unsigned integers is that of the negative number with the largest magnitude, if there are
    negative ones; as signed integers, that of the largest positive number.
    """
    if not block.size:
        return True
    unsigned, signed, infinity = _BITS[block.dtype]
    sign = 1 << (8 * block.itemsize - 1)
    return int(block.view(signed).max()) < infinity and int(block.view(unsigned).max()) < sign + infinity
