"""The parts of a T5's block except attention: norm, relative positions, feed-forward, dropout.

Suffixes name axes: B batch, T target length, S source length, D d_model, H heads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusion_core.models.norms import unit_rms
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.products import Product, product

Params = dict[str, Any]
Key = Array | None  # a jax.random key for dropout; if None, nothing is dropped


def wide_dtype(dtype: Any) -> jnp.dtype:
    """Return the dtype of sums and exponentials: float32, or ``dtype`` if that is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def broadcast_over(n: int, x: Array) -> Array:
    """Return ``x`` repeated along a new leading axis of length n.

    On a CPU this is a product with ones, whose gradient is a product too: XLA's sums over leading axes are slow there
    (thirty times slower than the product for the position bias of docs/t5.md's small network).
    """
    if jax.default_backend() != "cpu":
        return jnp.broadcast_to(x, (n, *x.shape))
    return (jnp.ones((n, 1), x.dtype) @ x.reshape(1, -1)).reshape(n, *x.shape)


def rms_norm(weight_D: Array, x_BxTxD: Array, epsilon: float, groups: tuple[int, ...] = ()) -> Array:
    """Return ``unit_rms(x) · w``; no mean is subtracted, no bias added."""
    batch, length, width = x_BxTxD.shape
    scales = broadcast_over(batch * length, weight_D).reshape(batch, length, width)
    return unit_rms(x_BxTxD, epsilon, groups) * scales


def _buckets(distance: np.ndarray, config: T5Config, *, bidirectional: bool) -> np.ndarray:
    """Return the bucket of every distance (key position − query position)."""
    buckets, farthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    result = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        result += (distance > 0) * buckets
        distance = np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    exact = buckets // 2
    # float32, as in the reference: the bucket of a distance on a boundary depends on the rounding
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(farthest / exact)
    )
    logarithmic = exact + (ratio * (buckets - exact)).astype(distance.dtype)
    return result + np.where(distance < exact, distance, np.minimum(logarithmic, buckets - 1))


def relative_buckets(queries: int, keys: int, config: T5Config, *, bidirectional: bool) -> np.ndarray:
    """Return the buckets of the distances (key position − query position), an integer matrix [queries, keys].

    Half of the buckets hold one distance each, the others ranges that grow logarithmically up to
    ``relative_attention_max_distance``. If bidirectional, the upper half of the buckets is for keys after the query;
    if causal, keys after the query share bucket 0.

    Source: Raffel et al. (2020), section 2.1; same numbers as the reference implementation.
    """
    return _buckets(np.arange(keys)[None, :] - np.arange(queries)[:, None], config, bidirectional=bidirectional)


def position_bias(weight: Array, buckets: np.ndarray) -> Float[Array, "heads queries keys"]:
    """Return the bias of every head for every (query, key) pair; ``weight`` is [number of buckets, heads]."""
    # A one-hot product: its gradient is a product, where a gather's would be a scatter over all pairs.
    one_hot = (buckets.reshape(-1, 1) == np.arange(weight.shape[0])).astype(np.float32)
    table = jnp.asarray(one_hot, weight.dtype) @ weight
    return table.T.reshape(weight.shape[1], *buckets.shape)


def self_bias(
    weight: Array, length: int, config: T5Config, *, bidirectional: bool
) -> Float[Array, "heads length length"]:
    """Return ``position_bias`` for all pairs of a sequence, from the biases of its 2·length − 1 distances.

    The one-hot matrix of all pairs would be a constant of 33 MB in the program for 512 tokens and 32 buckets.
    """
    distances = np.arange(1 - length, length)
    by_distance = position_bias(weight, _buckets(distances[None, :], config, bidirectional=bidirectional))
    # The row of 2·length distances, repeated and reshaped to rows one shorter, shifts by one distance from row to row.
    period = 2 * length
    heads = weight.shape[1]
    rows = jnp.broadcast_to(jnp.pad(by_distance, ((0, 0), (0, 0), (0, 1))), (heads, length, period))
    skewed = rows.reshape(heads, length * period)[:, : length * (period - 1)].reshape(heads, length, period - 1)
    return skewed[:, :, length - 1 :]


def keys_for(key: Key, places: int) -> list[Key]:
    """Return one key for each of ``places``; all None if ``key`` is None."""
    return [None] * places if key is None else list(jax.random.split(key, places))


def dropout(x: Array, rate: float, key: Key) -> Array:
    """Return x with every entry zero with probability ``rate`` and divided by ``1 - rate`` otherwise; without a key, x.

    The rate is rounded to a multiple of 2^-16 (16 random bits an entry: drawing them is dropout's main cost), and the
    factor is that of the rounded rate, so that the mean is exact.
    """
    threshold = round(rate * 2**16)
    if key is None or threshold == 0:
        return x
    kept = jax.random.bits(key, x.shape, jnp.uint16) >= threshold
    return jnp.where(kept, x * (2**16 / (2**16 - threshold)), 0)


def _relu(x: Array) -> Array:
    """Return ReLU that keeps NaN, as jax.nn.relu does, but with a Taylor series (jax.experimental.jet)."""
    return jnp.where(x <= 0, 0, x)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": _relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


def feed_forward(
    weights: Params, config: T5Config, x_BxTxD: Array, key: Key = None, multiply: Product = product
) -> Array:
    """Return ``wo f(wi x)``, or ``wo (f(wi_0 x) · wi_1 x)`` if gated; with a key, hidden units are dropped."""
    name = config.feed_forward_proj.removeprefix("gated-")
    activation = _ACTIVATIONS["gelu_new" if config.feed_forward_proj == "gated-gelu" else name]
    hidden = activation(multiply(x_BxTxD, weights["wi_0" if config.gated else "wi"]["weight"]))
    if config.gated:
        hidden = hidden * multiply(x_BxTxD, weights["wi_1"]["weight"])
    return multiply(dropout(hidden, config.dropout_rate, key), weights["wo"]["weight"])
