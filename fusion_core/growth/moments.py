r"""An optimizer's moments of one array across a growth, from the array's rule.

A small gradient g reaches the grown entries times a, with ``a_i = w_i / s_i`` for part i of a fusion (which holds ``s_i``
times its parameters and whose outputs count ``w_i``), divided by the number of copies of a unit for what makes it: first
moments are multiplied with a, second ones with a². This is exact if copies get equal gradients. Between the parts of a
block-diagonal matrix, block (i, j), from j into i, has the gradient ``a_i δ_i x_jᵀ``:

* for equal copies it is the source's own, times ``a_i``: known exactly;
* for different sources the first moment starts at zero and the second, which must not (Adam's first update of an entry
  is of full size otherwise), at the product of the row means of i and the column means of j, over the geometric mean of
  the two sources' means: what a gradient of independent ``δ_i`` and ``x_j`` would have.

The moments of what is not copied are estimates, too: those of a new layer are zero and the second moments of the layer
that it copies (their mean, if the shapes differ), those of a part that is drawn zero and the source's.

``anew`` lets the new entries (``Rule.new_entries``) forget: their first moments are zero, and their second moments are all
the mean of what they would have been, over the new entries of the array. Zero second moments would not do: the step count,
on which bias correction and decay depend, is the network's, so that the first update of Adam would be
``(1 − b₁) / √(1 − b₂) = 3.2`` times its largest, and Adafactor's, many times its usual size, would shrink those of the old
entries by its clipping of an array's RMS. Factored means are forgotten where a whole row or column is new.

Source: docs/t5_fusion.md, Optimizer state; factored moments: Shazeer and Stern (2018).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.growth.maps import Rule, along
from fusion_core.growth.units import Selection

# Second moments are factored in the two largest axes if the smaller has at least this many entries. T5's own 128
# would leave our small networks unfactored, and only factored moments give a grown network's new entries an estimate.
MIN_DIM_TO_FACTOR = 8


def gradient_factors(rule: Rule) -> list[float]:
    """Return a_i of every part."""
    return [block.weight / block.scale if block.scale else 1.0 for block in rule.blocks]


def _axes(rule: Rule) -> tuple[int, int]:
    """Return the numbers of the axis that makes units and of the one that reads them, for a rule with two axes of parts."""
    reads = rule.axis(reads=True)
    assert reads is not None
    return next(axis for axis in rule.own if axis != reads), reads


def _selection(rule: Rule, number: int) -> Selection:
    selection = rule.axes[number]
    assert selection is not None
    return selection


def _of_copies(rule: Rule, factors: Sequence[float], moment: Array) -> Array:
    """Return all blocks of a matrix between equal copies: block (i, j) is ``factors[i]`` times the source's."""
    made, _ = _axes(rule)
    part = _selection(rule, made).part
    assert part is not None
    return spread(rule, moment) * along(np.asarray(factors)[part], made, moment)


def spread(rule: Rule, array: Array) -> Array:
    """Return one part's array with each entry at all of its copies' places, unchanged, between the parts too.

    A new array of another shape is filled with the mean.
    """
    for number, axis in enumerate(rule.axes):
        if axis is not None:
            array = jnp.take(array, axis.taken, axis=number)
    return array if array.shape == rule.shape else jnp.full(rule.shape, jnp.mean(array))


def first_moment(rule: Rule, moments: Sequence[Array | None], *, copies: bool) -> Array:
    """Return the grown array's mean gradient from the parts' (the equation is the module's)."""
    factors = gradient_factors(rule)
    if rule.new:
        return jnp.zeros(rule.shape, next(m.dtype for m in moments if m is not None))
    if not rule.own and len(rule.blocks) > 1:
        return rule.placed(moments, [block.weight for block in rule.blocks], divide=None)
    if copies and len(rule.own) == 2 and moments[0] is not None and all(m is not None for m in moments):
        return _of_copies(rule, factors, moments[0])
    return rule.placed(moments, factors, divide=False)


def anew(rule: Rule, moment: Array, *, second: bool, over: int | None = None) -> Array:
    """Return a moment whose new entries have forgotten their sources: 0, or of a second moment their mean.

    Args:
      rule: of the array.
      moment: of the array, or its mean over the axis ``over``, whose entries are new if all that they are means of are.
      second: whether it is a second moment.
      over: number of that axis; if None, the moment has the array's shape.
    """
    new = rule.new_entries() if over is None else jnp.all(rule.new_entries(), axis=over)
    mean = jnp.sum(jnp.where(new, moment, 0)) / jnp.maximum(jnp.sum(new), 1)
    return jnp.where(new, mean if second else 0, moment).astype(moment.dtype)


