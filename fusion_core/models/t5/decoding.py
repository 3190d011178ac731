"""Decoding of a T5, greedy, by sampling or by beam search, compiled once for each shape and set of options."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fusion_core.errors import InputError
from fusion_core.models.t5.beams import EarlyStopping, beam_search, candidates
from fusion_core.models.t5.cache import Layers, empty_cache, next_logits, remember
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import Params

Method = Literal["greedy", "sample", "beam"]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Settings by which tokens are chosen.

    Attributes:
      max_length: largest number of tokens of an answer, the end token included.
      method: ``"greedy"`` takes the most probable token each time, ``"sample"`` draws, ``"beam"`` is ``beam_search``.
      temperature: divisor of the logits of samples, above 0.
      top_k: samples are drawn from the k most probable tokens; if 0, from all.
      top_p: samples are drawn from the fewest most probable tokens that together have at least this probability.
      beams: number of sequences that a beam search keeps.
      length_penalty, early_stopping: see ``beam_search``.

    Raises:
      InputError: a value is out of its range, or has no meaning for the method.
    """

    max_length: int
    method: Method = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"the method is {self.method!r}; there are {', '.join(get_args(Method))}")
        if self.max_length < 1:
            raise InputError(f"max_length is {self.max_length}; it must be at least 1")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(
                f"the temperature is {self.temperature}; it must be positive (greedy decoding is its limit 0)"
            )
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; it must be positive, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.beams < 1:
            raise InputError(f"beams is {self.beams}; it must be at least 1")
        if not math.isfinite(self.length_penalty):
            raise InputError(f"the length penalty is {self.length_penalty}; it must be a finite number")
        if self.early_stopping not in (True, False, "never"):
            raise InputError(f"early_stopping is {self.early_stopping!r}; it must be true, false or 'never'")
        if self.method != "sample" and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise InputError(
                f"temperature, top_k and top_p have no meaning for the method {self.method!r}; take 'sample', or leave them out"
            )
        if self.method != "beam" and (self.beams, self.length_penalty, self.early_stopping) != (1, 1.0, False):
            raise InputError(
                f"beams, length_penalty and early_stopping have no meaning for the method {self.method!r}; "
                "take 'beam', or leave them out"
            )


def restricted(logits: Float[Array, "*rows vocabulary"], how: Decoding) -> Float[Array, "*rows vocabulary"]:
    """Return the logits divided by the temperature, −∞ at the tokens that ``top_k``, then ``top_p``, leave out.

    Tokens as probable as the last one that ``top_k`` keeps are kept too.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / how.temperature
    vocabulary = logits.shape[-1]
    if 0 < how.top_k < vocabulary:
        least = jax.lax.top_k(logits, how.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if how.top_p < 1:
        order = jnp.argsort(-logits, axis=-1)
        falling = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        before = jnp.cumsum(falling, axis=-1) - falling  # probability of all tokens that are more probable
        kept_in_order = (before < how.top_p).at[..., 0].set(True)
        kept = jnp.take_along_axis(kept_in_order, jnp.argsort(order, axis=-1), axis=-1)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


class _Written(NamedTuple):
    position: Array
    ids: Array  # [B, L]
    ended: Array  # [B]
    cache: Layers


def decode(
    params: Params,
    config: T5Config,
    encoder_ids: Int[Array, "batch source"],
    how: Decoding,
    rows: Int[Array, " batch"],
    seed: Int[Array, ""],
) -> Int[Array, "batch length"]:
    """Return what ``generate`` does; to be jitted with ``config`` and ``how`` static."""
    length, batch = how.max_length, encoder_ids.shape[0]
    memory = remember(params, config, encoder_ids, encoder_ids != config.pad_token_id, length)
    if how.method == "beam":
        options = {"beams": how.beams, "length_penalty": how.length_penalty, "early_stopping": how.early_stopping}
        return beam_search(params, config, memory, length=length, **options)[0][:, 0]  # type: ignore[arg-type]
    # one key a row: a text's samples do not depend on the others in its batch
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(rows)

    def choose(logits: Array, position: Array) -> Array:
        if how.method == "greedy":
            return jnp.argmax(logits, axis=-1)
        draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row)
        return jax.vmap(draw)(keys, restricted(logits, how))

    def one(state: _Written) -> _Written:
        t = state.position
        before = jax.lax.dynamic_index_in_dim(state.ids, jnp.maximum(t - 1, 0), axis=1, keepdims=False)
        token = jnp.where(t == 0, config.decoder_start_token_id, before)
        logits, cache = next_logits(params, config, memory, state.cache, token[:, None], t)
        chosen = choose(logits[:, 0], t).astype(jnp.int32)
        chosen = jnp.where(state.ended, config.pad_token_id, chosen)
        ids = jax.lax.dynamic_update_slice_in_dim(state.ids, chosen[:, None], t, axis=1)
        return _Written(t + 1, ids, state.ended | jnp.isin(chosen, jnp.asarray(config.ends)), cache)

    start = _Written(
        position=jnp.zeros((), jnp.int32),
        ids=jnp.full((batch, length), config.pad_token_id, jnp.int32),
        ended=jnp.zeros(batch, bool),
        cache=empty_cache(params, config, batch, 1, length),
    )
    return jax.lax.while_loop(lambda s: (s.position < length) & ~jnp.all(s.ended), one, start).ids


_decode = jax.jit(decode, static_argnames=("config", "how"))


def generate(
    params: Params,
    config: T5Config,
    encoder_ids: Any,
    *,
    max_length: int,
    method: Method = "greedy",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    seed: int = 0,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Return the decoder's answers to a batch of sources.

    Compiled once for every shape of ``encoder_ids`` and every set of options; the loop ends when all rows have ended.

    Args:
      params, config: the network; its norms may be grouped.
      encoder_ids: integers [batch, source]; the pad id is masked.
      max_length ... early_stopping: see ``Decoding``.
      seed: seed of samples. A row's samples depend on the seed, the row's number, its source and the network alone.
      rows: numbers of the rows, if the batch is a part of a longer list; if None, 0, 1, 2, ...

    Returns:
      int32 [batch, max_length]: the tokens after the start token, the end token included, padding after it.

    Raises:
      InputError: as ``Decoding``; an id is not in the vocabulary; there are more beams than tokens; the seed is out of
        range.
    """
    how = Decoding(max_length, method, temperature, top_k, top_p, beams, length_penalty, early_stopping)
    ids = np.asarray(encoder_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"encoder_ids are {ids.dtype}{list(ids.shape)}; they must be integers [batch, source]")
    if ids.size and not 0 <= ids.min() <= ids.max() < config.vocab_size:
        raise InputError(f"encoder_ids range from {ids.min()} to {ids.max()}, but there are {config.vocab_size} tokens")
    if candidates(config, beams) > config.vocab_size:
        raise InputError(
            f"{beams} beams need {candidates(config, beams)} tokens, but the vocabulary has {config.vocab_size}; take fewer"
        )
    if not 0 <= seed < 2**31:
        raise InputError(f"the seed is {seed}; it must be from 0 to 2**31 - 1")
    if not ids.size:
        return np.full((ids.shape[0], max_length), config.pad_token_id, np.int32)
    numbers = jnp.asarray(range(len(ids)) if rows is None else rows, jnp.int32)
    out = _decode(params, config, jnp.asarray(ids, jnp.int32), how, numbers, jnp.asarray(seed, jnp.int32))
    return np.asarray(out)
