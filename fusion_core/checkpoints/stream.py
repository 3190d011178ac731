"""Grown tensors, row by row: a rule gives the place of each block, one small buffer holds a few rows of the result.

The zeros of block-diagonal weights are zeros of that buffer: they are set once and written with every row. (Leaving them
out, as holes of a sparse file, takes one call a row and was slower on ext4: 0.86 s against 0.36 s for 512 MB.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fusion_core.checkpoints.ranges import CODES, FLOATS, Entry, Reader, all_finite
from fusion_core.errors import InputError
from fusion_core.growth import Rule
from fusion_core.growth.maps import Placement
from fusion_core.growth.noise import cancelling, copy_generators
from fusion_core.growth.options import Draw

CHUNK = 1 << 19  # bytes of the result that are computed at a time: they fit into a core's cache


class Noise(NamedTuple):
    """Noise on a weight that does not change the function if the sources are equal (``fusion_core.growth.noise``).

    Attributes:
      scale: standard deviation of each entry, in units of the array's root mean square (scale included).
      seed: seed of all tensors' noise.
      array: number of this tensor in the network; its draws have the seeds (seed, array, copy).
    """

    scale: float
    seed: int
    array: int


@dataclasses.dataclass(frozen=True)
class GrownTensor:
    """One tensor of the grown network, not yet computed.

    Attributes:
      name: its name in the grown files.
      rule: rule by which the sources' tensors become this one.
      entries: places of its parts' tensors in their files.
      dtype: dtype of the result in the spelling of headers.
      noise: noise to be added; None if there is none.
    """

    name: str
    rule: Rule
    entries: tuple[Entry, ...]
    dtype: str
    noise: Noise | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rule.shape

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * FLOATS[self.dtype].itemsize

    @property
    def kind(self) -> str:
        """What the rule does, in words."""
        if len(self.rule.blocks) == 1:
            return "copied"
        kinds = {0: "weighted sum", 1: "concatenated", 2: "block-diagonal"}
        return kinds.get(len(self.rule.own), "blocks on a diagonal")

    @property
    def _summed(self) -> bool:
        return not self.rule.own and len(self.rule.blocks) > 1

    def rows(self, reader: Reader, chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the tensor's rows in order, ``chunk`` bytes or one row at a time, in a buffer that the next ones overwrite.

        Blocks of scale 1 and of the result's dtype are copied bit for bit. Others are scaled in float32 (float64 if one of
        the two dtypes is) and rounded once.

        Raises:
          InputError: a source has entries that are not finite, or the result does not fit its dtype.
        """
        if not self.size:
            return
        dtype = FLOATS[self.dtype]
        shape = self.shape or (1,)
        width = math.prod(shape[1:])
        many = max(1, min(shape[0], chunk // (width * dtype.itemsize)))
        buffer = np.zeros((many, *shape[1:]), dtype)
        rows = _SourceRows(reader, self.entries, many)
        noise = None if self.noise is None else _NoiseRows(self, reader)
        everything = self.rule.placements() if self.shape else self._scalars()
        first_row = lambda placement: placement.put[0].start
        for begin, group in itertools.groupby(sorted(everything, key=first_row), key=first_row):
            active = list(group)
            end = active[0].put[0].stop
            buffer[...] = 0  # the blocks of these rows are at other places than those of the rows before
            for row in range(begin, end, many):
                part = buffer[: min(many, end - row)]
                if self._summed:
                    part[...] = self._sum(rows, active, row, len(part), dtype)
                for p in [] if self._summed else active:
                    block = rows(p.source, p.take[0].start + row - p.put[0].start, len(part))
                    shift = self.rule.shifts[p.source]
                    part[:, *p.put[1:]] = self._converted(block[:, *p.take[1:]], p.scale, shift, dtype)
                if noise is not None:
                    noise.add_to(part)
                yield part

    def _scalars(self) -> list[Placement]:
        one = (slice(0, 1),)
        return [Placement(source, one, one, scale) for source, scale in enumerate(self.rule.scales)]

    def _sum(self, rows: _SourceRows, active: list[Placement], row: int, count: int, dtype: np.dtype) -> np.ndarray:
        wide = _wide(dtype, *(FLOATS[entry.dtype] for entry in self.entries))
        total = np.zeros((count, *(self.shape or (1,))[1:]), wide)
        for p in active:
            total += wide.type(p.scale) * rows(p.source, row, count).astype(wide)
        if shift := self.rule.offset * (math.fsum(self.rule.scales) - 1):
            total += wide.type(shift)
        return self._rounded(total, dtype)

    def _converted(self, block: np.ndarray, scale: float, shift: float, dtype: np.dtype) -> np.ndarray:
        if scale == 1 and not shift and block.dtype == dtype:
            return block
        wide = block.astype(_wide(dtype, block.dtype))
        if scale != 1:
            wide *= wide.dtype.type(scale)
        if shift:
            wide += wide.dtype.type(shift)
        return self._rounded(wide, dtype)

    def _rounded(self, wide: np.ndarray, dtype: np.dtype) -> np.ndarray:
        with np.errstate(over="ignore"):
            narrow = wide.astype(dtype)
        if not all_finite(narrow):
            raise InputError(
                f"{self.name} has an entry of {np.abs(wide).max():.3g}, which {CODES[dtype]} cannot hold; write it as bf16 "
                "or f32"
            )
        return narrow


@dataclasses.dataclass(frozen=True)
class DrawnTensor(GrownTensor):
    """A tensor of the grown network with draws or constants in it, which is computed whole, in float32.

    Attributes:
      draw: as in ``fusion_core.growth.options.Growth``.
      kept: whether anything of the small network is in it.
    """

    draw: Draw = lambda name, array: array
    kept: bool = True

    @property
    def kind(self) -> str:
        """What the rule does, in words."""
        return f"{super().kind}, with draws" if self.kept else "drawn"

    def rows(self, reader: Reader, chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the tensor whole, if it has entries.

        Raises:
          InputError: a source has entries that are not finite, or the result does not fit its dtype.
        """
        start = jnp.zeros((), jnp.float32)
        if self.kept:
            parts = [
                None if block.network is None else jnp.asarray(reader.whole(entry).astype(np.float32))
                for block, entry in zip(self.rule.blocks, self.entries, strict=True)
            ]
            start = self.rule.shifted(self.rule.embed(parts))
        if self.size:
            yield self._rounded(np.asarray(self.draw(self.name, start)), FLOATS[self.dtype])


def _wide(*dtypes: np.dtype) -> np.dtype:
    return FLOATS["F64" if FLOATS["F64"] in dtypes else "F32"]


class _SourceRows:
    """Rows of the sources' tensors; the last ones of each source are kept, since packed rules read them again."""

    def __init__(self, reader: Reader, entries: tuple[Entry, ...], many: int) -> None:
        self._reader, self._entries = reader, entries
        self._shapes = [entry.shape or (1,) for entry in entries]
        self._buffers = [
            np.empty((min(many, shape[0]), *shape[1:]), FLOATS[entry.dtype])
            for entry, shape in zip(entries, self._shapes, strict=True)
        ]
        self._held: dict[int, tuple[int, int]] = {}

    def __call__(self, source: int, first: int, count: int) -> np.ndarray:
        part = self._buffers[source][:count]
        if self._held.get(source) != (first, count):
            width = math.prod(self._shapes[source][1:])
            self._reader.into(self._entries[source], first * width, part)
            self._held[source] = first, count
        return part


class _NoiseRows:
    """A weight's noise from its first row to its last, independent of the number of rows at a time.

    If the copies lie side by side (the weight reads along its second axis) a row needs one row of each copy's draws.
    If they lie one below the other, the rows of every copy's part need the draws of all copies, which are drawn again for
    each part.
    """

    def __init__(self, tensor: GrownTensor, reader: Reader) -> None:
        assert tensor.noise is not None
        self._noise, self._reads = tensor.noise, tensor.rule.axis(reads=True)
        self._copies = tensor.rule.copies_read
        self._part = tensor.shape[0] // self._copies  # rows of a copy, if the copies lie one below the other
        self._row, self._generators = 0, self._start()
        total, entry = 0.0, tensor.entries[0]
        many = max(1, CHUNK // (math.prod(entry.shape[1:]) * 4))
        rows = _SourceRows(reader, (entry,), many)
        for row in range(0, entry.shape[0], many):
            block = rows(0, row, min(many, entry.shape[0] - row)).astype(np.float32)
            total += float(np.vdot(block, block))
        sizes = [(p.scale, math.prod(t.stop - t.start for t in p.take)) for p in tensor.rule.placements()]
        squares = math.fsum(scale * scale * size for scale, size in sizes) / entry.size
        self._size = tensor.noise.scale * math.sqrt(total * squares / tensor.rule.filled)

    def _start(self) -> list[np.random.Generator]:
        return copy_generators(self._noise.seed, self._noise.array, self._copies)

    def _drawn(self, shape: tuple[int, ...]) -> np.ndarray:
        return cancelling(np.stack([random.standard_normal(shape, np.float32) for random in self._generators]))

    def add_to(self, part: np.ndarray) -> None:
        wide = part.astype(_wide(part.dtype))
        if self._reads == 1:
            blocks = self._drawn((len(part), part.shape[1] // self._copies, *part.shape[2:]))
            wide += (self._size * np.concatenate(list(blocks), axis=1)).astype(wide.dtype)
        else:
            self._add_below(wide)
        part[...] = wide.astype(part.dtype)

    def _add_below(self, rows: np.ndarray) -> None:
        while len(rows):
            copy, row = divmod(self._row, self._part)
            if not row:
                self._generators = self._start()
            count = min(len(rows), self._part - row)
            rows[:count] += (self._size * self._drawn((count, *rows.shape[1:]))[copy]).astype(rows.dtype)
            rows, self._row = rows[count:], self._row + count
