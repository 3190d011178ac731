r"""Off-diagonal blocks: small random values, or noise that separates equal copies without changing the function.

After self-fusion every vector of activations is ``(x, ..., x)``. A matrix that reads it may get any noise N whose blocks
``N_ab``, out of copy b into copy a, cancel in every row of blocks:

.. math:: \sum_b N_{ab} = 0 \quad\Rightarrow\quad (W + N)\,(x, \dots, x) = W (x, \dots, x)

For two copies this is ``[[W + N_1, -N_1], [-N_2, W + N_2]]``. All activations stay equal copies, so every matrix may have
noise of its own; the gradients of the copies separate as soon as the rows of blocks differ. Source: docs/t5_fusion.md.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.growth.maps import GrowthMap, Rule
from fusion_core.growth.units import first_copies
from fusion_core.models.units import Params

OffDiagonal = Literal["zero", "random", "antisymmetric"]
OFF_DIAGONAL: tuple[OffDiagonal, ...] = ("zero", "random", "antisymmetric")
# Noise between the copies of one network, if a plan says none, in units of each array's root mean square. T5s of width 32
# that were fused with themselves ended within 0.02 nats with 0, 0.1, 0.3 and 0.5, and far higher with 2 (experiments
# after_growth_early and after_growth_late); it is there for optimizers and arithmetic with which rounding parts copies late.
SELF_FUSION_NOISE = 0.5


def copy_generators(seed: int, array: int, copies: int) -> list[np.random.Generator]:
    """Return one generator for each copy, for the noise of array number ``array``; that of copy b has seed (seed, array, b).

    So the noise can be drawn a few rows at a time along any axis, and does not depend on their number.
    """
    return [np.random.default_rng((seed, array, copy)) for copy in range(copies)]


def cancelling(blocks: np.ndarray) -> np.ndarray:
    """Return draws [copies, ...] minus their mean over the copies, rescaled to their standard deviation; float64."""
    copies = len(blocks)
    wide = blocks.astype(np.float64)
    return math.sqrt(copies / (copies - 1)) * (wide - wide.mean(axis=0))


def _antisymmetric(rule: Rule, axis: int, seed: int, array: int) -> np.ndarray:
    """Return the noise of one array, whose blocks along the axis that it reads sum to zero."""
    copies = rule.copies_read
    block = (*rule.shape[:axis], rule.shape[axis] // copies, *rule.shape[axis + 1 :])
    drawn = [random.standard_normal(block, np.float32) for random in copy_generators(seed, array, copies)]
    return np.concatenate(list(cancelling(np.stack(drawn))), axis=axis)


def _between(rule: Rule, seed: int, array: int) -> np.ndarray:
    """Return normal numbers, with zeros in the sources' own blocks."""
    drawn = np.random.default_rng((seed, array)).standard_normal(rule.shape)
    for placement in rule.placements():
        drawn[placement.put] = 0
    return drawn


def _root_mean_square(array: Array, entries: Any) -> Array:
    """Return √(Σ x² / entries), also where the squares of all entries are infinite or 0 in the array's dtype."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(array), initial=0.0))
    small = jnp.ldexp(array, -exponent)  # exact
    return jnp.ldexp(jnp.sqrt(jnp.sum(small * small) / entries), exponent)


def with_noise(
    mapping: GrowthMap, grown: Params, kind: Literal["random", "antisymmetric"], noise: float, seed: int
) -> Params:
    """Return the grown parameters with noise in them, array by array (``noisy``, which has the arguments)."""
    leaves, treedef = jax.tree.flatten(grown)
    pairs = enumerate(zip(jax.tree.leaves(mapping.rules), leaves, strict=True))
    return jax.tree.unflatten(treedef, [noisy(rule, leaf, i, kind, noise, seed) for i, (rule, leaf) in pairs])


def noisy(rule: Rule, leaf: Array, i: int, kind: Literal["random", "antisymmetric"], noise: float, seed: int) -> Array:
    """Return a grown array with noise in it.

    Args:
      rule: its rule in the map J of a fusion, or of an operator that copies all units equally often, copy after copy.
      leaf: the array that J returned.
      i: number of the array in the network.
      kind: ``"random"``: normal entries in the blocks between sources. ``"antisymmetric"``, for equal copies: normal
        entries that cancel, in all blocks of every array that reads copies; the function stays, to the rounding of the
        parameters' dtype.
      noise: standard deviation of the noise's entries, in units of the root mean square of the sources' entries in the
        same array (each source's times its scale).
      seed: seed of the draws; those of array i have the seed (seed, i, ...) and do not depend on the other arrays.
    """
    reads = rule.axis(reads=True)
    if (reads is None) if kind == "antisymmetric" else (len(rule.own) < 2):
        return leaf
    drawn = _between(rule, seed, i) if reads is None or kind == "random" else _antisymmetric(rule, reads, seed, i)
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    size: Array = noise * _root_mean_square(wide, rule.filled)
    return (wide + size * jnp.asarray(drawn, wide.dtype)).astype(leaf.dtype)


def copy_noise(rule: Rule, array: Array, i: int, size: float, seed: int) -> Array:
    """Return a grown array with Net2Net's noise on the entries that make the second and later copies of a unit.

    The noise changes the function a little.

    Args:
      rule: the array's rule in the map J of an operator that copies units.
      array: the array that J returned.
      i: number of the array in the network.
      size: standard deviation of the noise's entries, in units of the root mean square of the array's.
      seed: seed of the draws.
    """
    number = rule.axis(reads=False)
    selection = None if number is None else rule.axes[number]
    if number is None or selection is None or array.ndim < 2:
        return array
    rng = np.random.default_rng((seed, 1, i))  # independent of the draws that chose the units
    later = first_copies(selection.taken) != np.arange(len(selection.taken))
    drawn = np.moveaxis(np.moveaxis(rng.standard_normal(array.shape), number, -1) * later, -1, number)
    wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    rms = _root_mean_square(wide, jnp.maximum(jnp.count_nonzero(wide), 1))
    return array + (size * rms).astype(array.dtype) * jnp.asarray(drawn, array.dtype)
