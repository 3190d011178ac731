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

from fusion_core.growth.linear import FusionMap, Params, Rule

OffDiagonal = Literal["zero", "random", "antisymmetric"]
OFF_DIAGONAL: tuple[OffDiagonal, ...] = ("zero", "random", "antisymmetric")


def copy_generators(seed: int, array: int, copies: int) -> list[np.random.Generator]:
    """One generator a copy for the noise of array number ``array``: what reads copy b is drawn from (seed, array, b).

    So the noise can be drawn a few rows at a time along any axis, and is the same whatever their number.
    """
    return [np.random.default_rng((seed, array, copy)) for copy in range(copies)]


def cancelling(blocks: np.ndarray) -> np.ndarray:
    """Draws [copies, ...], less their mean over the copies, at the standard deviation that they had; float64."""
    copies = len(blocks)
    wide = blocks.astype(np.float64)
    return math.sqrt(copies / (copies - 1)) * (wide - wide.mean(axis=0))


def _antisymmetric(shape: tuple[int, ...], rule: Rule, seed: int, array: int) -> np.ndarray:
    """The noise of one array, whose blocks along the axis that it reads sum to zero."""
    axis, copies = rule.reads, len(rule.scales)
    assert axis is not None
    block = (*shape[:axis], shape[axis] // copies, *shape[axis + 1 :])
    drawn = [random.standard_normal(block, np.float32) for random in copy_generators(seed, array, copies)]
    return np.concatenate(list(cancelling(np.stack(drawn))), axis=axis)


def _between(
    shape: tuple[int, ...], rule: Rule, shapes: Sequence[tuple[int, ...]], seed: int, array: int
) -> np.ndarray:
    """Normal numbers with zeros where a source's own block stands."""
    drawn = np.random.default_rng((seed, array)).standard_normal(shape)
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
      seed: of the draws; array i draws from (seed, i, ...) whatever the others' sizes.
    """
    leaves, treedef = jax.tree.flatten(fused)
    rules = jax.tree.leaves(mapping.rules)
    noisy = []
    for i, (rule, leaf, shapes) in enumerate(zip(rules, leaves, mapping.leaf_shapes(), strict=True)):
        if (rule.reads is None) if kind == "antisymmetric" else (len(rule.axes) < 2):
            noisy.append(leaf)
            continue
        antisymmetric = kind == "antisymmetric"
        drawn = (
            _antisymmetric(leaf.shape, rule, seed, i) if antisymmetric else _between(leaf.shape, rule, shapes, seed, i)
        )
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        filled = sum(math.prod(shape) for shape in shapes)
        size: Array = noise * jnp.sqrt(jnp.sum(wide * wide) / filled)
        noisy.append((wide + size * jnp.asarray(drawn, wide.dtype)).astype(leaf.dtype))
    return jax.tree.unflatten(treedef, noisy)
