"""Layers that decoder-only transformers share: causal attention, linear maps in both orientations, initialisation.

Suffixes name axes: B batch, T length, H query heads, G key and value heads, R = H/G, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusion_core.models.t5.attention import MASKED
from fusion_core.models.units import Axis, Layout, Params, by_name, is_norm

DEVIATION = 0.02  # of a weight from scratch, as in most releases
Norm = Callable[[Params, Array], Array]  # (a norm's arrays, activations) -> normed activations


def causal_attention(q_BxTxHxK: Array, k_BxTxGxK: Array, v_BxTxGxK: Array) -> Float[Array, "batch length inner"]:
    """Return softmax attention to the positions up to one's own, logits divided by √K; R query heads share a key head."""
    batch, length, heads, width = q_BxTxHxK.shape
    q = q_BxTxHxK.reshape(batch, length, k_BxTxGxK.shape[2], -1, width)
    logits = jnp.einsum("btgrk,bsgk->bgrts", q, k_BxTxGxK) * width**-0.5
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # bf16 loses the tail of the softmax
    wide = jnp.where(np.tril(np.ones((length, length), bool)), wide, MASKED)
    mixed = jnp.einsum("bgrts,bsgk->btgrk", jax.nn.softmax(wide, axis=-1).astype(q.dtype), v_BxTxGxK)
    return mixed.reshape(batch, length, heads * width)


def linear(weights: Params, x: Array) -> Array:
    """Return ``W x + b``, or ``W x`` if there is no bias; W is out × in, as in Llama's files."""
    return x @ weights["weight"].T + weights["bias"] if "bias" in weights else x @ weights["weight"].T


def conv1d(weights: Params, x: Array) -> Array:
    """Return ``x W + b``; W is in × out, as in GPT-2's files."""
    return x @ weights["weight"] + weights["bias"]


def out_by_in(out: Axis, into: Axis, *, bias: bool) -> Params:
    """Return the layouts of ``linear``'s arrays."""
    return {"weight": Layout((out, into))} | ({"bias": Layout((out,))} if bias else {})


def in_by_out(into: Axis, out: Axis) -> Params:
    """Return the layouts of ``conv1d``'s arrays."""
    return {"weight": Layout((into, out)), "bias": Layout((out,))}


def init_normal(layouts: Params, seed: int, *, deviation: float = DEVIATION, dtype: Any = jnp.float32) -> Params:
    """Return norms that scale by one, biases at zero, all else normal with the standard deviation given."""
    named = by_name(layouts)
    drawn = [
        initial_normal(layout, (seed, i), name, deviation, dtype) for i, (name, layout) in enumerate(named.items())
    ]
    return jax.tree.unflatten(jax.tree.structure(layouts), drawn)


def initial_normal(layout: Layout, seed: tuple[int, int], name: str, deviation: float, dtype: Any) -> Array:
    """Return one array of ``init_normal``: number i has the seed (seed, i)."""
    if name.endswith(".bias"):
        return jnp.zeros(layout.shape, dtype)
    if is_norm(name):
        return jnp.full(layout.shape, 1 - layout.offset, dtype)
    normal = np.random.default_rng(seed).standard_normal(layout.shape, np.float32)
    return jnp.asarray(deviation * normal, dtype)
