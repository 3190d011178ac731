"""Span corruption as in T5: spans of tokens become sentinels in the source and are spelled out in the target."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.sources import Batch, State, batches_by_step, check_noise, check_process
from fusion_core.text.tokenizer import SENTINELS, SpecialIds, Tokenizer

NOISE_DENSITY, MEAN_SPAN = 0.15, 3.0  # T5's: share of the tokens that are noise, mean length of a noise span in tokens


def span_counts(length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Return the numbers of noise tokens and of noise spans among ``length`` tokens.

    Products are rounded as T5 does, in float32.
    """
    noise = min(max(round(float(np.float32(length) * np.float32(noise_density))), 1), length - 1)
    return noise, min(max(round(float(np.float32(noise) / np.float32(mean_span))), 1), noise, length - noise)


def corrupted_lengths(
    length: int, noise_density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN
) -> tuple[int, int]:
    """Return the lengths of source and target of ``length`` tokens, end tokens included."""
    if length < 2:
        return length + 1, length + 1
    noise, spans = span_counts(length, noise_density, mean_span)
    return length - noise + spans + 1, noise + spans + 1


@functools.cache
def window_length(source: int, noise_density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN) -> tuple[int, int]:
    """Return the number of raw tokens whose corrupted source has at most ``source`` tokens, and their target's length.

    The end tokens are included in both. Source: ``random_spans_helper`` of T5 (Raffel et al. 2020), which tries one length
    after another from 2 on; here from the longest of which rounding cannot make too many tokens, for a source may be long.
    """
    raw = max(2, int((source - 4) / (1 - noise_density + noise_density / mean_span + 2**-20)))
    while corrupted_lengths(raw + 1, noise_density, mean_span)[0] <= source:
        raw += 1
    return raw, corrupted_lengths(raw, noise_density, mean_span)[1]


def target_length(source: int) -> int:
    """Return the tokens of the target of a source of ``source`` tokens, with T5's noise."""
    return window_length(source)[1]


def check_sentinels(
    source: int, noise_density: float = NOISE_DENSITY, mean_span: float = MEAN_SPAN, sentinels: int = SENTINELS
) -> None:
    """Raise InputError if a source of ``source`` tokens needs more spans than there are sentinels."""
    window, _ = window_length(source, noise_density, mean_span)
    if span_counts(window, noise_density, mean_span)[1] > sentinels:
        raise InputError(f"a source of {source} tokens needs more than {sentinels} sentinels; take a shorter one")


def noise_masks(rng: np.random.Generator, n: int, length: int, noise_density: float, mean_span: float) -> np.ndarray:
    """Draw n masks of ``length`` tokens, true where a token is noise; spans alternate, beginning with one that is kept.

    All masks have the same number of noise tokens and of spans; the lengths of the spans are uniform over all ways to
    cut that many tokens into that many non-empty pieces. A single token is kept. Source: ``random_spans_noise_mask`` of T5.
    """
    if length < 2:
        return np.zeros((n, length), bool)
    noise, spans = span_counts(length, noise_density, mean_span)

    def cuts(items: int) -> np.ndarray:
        marks = np.zeros((n, items - 1), bool)
        marks[:, : spans - 1] = True
        edges = np.zeros((n, spans + 1), np.int64)
        edges[:, 1:-1] = np.nonzero(rng.permuted(marks, axis=1))[1].reshape(n, spans - 1) + 1
        edges[:, -1] = items
        return np.diff(edges, axis=1)

    lengths = np.stack([cuts(length - noise), cuts(noise)], axis=2).reshape(n, 2 * spans)
    starts = np.zeros((n, length + 1), np.int64)
    np.put_along_axis(starts, np.cumsum(lengths, axis=1), 1, axis=1)
    return np.cumsum(starts[:, :length], axis=1) % 2 == 1


