"""Multi-head attention that holds the logits of all pairs of positions at once, of a chunk of queries at a time, or none.

Suffixes name axes: B batch, T queries, S keys, D d_model, H heads, K d_kv.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.models.t5.compute import QUERY_CHUNK
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.layers import Key, Params, broadcast_over, dropout, wide_dtype
from fusion_core.models.t5.products import Product, product

MASKED = -1e9  # added to the logits of masked pairs; finite, so that a fully masked row stays finite


class PairBias(NamedTuple):
    """Position bias and mask of attention, in small parts: no array has the axes batch, queries and keys together."""

    position_HxTxS: Array | None  # with MASKED above the diagonal if attention is causal
    query_segments_BxT: Array | None  # integers; if None, all are 1
    key_segments_BxS: Array | None  # a query attends to the keys of its own segment; if None, to all keys


def pair_bias(bias: PairBias, batch: int) -> Array | None:
    """Return the sum of the parts, [B, H or 1, T or 1, S]; None if there are none."""
    total = None if bias.position_HxTxS is None else broadcast_over(batch, bias.position_HxTxS)
    if bias.key_segments_BxS is None:
        return total
    queries = jnp.ones((1, 1), jnp.int32) if bias.query_segments_BxT is None else bias.query_segments_BxT
    seen = queries[:, None, :, None] == bias.key_segments_BxS[:, None, None, :]
    mask = jnp.where(seen, 0.0, MASKED).astype(jnp.float32 if total is None else total.dtype)
    return mask if total is None else total + mask


def _mixed(q_BxTxHxK: Array, k_BxSxHxK: Array, v_BxSxHxK: Array, bias: Array | None, rate: float, key: Key) -> Array:
    """Return ``softmax(q kᵀ + bias) v``; T5 does not divide the logits by √K."""
    logits = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxSxHxK)
    wide = logits.astype(wide_dtype(logits.dtype))  # bf16 loses the tail of the softmax
    if bias is not None:
        wide = wide + bias
    probabilities = dropout(jax.nn.softmax(wide, axis=-1), rate, key).astype(v_BxSxHxK.dtype)
    return jnp.einsum("bhts,bshk->bthk", probabilities, v_BxSxHxK)


def _mixed_in_chunks(
    q_BxTxHxK: Array, k_BxSxHxK: Array, v_BxSxHxK: Array, bias: PairBias, rate: float, key: Key
) -> Array:
    """Return ``_mixed``, computed one chunk of queries at a time; the backward pass recomputes each chunk's pairs.

    With chunks of queries rather than of keys every row's softmax is whole: no running maximum is needed, the scan has
    no carry, and every mode of differentiation works.
    """
    batch, length = q_BxTxHxK.shape[:2]
    n = -(-length // QUERY_CHUNK)
    size = -(-length // n)

    def chunks(x: Array | None, axis: int) -> Array | None:
        """Return x with axis T padded with zeros and split into a leading axis of n chunks."""
        if x is None:
            return None
        filled = jnp.pad(x, [(0, n * size - length if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(filled.reshape(*x.shape[:axis], n, size, *x.shape[axis + 1 :]), axis, 0)

    @jax.checkpoint
    def one(parts: tuple[Array, Array | None, Array | None, Key]) -> Array:
        q, position, segments, chunk_key = parts
        whole = pair_bias(PairBias(position, segments, bias.key_segments_BxS), batch)
        return _mixed(q, k_BxSxHxK, v_BxSxHxK, whole, rate, chunk_key)

    keys = None if key is None else jax.random.split(key, n)
    parts = (chunks(q_BxTxHxK, 1), chunks(bias.position_HxTxS, 1), chunks(bias.query_segments_BxT, 1), keys)
    mixed = jnp.moveaxis(jax.lax.map(one, parts), 0, 1)
    return mixed.reshape(batch, n * size, *mixed.shape[3:])[:, :length]


def _mixed_whole(q_BxTxHxK: Array, k_BxSxHxK: Array, v_BxSxHxK: Array, bias: PairBias, rate: float, key: Key) -> Array:
    """Return ``_mixed`` with the parts of the bias added here, so that their gradient is summed over the batch at once."""
    return _mixed(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, pair_bias(bias, len(q_BxTxHxK)), rate, key)


def _mixed_fused(q_BxTxHxK: Array, k_BxSxHxK: Array, v_BxSxHxK: Array, bias: PairBias, rate: float, key: Key) -> Array:
    """Return ``_mixed`` by one kernel, cuDNN's, that holds no logits; by JAX's own form of it where there is no GPU.

    Keys are masked by their number in each row, which is right where a row's padding comes last (``padding_last``).
    """
    if bias.query_segments_BxT is not None:
        raise InputError("Compute.attention is 'fused', which takes no packed rows; use 'chunked' for them")
    if key is not None and rate:
        raise InputError(
            f"Compute.attention is 'fused', which drops nothing, but dropout_rate is {rate}; use 'chunked'"
        )
    position, keys = bias.position_HxTxS, bias.key_segments_BxS
    (batch, queries), sources = q_BxTxHxK.shape[:2], k_BxSxHxK.shape[1]
    lengths = jnp.full(batch, sources, jnp.int32) if sources % 2 else None
    if keys is not None:
        lengths = jnp.maximum(jnp.sum(keys == 1, axis=1, dtype=jnp.int32), 1)  # no kernel for rows without any key

    def even(x: Array, *axes: int) -> Array:
        # the kernel's lengths are even: one more query, which is cut off, and one more key, beyond the number that counts
        return jnp.pad(x, [(0, x.shape[i] % 2 if i in axes else 0) for i in range(x.ndim)])

    q_BxTxHxK, k_BxSxHxK, v_BxSxHxK = (even(x, 1) for x in (q_BxTxHxK, k_BxSxHxK, v_BxSxHxK))
    if position is not None:
        position = even(position[None], 2, 3).astype(q_BxTxHxK.dtype)
    mixed = jax.nn.dot_product_attention(
        q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, position, scale=1.0, key_value_seq_lengths=lengths,
        implementation="cudnn" if jax.default_backend() == "gpu" else "xla",
    )  # fmt: skip
    return mixed[:, :queries]


def padding_last(x_BxSxD: Array, segments_BxS: Array) -> Array:
    """Return x, and nan in rows whose padding does not come last: fused attention masks keys by their number alone."""
    seen = segments_BxS == 1
    last = jnp.all(seen[:, 1:] <= seen[:, :-1], axis=1)
    return jnp.where(last[:, None, None], x_BxSxD, jnp.nan)


WAYS = {"plain": _mixed_whole, "chunked": _mixed_in_chunks, "fused": _mixed_fused}


def attention(
    weights: Params,
    config: T5Config,
    x_BxTxD: Array,
    memory_BxSxD: Array | None,
    bias: Array | PairBias | None,
    key: Key = None,
    multiply: Product = product,
    way: str = "chunked",
) -> Array:
    r"""Return multi-head attention of x to itself, or to ``memory``.

    .. math:: \sum_h \mathrm{softmax}\big(x W_{q,h}^T W_{k,h} m^T + b_h\big)\, m W_{v,h}^T W_{o,h}^T

    with m the memory, or x.

    Args:
      weights: matrices q, k and v, [inner, D], and o, [D, inner].
      config: the network's configuration.
      x_BxTxD: activations that give the queries.
      memory_BxSxD: activations that give keys and values; if None, x.
      bias: position bias and mask b. If an array, broadcastable to [B, H, T, S], all pairs are held at once; if a
        ``PairBias``, as ``way`` says.
      key: random key with which attention probabilities are dropped at ``config.dropout_rate``; if None, none are.
      multiply: product of activations and weights.
      way: ``Compute.attention``.

    Raises:
      InputError: ``way`` is "fused", and the batch is packed or to be dropped from.

    Source: Raffel et al. (2020), section 2.1; Vaswani et al. (2017), section 3.2, without the division by √K.
    """
    heads, width = config.num_heads, config.d_kv
    q_w, k_w, v_w = (weights[n]["weight"] for n in "qkv")

    def projected(x: Array, *matrices: Array) -> Iterator[Array]:
        # on a GPU XLA joins small products itself; large ones, joined, have to be copied apart
        if jax.default_backend() == "gpu":
            flat: list[Array] = [multiply(x, matrix) for matrix in matrices]
        else:  # one product for all matrices with the same input: three small ones cost more than a large one
            flat = jnp.split(multiply(x, jnp.concatenate(matrices)), len(matrices), axis=-1)
        return (part.reshape(*part.shape[:2], heads, width) for part in flat)

    if memory_BxSxD is None:
        q, k, v = projected(x_BxTxD, q_w, k_w, v_w)
    else:
        (q,), (k, v) = projected(x_BxTxD, q_w), projected(memory_BxSxD, k_w, v_w)
    mix: Any = WAYS[way] if isinstance(bias, PairBias) else _mixed
    mixed = mix(q, k, v, bias, config.dropout_rate, key)
    return multiply(mixed.reshape(*mixed.shape[:2], heads * width), weights["o"]["weight"])
