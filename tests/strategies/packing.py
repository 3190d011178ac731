"""Pairs for T5, one a row and packed."""

import numpy as np


def pairs(config, seed, lengths):
    """[(source, target)] with the given lengths."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(2, config.vocab_size, n).astype(np.int32) for n in pair) for pair in lengths]


def rows(drawn):
    """One pair a row, padded."""
    sources, targets = zip(*drawn, strict=True)
    return {"encoder_ids": _padded(sources), "targets": _padded(targets)}


def packed(rows_of_pairs):
    """One list of pairs a row, with segments; padded."""
    batch = {}
    for name, ids, part in (("encoder_segments", "encoder_ids", 0), ("target_segments", "targets", 1)):
        batch[ids] = _padded([np.concatenate([d[part] for d in row]) for row in rows_of_pairs])
        segments = [
            np.concatenate([np.full(len(d[part]), i, np.int32) for i, d in enumerate(row, start=1)])
            for row in rows_of_pairs
        ]
        batch[name] = _padded(segments)
    return batch


def unpack(batch):
    """The pairs of a packed batch, row by row."""
    pairs = []
    for row in range(len(batch["targets"])):
        sides = [(batch["encoder_ids"][row], batch["encoder_segments"][row])]
        sides.append((batch["targets"][row], batch["target_segments"][row]))
        for segment in range(1, int(sides[0][1].max(initial=0)) + 1):
            source, target = (ids[where == segment] for ids, where in sides)
            pairs.append((source, target))
    return pairs


def _padded(arrays):
    result = np.zeros((len(arrays), max(map(len, arrays)) + 1), np.int32)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result
