r"""Off-diagonal blocks: small random values, or noise that separates equal copies without changing the function.

After self-fusion every vector of activations is ``(x, ..., x)``. A matrix that reads it may get any noise N whose blocks
``N_ab``, out of copy b into copy a, cancel in every row of blocks:

.. math:: \sum_b N_{ab} = 0 \quad\Rightarrow\quad (W + N)\,(x, \dots, x) = W (x, \dots, x)

For two copies this is ``[[W + N_1, -N_1], [-N_2, W + N_2]]``. All activations stay equal copies, so every matrix may have
noise of its own; the gradients of the copies separate as soon as the rows of blocks differ. Source: docs/t5_fusion.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.fusion.linear import FusionMap, Params, Rule

OffDiagonal = Literal["zero", "random", "antisymmetric"]
OFF_DIAGONAL: tuple[OffDiagonal, ...] = ("zero", "random", "antisymmetric")


def _cancelling(drawn: np.ndarray, rule: Rule) -> np.ndarray:
    """The draw less its mean over the copies that the array reads, at the standard deviation that it had."""
    axis, copies = rule.reads, len(rule.scales)
    assert axis is not None
    blocks = drawn.reshape(*drawn.shape[:axis], copies, -1, *drawn.shape[axis + 1 :])
    centred = blocks - blocks.mean(axis=axis, keepdims=True)
    return (math.sqrt(copies / (copies - 1)) * centred).reshape(drawn.shape)


def _between(drawn: np.ndarray, rule: Rule, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """The draw with zeros where a source's own block stands."""
    for placement in rule.placements(shapes):
        drawn[placement.put] = 0
    return drawn


def with_noise(
    mapping: FusionMap, fused: Params, kind: Literal["random", "antisymmetric"], noise: float, seed: int
) -> Params:
    """The fused parameters with noise in them.

    ``"random"``: normal entries in the blocks between sources. ``"antisymmetric"``: for equal copies, normal entries that
    cancel, in all blocks of every array that reads copies; the function stays, to the rounding of the parameters' dtype.

    Args:
      mapping: of the fusion.
      fused: what it gave.
      noise: standard deviation of the noise's entries, in units of the root mean square of the sources' entries in the
        same array (each source's times its scale).
      seed: of the draws; array i draws from (seed, i) whatever the others' sizes.
    """
    leaves, treedef = jax.tree.flatten(fused)
    rules = jax.tree.leaves(mapping.rules)
    noisy = []
    for i, (rule, leaf, shapes) in enumerate(zip(rules, leaves, mapping.leaf_shapes(), strict=True)):
        if (rule.reads is None) if kind == "antisymmetric" else (len(rule.axes) < 2):
            noisy.append(leaf)
            continue
        drawn = np.random.default_rng((seed, i)).standard_normal(leaf.shape)
        drawn = _cancelling(drawn, rule) if kind == "antisymmetric" else _between(drawn, rule, shapes)
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        filled = sum(math.prod(shape) for shape in shapes)
        size: Array = noise * jnp.sqrt(jnp.sum(wide * wide) / filled)
        noisy.append((wide + size * jnp.asarray(drawn, wide.dtype)).astype(leaf.dtype))
    return jax.tree.unflatten(treedef, noisy)
