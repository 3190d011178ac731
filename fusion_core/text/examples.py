"""Examples as padded batches: rows of about equal length together, each batch a function of the seed and the step."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.tokenizer import EOS, PAD, Tokenizer

# Rows of this many dispatches are sorted by length together, then cut into dispatches.
SORTED_DISPATCHES = 16


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> tuple[list[np.ndarray], int]:
    """Ids of each text, cut to ``longest`` with the end token kept, and how many texts were cut."""
    if longest < 2:
        raise InputError(f"texts of {longest} tokens have no room for a token and the end; allow at least 2")
    encoded = tokenizer.encode(texts)
    ids = [np.append(x[: longest - 1], np.int32(EOS)) if len(x) > longest else x for x in encoded]
    return ids, sum(len(x) > longest for x in encoded)


def width_for(length: int) -> int:
    """The least of 8, 16, 24, 32, 48, 64, 96, ... that holds ``length`` tokens: few shapes, each compiled once."""
    widths = (8 * base << power for power in itertools.count() for base in (2, 3))
    return 8 if length <= 8 else next(width for width in widths if width >= length)


def padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """The rows as int32 [number of rows, width]."""
    out = np.full((len(rows), width), PAD, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@dataclasses.dataclass(frozen=True)
class ExampleBatches:
    """Batches of (source, target) pairs for a trainer that takes several steps a dispatch.

    Every epoch visits all examples once, in an order drawn from (seed, epoch). ``SORTED_DISPATCHES`` dispatches of rows
    are sorted by length and cut into dispatches again, whose order is drawn; within a dispatch the rows are drawn, and all
    its batches have one width. So little is padding, and few shapes are compiled.

    Attributes:
      sources, targets: ids of each example, the end token included.
      seed: decides the orders.
      dispatch: steps that must have one shape; steps are counted from a multiple of it.
    """

    sources: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    seed: int
    dispatch: int

    def __post_init__(self) -> None:
        if not len(self.sources) or len(self.sources) != len(self.targets):
            raise InputError(f"there are {len(self.sources)} sources and {len(self.targets)} targets; give pairs")

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each source."""
        return np.asarray([len(x) for x in self.sources])

    @functools.cached_property
    def target_width(self) -> int:
        """Tokens of the longest target, which all batches have."""
        return max(map(len, self.targets))

    def _sequence(self, start: int, n: int) -> np.ndarray:
        """Examples number ``start`` to ``start + n`` of the endless sequence of epochs."""
        size = len(self.sources)
        epochs = range(start // size, (start + n - 1) // size + 1)
        orders = [np.random.default_rng((self.seed, 0, epoch)).permutation(size) for epoch in epochs]
        return np.concatenate(orders)[start % size :][:n]

    def rows(self, step: int, size: int) -> np.ndarray:
        """Indices of the examples of ``step``'s batch, and of the others of its dispatch: [dispatch, size]."""
        per_dispatch = self.dispatch * size
        group, which = divmod(step // self.dispatch, SORTED_DISPATCHES)
        count = SORTED_DISPATCHES * per_dispatch
        examples = self._sequence(group * count, count)
        rng = np.random.default_rng((self.seed, 1, group))
        dispatches = examples[np.argsort(self.lengths[examples], kind="stable")].reshape(
            SORTED_DISPATCHES, per_dispatch
        )
        drawn = rng.permuted(dispatches, axis=1)[rng.permutation(SORTED_DISPATCHES)]
        return drawn[which].reshape(self.dispatch, size)

    def batch(self, step: int, size: int) -> dict[str, np.ndarray]:
        """The batch of ``step``: ``encoder_ids`` [size, source] and ``targets`` [size, target]."""
        rows = self.rows(step, size)
        width = width_for(int(self.lengths[rows].max()))
        mine = rows[step % self.dispatch]
        return {
            "encoder_ids": padded([self.sources[i] for i in mine], width),
            "targets": padded([self.targets[i] for i in mine], self.target_width),
        }


def in_order(lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Indices in batches of ``size``, the shortest first; the last batch is filled with its own first index."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return [np.append(b, np.full(size - len(b), b[0])) for b in batches]
