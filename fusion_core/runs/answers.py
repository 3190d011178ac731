"""A checkpoint with its tokenizer, and the text that it answers to text."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core import load_pretrained
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


def check_tokenizer(tokenizer: Tokenizer, config: T5Config, folder: pathlib.Path) -> None:
    """Raise InputError if the network lacks ids of the tokenizer, or has other special ids."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} pieces, but the network has {config.vocab_size} tokens; "
            "take the tokenizer that the network was trained with"
        )
    for piece, what, expected in (
        ("<pad>", "pad", config.pad_token_id),
        ("</s>", "end", config.eos_token_id),
    ):
        found = tokenizer.backend.token_to_id(piece)
        if found != expected:
            raise InputError(
                f"{folder}: the tokenizer's {piece} has the id {found}, but config.json says that the {what} token is "
                f"{expected}; take the tokenizer that the network was trained with"
            )
    if tokenizer.encode(["a"])[0][-1] != config.eos_token_id:
        raise InputError(
            f"{folder}: the tokenizer does not end a text with </s>, as T5's do; save it again with its template"
        )


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
    check_tokenizer(tokenizer, config, folder)
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
    size, found = min(batch, len(sources)), dict[int, str]()
    for rows in batches_by_length([len(x) for x in sources], size):
        ids = padded([sources[i] for i in rows], width_for(max(len(sources[i]) for i in rows)))
        written = generate(network.params, network.config, ids, seed=seed, rows=rows.tolist(), **options)
        before = len(found)
        found |= {int(i): network.tokenizer.decode(line) for i, line in zip(rows, written, strict=True)}
        on_batch(len(found) - before)
    return [found[i] for i in range(len(sources))]
