r"""Calibrated norms: one factor per source and norm, so that each source is normalized as alone, as nearly as a constant can.

A norm of the fused network divides by the statistics of the whole stream, where source i alone would have been divided by
its own. With ``a_i`` what the common norm makes of source i's part of the stream and ``b_i`` what its own norm would
make, token by token, the scale of the part is multiplied by the least-squares factor

.. math:: c_i = \arg\min_c \sum_t |c\,a_{i,t} - b_{i,t}|^2 = \frac{\sum_t a_{i,t} \cdot b_{i,t}}{\sum_t |a_{i,t}|^2}

For RMSNorm ``a_i = (rms_i/rms) b_i``, so ``c_i · rms_i/rms`` is 1 on the mean over tokens. The result is a standard
network: the factors go into the norms' scales. Source: docs/t5_fusion.md, with what it gains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.fusion.linear import Params

Path = tuple[str, ...]
# (activations, groups) -> normed activations, before scale and bias
Unit = Callable[[Array, tuple[int, ...]], Array]
# (params, batch, norm) -> logits, where norm(parts, activations, mask) gets a norm's arrays and, under "path", its keys
Pass = Callable[[Params, Any, Callable[[Params, Array, Array], Array]], Array]


def _with_paths(tree: Params, path: Path = ()) -> Params:
    """The parameters with every norm's keys beside its arrays, so that the pass says which norm it is at."""
    found: Params = {}
    for name, node in tree.items():
        if not isinstance(node, dict):
            found[name] = node
        elif "norm" in name or name.startswith("ln_"):
            found[name] = {**node, "path": (*path, name)}
        else:
            found[name] = _with_paths(node, (*path, name))
    return found


def norm_factors(
    params: Params, batch: Any, groups: tuple[int, ...], unit: Unit, run: Pass
) -> dict[Path, tuple[float, ...]]:
    """The factors c of every norm, by the keys that lead to it; a value a source.

    The pass runs with every source normalized alone, so that the norms see the streams of the sources themselves.

    Args:
      params: of the fused network, uncalibrated.
      batch: of tokens, as ``run`` takes it; padding does not count.
      groups: the sources' widths.
      unit: the norm without its scale.
      run: the forward pass.

    Raises:
      InputError: params are traced, or a source's stream vanishes on the batch.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        raise InputError("calibrated norms are fitted to numbers; call fuse(norm='calibrated') outside jax.jit")
    cuts = np.cumsum(groups)[:-1].tolist()

    def fit(params: Params) -> dict[Path, Array]:
        found: dict[Path, Array] = {}

        def norm(parts: Params, x: Array, mask: Array) -> Array:
            common, own = unit(x, ()), unit(x, groups)
            tokens = mask[..., None].astype(x.dtype)
            pairs = zip(jnp.split(tokens * common, cuts, axis=-1), jnp.split(own, cuts, axis=-1), strict=True)
            found[parts["path"]] = jnp.stack([jnp.vdot(a, b) / jnp.vdot(a, a) for a, b in pairs])
            return own * parts["weight"] + parts.get("bias", 0)

        run(_with_paths(params), batch, norm)
        return found

    factors = {path: np.asarray(c).tolist() for path, c in jax.jit(fit)(params).items()}
    for path, values in factors.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"the calibration batch gives no factors for the norm {'.'.join(path)} (they are {values}); "
                "give a batch of tokens that are not padding"
            )
    return {path: tuple(values) for path, values in factors.items()}
