"""Packing: documents are corrupted one by one, and rows are filled with as many as fit.

A packed batch has, beside ``encoder_ids`` [rows, source] and ``targets`` [rows, target], ``encoder_segments`` and
``target_segments`` of the same shapes: 1 for the first document of a row, 2 for the second, ... and 0 for padding. Segment
i of the source and segment i of the target are one document; attention stays within a segment, and the decoder begins anew in
each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion_core.text.sources import Batch
from fusion_core.text.span_corruption import corrupt, noise_masks
from fusion_core.text.tokenizer import SpecialIds

Pair = tuple[np.ndarray, np.ndarray]


def windows_of(ids: np.ndarray, window: int) -> list[np.ndarray]:
    """Return the tokens in windows of ``window``; the last may be shorter."""
    return [ids[start : start + window] for start in range(0, len(ids), window)]


def corrupt_each(
    rng: np.random.Generator, windows: Sequence[np.ndarray], special: SpecialIds, noise_density: float, mean_span: float
) -> list[Pair]:
    """Return the corrupted source and target of every window, in the windows' order.

    Windows of equal length are corrupted together. Lengths are processed in ascending order, which fixes the random draws.
    """
    pairs: list[Pair] = [(np.zeros(0, np.int32),) * 2] * len(windows)
    lengths = np.fromiter(map(len, windows), np.int64, len(windows))
    for length in np.unique(lengths):
        (where,) = np.nonzero(lengths == length)
        tokens = np.stack([windows[int(i)] for i in where])
        masks = noise_masks(rng, len(where), int(length), noise_density, mean_span)
        sources, targets = corrupt(tokens, masks, special)
        for i, source, target in zip(where, sources, targets, strict=True):
            pairs[i] = source, target
    return pairs


def assign(lengths: np.ndarray, room: tuple[int, int]) -> np.ndarray:
    """Return the row of every pair: the longest first, each into the fullest row that has room for both of its sides.

    Args:
      lengths: tokens of source and target, [pairs, 2]; none is longer than ``room``.
      room: tokens of a row's source and target.

    Returns:
      Numbers of rows from 0 on without gaps, [pairs].
    """
    left = np.empty((len(lengths), 2), np.int64)
    rows = np.empty(len(lengths), np.int64)
    used = 0
    for i in np.argsort(-lengths[:, 0], kind="stable"):
        fits = (left[:used] >= lengths[i]).all(axis=1)
        if fits.any():
            row = int(np.where(fits, left[:used, 0], room[0] + 1).argmin())
        else:
            row, used = used, used + 1
            left[row] = room
        left[row] -= lengths[i]
        rows[i] = row
    return rows


def pack(pairs: Sequence[Pair], source: int, target: int, pad: int) -> Batch:
    """Pack all pairs into a batch of as few rows as a greedy assignment needs.

    Args:
      pairs: source and target of each document.
      source, target: tokens of a row's source and target; none of the pairs is longer.
      pad: id of padding.
    """
    lengths = np.asarray([(len(s), len(t)) for s, t in pairs], np.int64).reshape(-1, 2)
    rows = assign(lengths, (source, target))
    n = int(rows.max(initial=-1)) + 1
    ids, segments = ([np.full((n, width), fill, np.int32) for width in (source, target)] for fill in (pad, 0))
    filled, count = np.zeros((n, 2), np.int64), np.zeros(n, np.int64)
    for pair, row in zip(pairs, rows, strict=True):
        count[row] += 1
        for side, tokens in enumerate(pair):
            where = slice(filled[row, side], filled[row, side] + len(tokens))
            ids[side][row, where], segments[side][row, where] = tokens, count[row]
            filled[row, side] = where.stop
    return {
        "encoder_ids": ids[0],
        "targets": ids[1],
        "encoder_segments": segments[0],
        "target_segments": segments[1],
    }


def packing_efficiency(batch: Batch) -> tuple[float, float]:
    """Return the shares of the tokens of sources and of targets that are not padding."""
    return float((batch["encoder_segments"] > 0).mean()), float((batch["target_segments"] > 0).mean())