def _between(packed: tuple[int, tuple[int, ...]], write: int, read: int, moments: Sequence[Array]) -> Array:
    """Return row means times column means over the geometric mean of the means, in every block.

    Args:
      packed: (axis, blocks of the arrays packed along it), each of which has row and column means of its own.
      write, read: numbers of the axes that make and read units.
      moments: moments of the sources.
    """
    axis, blocks = packed
    if len(blocks) > 1:
        ends = lambda length: (np.cumsum(blocks)[:-1] * length // sum(blocks)).tolist()
        parts = zip(*(jnp.split(moment, ends(moment.shape[axis]), axis) for moment in moments), strict=True)
        return jnp.concatenate([_between((axis, (1,)), write, read, part) for part in parts], axis)
    roots = [jnp.sqrt(jnp.mean(moment, axis=(write, read), keepdims=True)) for moment in moments]

    def means(kept: int, over: int) -> Array:
        found = [jnp.mean(moment, axis=over, keepdims=True) for moment in moments]
        # avoid 0/0 for a source without gradients
        safe = [mean / jnp.where(root > 0, root, 1) for mean, root in zip(found, roots, strict=True)]
        return jnp.concatenate(safe, axis=kept)

    return means(write, read) * means(read, write)


def second_moment(rule: Rule, moments: Sequence[Array | None], *, copies: bool) -> Array:
    """Return the grown array's mean squared gradient from the parts' (the equation is the module's)."""
    present = next(m for m in moments if m is not None)
    known = [present if m is None else m for m in moments]
    if rule.new:
        return spread(rule, known[0])
    squares = [factor**2 for factor in gradient_factors(rule)]
    if not rule.own and len(rule.blocks) > 1:
        return sum(b.weight * s * m for b, s, m in zip(rule.blocks, squares, known, strict=True))  # type: ignore[return-value]
    if len(rule.own) < 2:
        return rule.placed(known, squares, divide=False, power=2)
    if copies:
        return _of_copies(rule, squares, known[0])
    scaled = [square * moment for square, moment in zip(squares, known, strict=True)]
    write, read = _axes(rule)
    packed = next(((i, a.blocks) for i in (write, read) if len((a := _selection(rule, i)).blocks) > 1), (write, (1,)))
    grown = _between(packed, write, read, scaled)
    for part, take, put, _ in rule.placements():
        grown = grown.at[put].set(scaled[part][take])
    return grown


@dataclasses.dataclass(frozen=True)
class Factored:
    """The second moments of one array: factored in two axes, or whole.

    Attributes:
      v_row, v_col: means over the larger and over the smaller of the two largest axes; a single zero if not factored.
      v: the second moments themselves; a single zero if factored.
      shape: shape of the array.
      axes: the axes that ``v_row`` and ``v_col`` keep; if None, those of optax's rule.
    """

    v_row: Any
    v_col: Any
    v: Any
    shape: tuple[int, ...]
    axes: tuple[int, int] | None = None

    def whole(self) -> Array:
        """Return the second moments that the factors represent: ``row · column / mean(row)``."""
        axes = self.axes or factored_axes(self.shape)
        if axes is None:
            return self.v
        row, col = jnp.expand_dims(self.v_row, axes[1]), jnp.expand_dims(self.v_col, axes[0])
        mean = jnp.mean(row, axis=axes[0], keepdims=True)
        return row * col / jnp.where(mean > 0, mean, 1)

    def mean_over(self, axis: int, kept: int) -> Array:
        """Return the second moments averaged over one axis, factored or not."""
        axes = self.axes or factored_axes(self.shape)
        if axes is not None and set(axes) == {axis, kept}:
            return self.v_row if axes[0] == kept else self.v_col
        return jnp.mean(self.whole(), axis=axis)


def factored_anew(rule: Rule, moment: Factored) -> Factored:
    """Return ``anew`` of an array's factored second moments."""
    axes = factored_axes(rule.shape)
    if axes is None:
        return dataclasses.replace(moment, v=anew(rule, moment.v, second=True))
    row, col = axes
    v_row, v_col = (anew(rule, m, second=True, over=over) for m, over in ((moment.v_row, col), (moment.v_col, row)))
    return dataclasses.replace(moment, v_row=v_row, v_col=v_col)


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return (axis that ``v_row`` keeps, axis that ``v_col`` keeps), by optax's rule; None if not factored."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape)
    if shape[order[-2]] < MIN_DIM_TO_FACTOR:
        return None
    return int(order[-2]), int(order[-1])


def factored_moment(rule: Rule, moments: Sequence[Factored | None], *, copies: bool) -> Factored:
    """Return Adafactor's second moments of one grown array from those of its parts.

    For different sources row and column means are concatenated, which gives the blocks between them an estimate.
    """
    present = next(m for m in moments if m is not None)
    known = [present if m is None else m for m in moments]
    placeholder = jnp.zeros((1,), present.v.dtype)
    found = present.axes or factored_axes(rule.shape)
    if found is None:
        whole = second_moment(rule, [m.whole() for m in known], copies=copies)
        return Factored(placeholder, placeholder, whole, rule.shape)
    row, col = found
    if copies or len(rule.blocks) == 1 or not rule.own:
        whole = second_moment(rule, [m.whole() for m in known], copies=copies)
        return Factored(jnp.mean(whole, axis=col), jnp.mean(whole, axis=row), placeholder, rule.shape, present.axes)
    v_row, v_col = _concatenated(rule, known, row, col), _concatenated(rule, known, col, row)
    return Factored(v_row, v_col, placeholder, rule.shape, present.axes)


def _concatenated(rule: Rule, moments: Sequence[Factored], kept: int, over: int) -> Array:
    """Return the means over one axis of the moments of different sources."""
    parts = [moment.mean_over(over, kept) for moment in moments]
    drop = lambda values: tuple(value for i, value in enumerate(values) if i != over)
    left = dataclasses.replace(rule, axes=drop(rule.axes), shape=drop(rule.shape))
    if left.own:
        return second_moment(left, parts, copies=False)
    # the kept axis is common to all sources, and the mean goes over the entries of all of them
    sizes = [moment.shape[over] if over in rule.own else 1 for moment in moments]
    squares = [factor**2 for factor in gradient_factors(rule)]
    return sum(n * a * part for n, a, part in zip(sizes, squares, parts, strict=True)) / sum(sizes)  # type: ignore
