"""Documents for T5, one a row and packed."""

import numpy as np


def documents(config, seed, lengths):
    """[(source, target)] with the given lengths."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(2, config.vocab_size, n).astype(np.int32) for n in pair) for pair in lengths]


def rows(documents):
    """One document a row, padded."""
    sources, targets = zip(*documents, strict=True)
    return {"encoder_ids": _padded(sources), "targets": _padded(targets)}


def packed(rows_of_documents):
    """One list of documents a row, with segments; padded."""
    batch = {}
    for name, ids, part in (("encoder_segments", "encoder_ids", 0), ("target_segments", "targets", 1)):
        batch[ids] = _padded([np.concatenate([d[part] for d in row]) for row in rows_of_documents])
        segments = [
            np.concatenate([np.full(len(d[part]), i, np.int32) for i, d in enumerate(row, start=1)])
            for row in rows_of_documents
        ]
        batch[name] = _padded(segments)
    return batch


def _padded(arrays):
    result = np.zeros((len(arrays), max(map(len, arrays)) + 1), np.int32)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result
