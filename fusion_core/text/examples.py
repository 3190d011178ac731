"""Examples as padded batches: rows of about equal length together, each batch a function of the seed and the step."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.sources import Batch, State, batches_by_step, check_process
from fusion_core.text.tokenizer import Tokenizer

SORTED_DISPATCHES = 16  # dispatches whose rows are sorted by length together


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> tuple[list[np.ndarray], int]:
    """Return the ids of each text, cut to ``longest`` with the end token kept, and how many texts were cut.

    Raises:
      InputError: ``longest`` has no room for a token and the end.
    """
    if longest < 2:
        raise InputError(f"texts of {longest} tokens have no room for a token and the end; allow at least 2")
    encoded, end = tokenizer.encode_ended(texts), np.int32(tokenizer.special.end)
    ids = [np.append(x[: longest - 1], end) if len(x) > longest else x for x in encoded]
    return ids, sum(len(x) > longest for x in encoded)


def width_for(length: int) -> int:
    """Return the least of 8, 16, 24, 32, 48, 64, 96, ... that holds ``length`` tokens: few shapes, each compiled once."""
    widths = (8 * base << power for power in itertools.count() for base in (2, 3))
    return 8 if length <= 8 else next(width for width in widths if width >= length)


def padded(rows: Sequence[np.ndarray], width: int, pad: int) -> np.ndarray:
    """Return the rows, filled with the id ``pad``, as int32 [number of rows, width]."""
    out = np.full((len(rows), width), pad, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@dataclasses.dataclass(frozen=True)
class ExampleBatches:
    """Batches of (source, target) pairs for a trainer that takes several steps a dispatch.

    Every epoch visits all examples once, in an order drawn from (seed, epoch). The rows of ``SORTED_DISPATCHES`` dispatches
    are sorted by length and cut into dispatches again, whose order is drawn; within a dispatch the rows are drawn, and all
    its batches have one width. So little is padding, and few shapes are compiled.

    Attributes:
      sources, targets: ids of each example, the end token included.
      seed: of the orders.
      dispatch: number of steps that must have one shape; steps are counted from a multiple of it.
      pad: id of padding.
      process_index, process_count: of this process and of all that share the batches.

    Raises:
      InputError: there are no pairs.
    """

    sources: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    seed: int
    dispatch: int
    pad: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        check_process(self.process_index, self.process_count)
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
        """Return the examples number ``start`` to ``start + n`` of the endless sequence of epochs, as indices."""
        size = len(self.sources)
        epochs = range(start // size, (start + n - 1) // size + 1)
        orders = [np.random.default_rng((self.seed, 0, epoch)).permutation(size) for epoch in epochs]
        return np.concatenate(orders)[start % size :][:n]

    def rows(self, step: int, size: int) -> np.ndarray:
        """Return the indices of the examples in all batches of the dispatch of ``step``: [dispatch, size]."""
        per_dispatch = self.dispatch * size
        group, which = divmod(step // self.dispatch, SORTED_DISPATCHES)
        count = SORTED_DISPATCHES * per_dispatch
        examples = self._sequence(group * count, count)
        rng = np.random.default_rng((self.seed, 1, group))
        by_length = examples[np.argsort(self.lengths[examples], kind="stable")]
        dispatches = by_length.reshape(SORTED_DISPATCHES, per_dispatch)
        drawn = rng.permuted(dispatches, axis=1)[rng.permutation(SORTED_DISPATCHES)]
        return drawn[which].reshape(self.dispatch, size)

    def batch(self, step: int, size: int) -> Batch:
        """Return the global batch of ``step``: ``encoder_ids`` [size, width] and ``targets`` [size, target_width]."""
        rows = self.rows(step, size)
        width = width_for(int(self.lengths[rows].max()))
        mine = rows[step % self.dispatch]
        return {
            "encoder_ids": padded([self.sources[i] for i in mine], width, self.pad),
            "targets": padded([self.targets[i] for i in mine], self.target_width, self.pad),
        }

    def batches(self, size: int, state: State | None = None) -> Iterator[tuple[Batch, State]]:
        """Yield the batches of the steps, see ``DataSource``."""
        content = 0
        for ids in itertools.chain(self.sources, self.targets):
            content = zlib.crc32(np.asarray([len(ids), *ids], np.int32).data, content)
        fingerprint = f"{content} {len(self.sources)} {self.seed} {self.dispatch}"
        make = lambda step: self.batch(step, size)
        return batches_by_step(make, size, fingerprint, state, self.process_index, self.process_count)


def batches_by_length(lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Return indices in batches of ``size``, the shortest first; the last batch is filled with its own first index."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return [np.append(b, np.full(size - len(b), b[0])) for b in batches]
