"""Batches of tokens to run a checkpoint on: random ones, and windows of text with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_core.checkpoints.tokenizers import check_fits
from fusion_core.errors import InputError
from fusion_core.models.registry import Batch, architecture
from fusion_core.text.sources import first_batches
from fusion_core.text.span_corruption import SpanCorruption
from fusion_core.text.tokenizer import Tokenizer

LENGTH = 64  # length of a window of text, in tokens


def probe(config: Any, seed: int) -> Batch:
    """Return a small batch of random tokens, with ``targets``.

    A T5's has ``encoder_ids`` and ``decoder_ids``, [2, 16] and [2, 12]; a decoder's has ``ids``, [2, 16].
    """
    files, rng = architecture(config).files, np.random.default_rng(seed)
    assert files is not None
    if files.spans:
        return _shifted(config, *(rng.integers(0, config.vocab_size, (2, n), np.int32) for n in (16, 12)))
    length = min(16, files.longest(config) or 16)
    return _next_tokens(rng.integers(0, config.vocab_size, (2, length + 1), np.int32))


def text_windows(texts: Sequence[str], tokenizer: Tokenizer, config: Any, rows: int, seed: int) -> Batch:
    """Return a batch of at most ``rows`` windows of text: with spans left out for a T5, else one after the other.

    Args:
      texts: documents.
      tokenizer: tokenizer of the network.
      config: configuration of the network.
      rows: largest number of windows, which are drawn with ``seed``.
      seed: seed of the windows and of the spans.

    Raises:
      InputError: the tokenizer is not the network's, or there is too little text.
    """
    files = architecture(config).files
    assert files is not None
    check_fits(tokenizer, config, "the text cannot be tokenized for this network")
    if files.spans:
        return _spans(texts, tokenizer, config, rows, seed)
    stream = np.concatenate(tokenizer.encode(list(texts))).astype(np.int32)
    length = min(LENGTH, len(stream) - 1, files.longest(config) or LENGTH)
    if length < 1:
        raise InputError(f"the text has {len(stream)} tokens, but predicting the next one needs two; give more text")
    windows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length]
    return _next_tokens(windows[np.random.default_rng(seed).permutation(len(windows))[:rows]])


def _spans(texts: Sequence[str], tokenizer: Tokenizer, config: Any, rows: int, seed: int) -> Batch:
    documents = tokenizer.encode_ended(list(texts))
    # short texts make short windows
    source = max(8, min(LENGTH, sum(map(len, documents)) // 2))
    data = SpanCorruption.from_documents(documents, tokenizer, source, seed)
    (batch,) = first_batches(data, min(rows, len(data.windows)), 1)
    return _shifted(config, batch["encoder_ids"], batch["targets"])


def _shifted(config: Any, encoder_ids: np.ndarray, targets: np.ndarray) -> Batch:
    start = np.full_like(targets[:, :1], config.decoder_start_token_id)
    decoder_ids = np.concatenate([start, targets[:, :-1]], axis=1)
    return {"encoder_ids": encoder_ids, "decoder_ids": decoder_ids, "targets": targets}


def _next_tokens(ids: np.ndarray) -> Batch:
    return {"ids": ids[:, :-1], "targets": ids[:, 1:]}
