"""The origin, in the small arrays, of each entry along an axis of a grown array.

Units lie along the axes of an array (``fusion_core.models.units``): fusion puts the units of several networks side by
side, the copying operators repeat a network's own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fusion_core.errors import InputError
from fusion_core.models.units import Axis

# for each space, the small network's unit that each unit of the grown network is a copy of
Units = dict[str, np.ndarray]


class Run(NamedTuple):
    """Successive entries of one part: ``grown[put]`` comes from ``small[take]``, all with one number of copies."""

    take: slice
    put: slice
    copies: int


class Selection(NamedTuple):
    """The origin of the entries along an axis of a grown array.

    Attributes:
      taken: position along the small array's axis, for each grown entry.
      part: number of the part (``maps.Block``) of each grown entry; None if the axis is common to all parts.
      copies: number of copies of each entry's unit; None if each has one.
      reads: whether the array sums over the units along the axis.
      blocks: as in ``fusion_core.models.units.Axis``.
    """

    taken: np.ndarray
    part: np.ndarray | None = None
    copies: np.ndarray | None = None
    reads: bool = False
    blocks: tuple[int, ...] = (1,)

    def runs(self, part: int) -> list[Run]:
        """Return the entries of one part as the fewest possible ranges."""
        put = np.arange(len(self.taken)) if self.part is None else np.flatnonzero(self.part == part)
        take = self.taken[put]
        copies = np.ones_like(put) if self.copies is None else self.copies[put]
        breaks = np.flatnonzero((np.diff(put) != 1) | (np.diff(take) != 1) | (np.diff(copies) != 0)) + 1
        starts, ends = [0, *breaks.tolist()], [*breaks.tolist(), len(put)]
        return [
            Run(slice(int(take[a]), int(take[b - 1]) + 1), slice(int(put[a]), int(put[b - 1]) + 1), int(copies[a]))
            for a, b in zip(starts, ends, strict=True)
            if b > a
        ]

    def next_copy(self) -> np.ndarray:
        """Return for each entry the position of the next copy of it, after the last that of the first.

        Raises:
          InputError: not all entries have equally many copies.
        """
        _, counts = np.unique(self.taken, return_counts=True)
        if np.ptp(counts):
            raise InputError(
                f"units have {counts.min()} to {counts.max()} copies; copies of a network can be exchanged if each of its "
                "units has equally many"
            )
        copies = np.argsort(self.taken, kind="stable").reshape(-1, counts[0])
        following = np.empty_like(self.taken)
        following[copies] = np.roll(copies, -1, axis=1)
        return following


@functools.lru_cache(maxsize=1024)
def beside(axes: tuple[Axis, ...]) -> Selection:
    """Return the selection that puts the units of several networks side by side, each a part; packed arrays stay apart."""
    index, part = [], []
    for j in range(len(axes[0].blocks)):
        for i, axis in enumerate(axes):
            start, size = axis.space.size * sum(axis.blocks[:j]), axis.space.size * axis.blocks[j]
            index.append(np.arange(start, start + size))
            part.append(np.full(size, i))
    return Selection(np.concatenate(index), np.concatenate(part), None, axes[0].reads, axes[0].blocks)


def copied(axis: Axis, units: Mapping[str, np.ndarray]) -> Selection | None:
    """Return the selection that copies one network's units; None if each occurs once, in its place."""
    chosen = units.get(axis.space.name)
    if chosen is None or np.array_equal(chosen, np.arange(axis.space.size)):
        return None
    counts = np.concatenate([np.repeat(np.bincount(chosen)[chosen], block) for block in axis.blocks])
    return Selection(packed_entries(chosen, axis), None, counts, axis.reads, axis.blocks)


def packed_entries(units: np.ndarray, axis: Axis) -> np.ndarray:
    """Return the indices of the selected units' entries along an axis, array after array if several are packed."""
    starts = axis.space.size * (np.cumsum(axis.blocks) - axis.blocks)
    return np.concatenate(
        [start + entries(units, block) for start, block in zip(starts.tolist(), axis.blocks, strict=True)]
    )


def entries(units: np.ndarray, block: int) -> np.ndarray:
    """Return the indices of the selected units' entries, along an axis with ``block`` entries for each unit."""
    return (units[:, None] * block + np.arange(block)).reshape(-1)


def first_copies(index: np.ndarray) -> np.ndarray:
    """Return for every position the first position of the same value."""
    _, first, inverse = np.unique(index, return_index=True, return_inverse=True)
    return first[inverse]
