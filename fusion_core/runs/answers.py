"""A checkpoint with its tokenizer, and the text that it answers to text."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core import load_pretrained
from fusion_core.checkpoints.tokenizers import check_fits
from fusion_core.errors import InputError
from fusion_core.models.t5 import T5Config
from fusion_core.models.t5.decoding import Decoding, generate
from fusion_core.text import Tokenizer
from fusion_core.text.examples import batches_by_length, padded, width_for


class TextNetwork(NamedTuple):
    """A T5 with its tokenizer.

    Attributes:
      params: float32.
      config: of the network.
      tokenizer: text to ids and back.
    """

    params: Any
    config: T5Config
    tokenizer: Tokenizer


def open_network(folder: pathlib.Path) -> TextNetwork:
    """Read a T5's checkpoint folder and its tokenizer.

    Raises:
      InputError: the folder is no checkpoint of a T5, or has no tokenizer that fits it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give a checkpoint folder in Hugging Face's layout")
    tokenizer = Tokenizer.load(folder)
    params, config = load_pretrained(folder)
    if not isinstance(config, T5Config):
        kind = type(config).__name__.removesuffix("Config")
        raise InputError(f"{folder} is a {kind}; this needs a T5, which reads one text and writes another")
    check_fits(tokenizer, config, str(folder))
    return TextNetwork(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), config, tokenizer)


def answer(
    network: TextNetwork,
    sources: Sequence[np.ndarray],
    how: Decoding,
    *,
    seed: int = 0,
    batch: int = 32,
    on_batch: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Return the text that the network writes for each source.

    Args:
      network: that writes.
      sources: ids, each with its end token.
      how: search or sampling.
      seed: of sampling.
      batch: sources at a time; the answers do not depend on it, up to rounding.
      on_batch: called with the number of sources just answered.
    """
    options = {name: getattr(how, name) for name in how.__dataclass_fields__}
    pad = network.config.pad_token_id
    size, found = min(batch, len(sources)), dict[int, str]()
    for rows in batches_by_length([len(x) for x in sources], size):
        ids = padded([sources[i] for i in rows], width_for(max(len(sources[i]) for i in rows)), pad)
        written = generate(network.params, network.config, ids, seed=seed, rows=rows.tolist(), **options)
        before = len(found)
        texts = (network.tokenizer.decode(line[~np.isin(line, network.config.ends)]) for line in written)
        found |= {int(i): text for i, text in zip(rows, texts, strict=True)}
        on_batch(len(found) - before)
    return [found[i] for i in range(len(sources))]
