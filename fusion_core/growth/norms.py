r"""Norms of a fused network: over the whole stream (plain), over each source's part (grouped), or calibrated.

Calibrated norms are plain ones with one factor per source and norm, by which each source is normalized as nearly as it
would be alone.

A norm of the fused network divides by the statistics of the whole stream, while source i alone is divided by its own. Let
``a_i`` be the common norm's output for source i's part of the stream and ``b_i`` that of its own norm, token by token. The
scale of the part is multiplied by the least-squares factor

.. math:: c_i = \arg\min_c \sum_t |c\,a_{i,t} - b_{i,t}|^2 = \frac{\sum_t a_{i,t} \cdot b_{i,t}}{\sum_t |a_{i,t}|^2}

For RMSNorm ``a_i = (rms_i/rms) b_i``, so ``c_i · rms_i/rms`` is 1 on the mean over tokens. The result is a standard
network: the factors go into the norms' scales.

Both products depend on the mean and the variance of each source's stream alone (width d_i, mean m_i, variance v_i; m and
v of the whole stream follow). RMSNorm: ``a·b = d_i s_i / (√(s+ε) √(s_i+ε))`` and ``|a|² = d_i s_i / (s+ε)`` with the mean
square ``s_i = v_i + m_i²``; LayerNorm: ``d_i v_i / (√(v+ε) √(v_i+ε))`` and ``d_i (v_i + (m_i − m)²) / (v+ε)``. So every
source is run by itself, and the fused network not at all. Source, and measured gains: docs/t5_fusion.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.maps import GrowthMap
from fusion_core.models.norms import NormKind, normed
from fusion_core.models.registry import architecture
from fusion_core.models.units import Config, Params, by_name, is_norm

NormMode = Literal["plain", "calibrated", "grouped"]
NORM_MODES: tuple[NormMode, ...] = ("plain", "calibrated", "grouped")
Path = tuple[str, ...]


class Moments(NamedTuple):
    """Statistics of the inputs of one norm of one network, one value for each token.

    Attributes:
      mean, variance: mean and variance over the width.
      counts: 1 where the token counts, 0 where it is padding.
    """

    mean: Array
    variance: Array
    counts: Array


def with_paths(tree: Params, path: Path = ()) -> Params:
    """Return the parameters with every norm's keys beside its arrays under "path", by which a pass names its norms."""
    found: Params = {}
    for name, node in tree.items():
        if not isinstance(node, dict):
            found[name] = node
        elif is_norm(name):
            found[name] = {**node, "path": (*path, name)}
        else:
            found[name] = with_paths(node, (*path, name))
    return found


def norm_moments(params: Params, config: Config, batch: Any) -> dict[Path, Moments]:
    """Return the ``Moments`` of every norm of one network on a batch, by the keys that lead to the norm.

    Args:
      params: parameters, as ``with_paths`` returns them.
      config: configuration of the network.
      batch: tokens, as for ``fusion_core.calibrate``.
    """
    record, found = architecture(config), {}
    assert record.norm is not None
    assert record.run is not None
    kind = record.norm(config)

    def norm(parts: Params, x: Array, mask: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        found[parts["path"]] = Moments(wide.mean(axis=-1), wide.var(axis=-1), mask.astype(wide.dtype))
        scaled = normed(x, kind, config.norm_groups) * parts["weight"]
        return scaled + parts["bias"] if "bias" in parts else scaled

    record.run(params, config, batch, norm)
    return found


def calibrated(mapping: GrowthMap, configs: Sequence[Config], moments: Sequence[dict[Path, Moments]]) -> GrowthMap:
    """Return the fusion map whose norms' scales are fitted to the ``norm_moments`` of each source on one batch.

    A LayerNorm's bias is added after the division, so it keeps its scale.
    """
    record = architecture(mapping.config)
    assert record.norm is not None
    assert record.stream is not None
    factors = norm_factors(moments, [getattr(c, record.stream) for c in configs], record.norm(mapping.config))
    named = {".".join((*path, "weight")): c for path, c in factors.items()}
    rules = [r if (c := named.get(name)) is None else r.rescaled(c) for name, r in by_name(mapping.rules).items()]
    return dataclasses.replace(mapping, rules=jax.tree.unflatten(jax.tree.structure(mapping.rules), rules))


def norm_factors(
    moments: Sequence[dict[Path, Moments]], widths: Sequence[int], kind: NormKind
) -> dict[Path, tuple[float, ...]]:
    """Return the factors c of every norm, one for each source.

    Args:
      moments: moments of each source, on the same batch.
      widths: widths of the sources' streams.
      kind: kind of the norms.

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
