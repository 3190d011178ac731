"""Fused tensors, row by row: a rule says where each block stands, one small buffer holds a few rows of the result.

The zeros of block-diagonal weights are zeros of that buffer: they are set once and written with every row. (Leaving them
out, as holes of a sparse file, takes a call a row and was three times slower on ext4: 0.86 s against 0.36 s for 512 MB.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator

import numpy as np

from fusion_core.errors import InputError
from fusion_core.files.ranges import CODES, FLOATS, Entry, Reader, all_finite
from fusion_core.fusion import Rule
from fusion_core.fusion.linear import Placement

CHUNK = 1 << 19  # bytes of the result that are put together at a time: they stay in a core's cache


@dataclasses.dataclass(frozen=True)
class Noise:
    r"""Noise on a block-diagonal weight that leaves the function alone where the sources are equal.

    The blocks of one row sum to zero over the copies, ``Σ_j N_ij = 0``: the weight reads k equal parts ``(x, ..., x)``,
    so that ``Σ_j (W δ_ij + N_ij) x = W x``. For two copies the rows are ``[W + N_1, −N_1]`` and ``[−N_2, W + N_2]``.
    The numbers depend on the seed and on the tensor's name alone.

    Attributes:
      scale: standard deviation of each entry, in units of the weight's mean absolute entry.
      seed: of all tensors' noise.
    Source: t5_fusion.md, symmetry breaking.
    """

    scale: float
    seed: int

    def generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng((self.seed, zlib.crc32(name.encode())))


@dataclasses.dataclass(frozen=True)
class FusedTensor:
    """One tensor of the fused network, not yet computed.

    Attributes:
      name: in the fused files.
      rule: how the sources' tensors become this one.
      entries: where the sources' tensors lie.
      dtype: of the result, as headers spell it.
      noise: to be added; None: none.
    """

    name: str
    rule: Rule
    entries: tuple[Entry, ...]
    dtype: str
    noise: Noise | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rule.fused_shape([entry.shape for entry in self.entries])

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * FLOATS[self.dtype].itemsize

    @property
    def kind(self) -> str:
        """In words: what the rule does."""
        kinds = {0: "weighted sum", 1: "concatenated", 2: "block-diagonal"}
        return kinds.get(len(self.rule.axes), "blocks on a diagonal")

    def rows(self, reader: Reader, chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """The tensor from its first row to its last, a few rows at a time, ``chunk`` bytes or one row; valid until the next.

        Blocks of scale 1 and of the result's dtype are copied bit for bit. Others are scaled in float32 (float64 where
        one of the two dtypes is) and rounded once.

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
        everything = self.rule.placements([entry.shape for entry in self.entries]) if self.shape else self._scalars()
        cuts = sorted({0, shape[0], *(edge for p in everything for edge in (p.put[0].start, p.put[0].stop))})
        for begin, end in itertools.pairwise(cuts):
            active = [p for p in everything if p.put[0].start <= begin < end <= p.put[0].stop]
            buffer[...] = 0  # these rows have their blocks elsewhere than the rows before
            for row in range(begin, end, many):
                part = buffer[: min(many, end - row)]
                if self.rule.axes:
                    for p in active:
                        block = rows(p.source, p.take[0].start + row - p.put[0].start, len(part))
                        part[:, *p.put[1:]] = self._converted(block[:, *p.take[1:]], p.scale, dtype)
                else:
                    part[...] = self._sum(rows, active, row, len(part), dtype)
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
        return self._rounded(total, dtype)

    def _converted(self, block: np.ndarray, scale: float, dtype: np.dtype) -> np.ndarray:
        if scale == 1 and block.dtype == dtype:
            return block
        wide = block.astype(_wide(dtype, block.dtype))
        if scale != 1:
            wide *= wide.dtype.type(scale)
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


def _wide(*dtypes: np.dtype) -> np.dtype:
    return FLOATS["F64" if FLOATS["F64"] in dtypes else "F32"]


class _SourceRows:
    """Rows of the sources' tensors; the last ones of each source are kept, since packed rules want them again."""

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
    """Draws a weight's noise in the order of its rows, whatever their number at a time."""

    def __init__(self, tensor: FusedTensor, reader: Reader) -> None:
        assert tensor.noise is not None
        self._copies = len(tensor.entries)
        self._random = tensor.noise.generator(tensor.name)
        entry = tensor.entries[0]
        total, many = 0.0, max(1, CHUNK // (math.prod(entry.shape[1:]) * 4))
        rows = _SourceRows(reader, (entry,), many)
        for row in range(0, entry.shape[0], many):
            block = rows(0, row, min(many, entry.shape[0] - row))
            total += float(np.abs(block.astype(np.float32)).sum(dtype=np.float64))
        # taking the mean away leaves 1 − 1/k of the variance
        self._scale = tensor.noise.scale * total / entry.size * (self._copies / (self._copies - 1)) ** 0.5

    def add_to(self, part: np.ndarray) -> None:
        noise = self._random.standard_normal((len(part), self._copies, part.shape[1] // self._copies), np.float32)
        noise -= noise.mean(axis=1, keepdims=True)
        wide = _wide(part.dtype)
        part[...] = (part.astype(wide) + (self._scale * noise).reshape(part.shape).astype(wide)).astype(part.dtype)