def corrupt(tokens: np.ndarray, masks: np.ndarray, special: SpecialIds) -> tuple[np.ndarray, np.ndarray]:
    """Return the source and the target of each row.

    In the source each noise span is replaced by one sentinel; the target has, after each sentinel, the tokens of its span.
    Both end with the end token.

    Args:
      tokens: [rows, length], integers.
      masks: [rows, length], true where a token is noise; all rows have the same numbers of noise tokens and of spans, so
        that their results have equal lengths.
      special: ids of the sentinels, at least as many as there are spans, and of the end token.
    """
    ends = np.full((len(tokens), 1), special.end, tokens.dtype)
    sentinels = np.asarray(special.sentinels, tokens.dtype)

    def replace(mask: np.ndarray) -> np.ndarray:
        begins = mask.copy()
        begins[:, 1:] &= ~mask[:, :-1]
        ids = np.where(begins, sentinels[np.cumsum(begins, axis=1) - 1], tokens)
        keep = begins | ~mask
        return np.concatenate([ids[keep].reshape(len(tokens), -1), ends], axis=1)

    return replace(masks), replace(~masks)


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """Batches of span corruption over tokens in memory; the batch of a step depends on seed and step alone.

    The documents' tokens are joined, each ending with the end token, and cut into windows of ``window`` tokens. Every
    epoch visits all windows once, in an order drawn from (seed, epoch); the masks are drawn from (seed, step).

    Attributes:
      windows: integer array [number of windows, window].
      special: ids of the sentinels and of the end token.
      seed: of the order and of the masks.
      noise_density: share of the tokens that are noise.
      mean_span: mean length of a noise span, in tokens.
      process_index, process_count: of this process and of all that share the batches.
    """

    windows: np.ndarray
    special: SpecialIds
    seed: int
    noise_density: float = NOISE_DENSITY
    mean_span: float = MEAN_SPAN
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        check_noise(self.noise_density, self.mean_span)
        check_process(self.process_index, self.process_count)

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[np.ndarray],
        tokenizer: Tokenizer,
        source: int,
        seed: int,
        noise_density: float = NOISE_DENSITY,
        mean_span: float = MEAN_SPAN,
    ) -> SpanCorruption:
        """Return the source of batches over the ids of documents.

        Args:
          documents: ids of each document, each ending with the end token (``Tokenizer.encode_ended``).
          tokenizer: that made them, for the sentinels.
          source: tokens of a corrupted window, end token included.
          seed, noise_density, mean_span: see the class.

        Raises:
          InputError: the text is shorter than one window, windows need more sentinels than there are, or the tokenizer has
            none.
        """
        tokenizer.special.check_sentinels()
        check_sentinels(source, noise_density, mean_span, len(tokenizer.special.sentinels))
        window, _ = window_length(source, noise_density, mean_span)
        stream = np.concatenate(documents) if documents else np.zeros(0, np.int32)
        n = len(stream) // window
        if n < 1:
            raise InputError(f"the text has {len(stream)} tokens, but one window needs {window}; give more text")
        return cls(stream[: n * window].reshape(n, window), tokenizer.special, seed, noise_density, mean_span)

    def with_seed(self, seed: int) -> SpanCorruption:
        """Return the same windows in another order, with other masks."""
        return dataclasses.replace(self, seed=seed)

    def _rows(self, start: int, n: int) -> np.ndarray:
        """Return the windows number ``start`` to ``start + n`` of the endless sequence of epochs, as indices."""
        rows = np.empty(n, np.int64)
        for epoch in range(start // len(self.windows), (start + n - 1) // len(self.windows) + 1):
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.windows))
            first = epoch * len(self.windows)
            where = np.arange(max(start, first), min(start + n, first + len(self.windows)))
            rows[where - start] = order[where - first]
        return rows

    def batch(self, step: int, size: int) -> Batch:
        """Return the global batch of ``step``: ``encoder_ids`` [size, source] and ``targets`` [size, target]."""
        tokens = self.windows[self._rows(step * size, size)]
        rng = np.random.default_rng((self.seed, 1, step))
        masks = noise_masks(rng, size, tokens.shape[1], self.noise_density, self.mean_span)
        source, target = corrupt(tokens, masks, self.special)
        return {"encoder_ids": source, "targets": target}

    def batches(self, size: int, state: State | None = None) -> Iterator[tuple[Batch, State]]:
        """Yield the batches of the steps, see ``DataSource``."""
        content = zlib.crc32(np.ascontiguousarray(self.windows).data)
        facts = (content, *self.windows.shape, self.seed, self.noise_density, self.mean_span)
        make = lambda step: self.batch(step, size)
        return batches_by_step(make, size, " ".join(map(str, facts)), state, self.process_index, self.process_count)
