r"""Calibrated norms: one factor per source and norm, so that each source is normalized as alone, as nearly as a constant can.

A norm of the fused network divides by the statistics of the whole stream, where source i alone would have been divided by
its own. With ``a_i`` what the common norm makes of source i's part of the stream and ``b_i`` what its own norm would
make, token by token, the scale of the part is multiplied by the least-squares factor

.. math:: c_i = \arg\min_c \sum_t |c\,a_{i,t} - b_{i,t}|^2 = \frac{\sum_t a_{i,t} \cdot b_{i,t}}{\sum_t |a_{i,t}|^2}

For RMSNorm ``a_i = (rms_i/rms) b_i``, so ``c_i · rms_i/rms`` is 1 on the mean over tokens. The result is a standard
network: the factors go into the norms' scales.

Both products depend on the mean and the variance of each source's stream alone (width d_i, mean m_i, variance v_i; m and
v of the whole stream follow). RMSNorm: ``a·b = d_i s_i / (√(s+ε) √(s_i+ε))`` and ``|a|² = d_i s_i / (s+ε)`` with the mean
square ``s_i = v_i + m_i²``; LayerNorm: ``d_i v_i / (√(v+ε) √(v_i+ε))`` and ``d_i (v_i + (m_i − m)²) / (v+ε)``. So every
source is run by itself, and the fused network not at all. Source: docs/t5_fusion.md, with what it gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.linear import Params

Path = tuple[str, ...]
Unit = Callable[[Array], Array]  # a norm, before scale and bias
# (params, batch, norm) -> logits, where norm(parts, activations, mask) gets a norm's arrays and, under "path", its keys
Pass = Callable[[Params, Any, Callable[[Params, Array, Array], Array]], Array]


class Moments(NamedTuple):
    """Of what one norm of one network sees: a value a token.

    Attributes:
      mean, variance: over the width.
      counts: 1 where the token counts, 0 where it is padding.
    """

    mean: Array
    variance: Array
    counts: Array


class NormKind(NamedTuple):
    """What a norm divides by.

    Attributes:
      centred: LayerNorm, which subtracts the mean; else RMSNorm.
      epsilon: added to the variance or mean square.
    """

    centred: bool
    epsilon: float


def with_paths(tree: Params, path: Path = ()) -> Params:
    """The parameters with every norm's keys beside its arrays, so that the pass says which norm it is at."""
    found: Params = {}
    for name, node in tree.items():
        if not isinstance(node, dict):
            found[name] = node
        elif "norm" in name or name.startswith("ln_"):
            found[name] = {**node, "path": (*path, name)}
        else:
            found[name] = with_paths(node, (*path, name))
    return found


def watch(params: Params, batch: Any, unit: Unit, run: Pass) -> dict[Path, Moments]:
    """Moments of every norm of a network on a batch, by the keys that lead to the norm.

    Args:
      params: of the network, as ``with_paths`` gives them.
      batch: of tokens, as ``run`` takes it; padding does not count.
      unit: its norm without scale and bias.
      run: its forward pass.
    """
    found: dict[Path, Moments] = {}

    def norm(parts: Params, x: Array, mask: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        found[parts["path"]] = Moments(wide.mean(axis=-1), wide.var(axis=-1), mask.astype(wide.dtype))
        scaled = unit(x) * parts["weight"]
        return scaled + parts["bias"] if "bias" in parts else scaled

    run(params, batch, norm)
    return found


def norm_factors(
    moments: Sequence[dict[Path, Moments]], widths: Sequence[int], kind: NormKind
) -> dict[Path, tuple[float, ...]]:
    """The factors c of every norm, a value a source.

    Args:
      moments: of each source, on the same batch.
      widths: of the sources' streams.
      kind: of the norms.

    Raises:
      InputError: moments are traced, or a source's stream vanishes on the batch.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(list(moments))):
        raise InputError("calibrated norms are fitted to numbers; call fuse(norm='calibrated') outside jax.jit")
    sizes = np.asarray(widths, np.float64).reshape(-1, *[1] * np.ndim(next(iter(moments[0].values())).mean))
    factors = {}
    for path in moments[0]:
        mean, variance = (np.asarray([getattr(m[path], n) for m in moments], np.float64) for n in ("mean", "variance"))
        counts = np.asarray(moments[0][path].counts, np.float64)
        square = variance + mean**2
        if kind.centred:
            common = np.average(mean, axis=0, weights=sizes.ravel())
            own, seen = variance, square - 2 * common * mean + common**2
        else:
            own, seen = square, square
        whole = (sizes * seen).sum(axis=0) / sizes.sum() + kind.epsilon
        both = sizes * own / np.sqrt(whole * (own + kind.epsilon)) * counts
        alone = sizes * seen / whole * counts
        axes = tuple(range(1, both.ndim))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = both.sum(axis=axes) / alone.sum(axis=axes)
        if not np.isfinite(values).all():
            raise InputError(
                f"the calibration batch gives no factors for the norm {'.'.join(path)} (they are {values.tolist()}); "
                "give a batch of tokens that are not padding"
            )
        factors[path] = tuple(values.tolist())
    return factors
