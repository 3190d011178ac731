r"""An optimizer's moments of one array across a growth, from the array's fusion rule.

A source's gradient g reaches the fused array, which holds ``s_i`` times its parameters and whose outputs count ``w_i``, as
``a_i g`` with ``a_i = w_i / s_i``: first moments are multiplied with ``a_i``, second ones with ``a_i²``. Between the
sources of a block-diagonal matrix, block (i, j), from j into i, has the gradient ``a_i δ_i x_jᵀ``:

* for equal copies it is the source's own, times ``a_i``: known exactly;
* for different sources the first moment starts at zero and the second, which must not (Adam's first update of an entry
  is of full size otherwise), at the product of the row means of i and the column means of j, over the geometric mean of
  the two sources' means: what a gradient of independent ``δ_i`` and ``x_j`` would have.

Source: docs/t5_fusion.md, Optimizer state; factored moments: Shazeer and Stern (2018).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.growth.linear import Rule

# Second moments are factored in the two largest axes when the smaller has at least this many entries. T5's own 128
# would leave our small networks unfactored, and only factored moments give a grown network's new entries an estimate.
MIN_DIM_TO_FACTOR = 8

Shapes = Sequence[tuple[int, ...]]
Factored = tuple[Any, Any, Any]  # v_row, v_col, v of optax.FactoredState


def gradient_factors(rule: Rule, weights: Sequence[float]) -> list[float]:
    """a_i of every source."""
    return [w / s for w, s in zip(weights, rule.scales, strict=True)]


def _axes(rule: Rule) -> tuple[int, int]:
    """(axis written, axis read) of a rule with two axes."""
    reads = rule.axes[1] if rule.reads is None else rule.reads
    return next(axis for axis in rule.axes if axis != reads), reads


def _of_copies(rule: Rule, factors: Sequence[float], moment: Array) -> Array:
    """All blocks of a matrix between equal copies: block (i, j) is ``factors[i]`` times the source's."""
    write, read = _axes(rule)
    ones = (1.0,) * len(factors)

    def along(axis: int, scales: Sequence[float], block: Array) -> Array:
        packed = tuple(pack for pack in rule.packed if pack[0] == axis)
        return Rule((axis,), tuple(scales), packed).embed([block] * len(factors))

    return along(write, factors, along(read, ones, moment))


def first_moment(rule: Rule, weights: Sequence[float], moments: Sequence[Array], *, copies: bool) -> Array:
    """The fused array's mean gradient from the sources' (the equation is the module's)."""
    factors = gradient_factors(rule, weights)
    if not rule.axes:
        return dataclasses.replace(rule, scales=tuple(weights)).embed(moments)
    if copies and len(rule.axes) == 2:
        return _of_copies(rule, factors, moments[0])
    return dataclasses.replace(rule, scales=tuple(factors)).embed(moments)


def _between(rule: Rule, moments: Sequence[Array]) -> Array:
    """Row means times column means over the geometric mean of the means, in every block."""
    if rule.packed:
        # each of the packed arrays has row and column means of its own
        (axis, count), *_ = rule.packed
        parts = zip(*(jnp.split(moment, count, axis) for moment in moments), strict=True)
        return jnp.concatenate([_between(dataclasses.replace(rule, packed=()), part) for part in parts], axis)
    write, read = _axes(rule)
    roots = [jnp.sqrt(jnp.mean(moment, axis=(write, read), keepdims=True)) for moment in moments]

    def means(kept: int, over: int) -> Array:
        found = [jnp.mean(moment, axis=over, keepdims=True) for moment in moments]
        # a source without any gradient has mean zero over mean zero: zero
        safe = [mean / jnp.where(root > 0, root, 1) for mean, root in zip(found, roots, strict=True)]
        return jnp.concatenate(safe, axis=kept)

    return means(write, read) * means(read, write)


def second_moment(rule: Rule, weights: Sequence[float], moments: Sequence[Array], *, copies: bool) -> Array:
    """The fused array's mean squared gradient from the sources' (the equation is the module's)."""
    squares = [factor**2 for factor in gradient_factors(rule, weights)]
    scaled = [square * moment for square, moment in zip(squares, moments, strict=True)]
    if not rule.axes:
        return sum(w * v for w, v in zip(weights, scaled, strict=True))  # type: ignore[return-value]
    if len(rule.axes) < 2:
        return dataclasses.replace(rule, scales=(1.0,) * len(scaled)).embed(scaled)
    if copies:
        return _of_copies(rule, squares, moments[0])
    fused = _between(rule, scaled)
    for source, take, put, _ in rule.placements([moment.shape for moment in moments]):
        fused = fused.at[put].set(scaled[source][take])
    return fused


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(axis that ``v_row`` keeps, axis that ``v_col`` keeps): optax's rule; None: not factored."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape)
    if shape[order[-2]] < MIN_DIM_TO_FACTOR:
        return None
    return int(order[-2]), int(order[-1])


def _mean_over(axis: int, kept: int, shape: tuple[int, ...], moment: Factored) -> Array:
    """A source's second moments averaged over one axis, whatever it has factored itself."""
    v_row, v_col, v = moment
    axes = factored_axes(shape)
    if axes is None:
        return jnp.mean(v, axis=axis)
    if set(axes) == {axis, kept}:
        return v_row if axes[0] == kept else v_col
    row, col = jnp.expand_dims(v_row, axes[1]), jnp.expand_dims(v_col, axes[0])
    mean = jnp.mean(row, axis=axes[0], keepdims=True)
    return jnp.mean(row * col / jnp.where(mean > 0, mean, 1), axis=axis)


def factored_moment(
    rule: Rule, weights: Sequence[float], shapes: Shapes, moments: Sequence[Factored], *, copies: bool
) -> Factored:
    """(v_row, v_col, v) of one fused array from those of its sources.

    Concatenated row and column means are estimates for all blocks, the new ones too.
    """
    placeholder = jnp.zeros((1,), moments[0][2].dtype)
    found = factored_axes(rule.fused_shape(shapes))
    if found is None:
        # every source is smaller still, so it has the whole of v
        return placeholder, placeholder, second_moment(rule, weights, [v for _, _, v in moments], copies=copies)

    squares = [factor**2 for factor in gradient_factors(rule, weights)]

    def along(kept: int, over: int) -> Array:
        parts = [_mean_over(over, kept, shape, moment) for shape, moment in zip(shapes, moments, strict=True)]
        down = lambda axis: axis - (axis > over)
        left = Rule(
            tuple(down(axis) for axis in rule.axes if axis != over),
            rule.scales,
            tuple((down(axis), count) for axis, count in rule.packed if axis != over),
            None if rule.reads in (None, over) else down(rule.reads),
        )
        if copies and len(rule.axes) == 2 and kept == _axes(rule)[1]:
            # a column of the matrix goes through the blocks of all copies that are written
            mean = sum(squares) / len(squares)
            return dataclasses.replace(left, scales=(mean,) * len(parts)).embed(parts)
        if left.axes:
            return second_moment(left, weights, parts, copies=copies)
        # the kept axis is common to all sources, and the mean goes over the entries of all of them
        sizes = [shape[over] if over in rule.axes else 1 for shape in shapes]
        return sum(n * a * part for n, a, part in zip(sizes, squares, parts, strict=True)) / sum(sizes)  # type: ignore

    row, col = found
    return along(row, col), along(col, row), placeholder
