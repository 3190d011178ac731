"""RMSNorm and LayerNorm before their scale and bias, over the whole width or over groups of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class NormKind(NamedTuple):
    """The kind of a norm: LayerNorm or RMSNorm, with its epsilon.

    Attributes:
      centred: whether the mean is subtracted (LayerNorm) or not (RMSNorm).
      epsilon: added to the variance or mean square.
    """

    centred: bool
    epsilon: float


def unit_rms(x: Array, epsilon: float, groups: tuple[int, ...] = ()) -> Array:
    """Return ``x / sqrt(mean(x²) + ε)`` along the last axis, over each group of its entries alone if there are groups.

    The mean square is in float32 at least.
    """
    return normed(x, NormKind(False, epsilon), groups)


def unit_layer(x: Array, epsilon: float, groups: tuple[int, ...] = ()) -> Array:
    """Return ``(x - mean) / sqrt(variance + ε)`` along the last axis; groups and dtype as for ``unit_rms``."""
    return normed(x, NormKind(True, epsilon), groups)


def normed(x: Array, kind: NormKind, groups: tuple[int, ...] = ()) -> Array:
    """Return ``unit_layer(x)`` or ``unit_rms(x)``, by ``kind``."""
    if len(groups) > 1:
        parts = jnp.split(x, np.cumsum(groups)[:-1].tolist(), axis=-1)
        return jnp.concatenate([normed(part, kind) for part in parts], axis=-1)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if kind.centred:
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + kind.epsilon)
    return (wide * scale).astype(x.dtype)
