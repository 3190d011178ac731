"""Fusion is linear: one rule per array, and from the rules the map J, its transpose and its pseudo-inverse.

Everything that must agree about what was grown (parameters, theory, optimizer state) is derived from the same rules.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

Params = Any


class Placement(NamedTuple):
    """Where one block of one source goes in the fused array: ``fused[put] = scale · source[take]``.

    Attributes:
      source: its index.
      take: a range along every axis of the source's array.
      put: a range along every axis of the fused array, of the same lengths.
      scale: factor on the block.
    """

    source: int
    take: tuple[slice, ...]
    put: tuple[slice, ...]
    scale: float


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the sources' arrays of one name become the fused array.

    Attributes:
      axes: the axes that belong to a source. Source i's block, times ``scales[i]``, stands at its own range along each
        of them, and zeros stand elsewhere: two axes give a block-diagonal matrix, one axis a concatenation, none a
        weighted sum.
      scales: one factor a source.
      packed: (axis, count) for an axis in which several arrays of equal size lie one after the other (GPT-2's q, k and v
        in one): each is fused on its own, so that the fused axis is packed alike.
      reads: the axis along which the array is multiplied with activations of the sources (a matrix's columns); None
        where it reads none. Equal copies read equal activations along it, which is what noise can cancel on.
    """

    axes: tuple[int, ...]
    scales: tuple[float, ...]
    packed: tuple[tuple[int, int], ...] = ()
    reads: int | None = None

    def fused_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of the fused array from those of the sources'."""
        return tuple(
            sum(sizes) if axis in self.axes else sizes[0] for axis, sizes in enumerate(zip(*shapes, strict=True))
        )

    def placements(self, shapes: Sequence[tuple[int, ...]]) -> list[Placement]:
        """The blocks, source by source; where no axis belongs to a source, they lie on each other and are added."""
        counts, total = dict(self.packed), self.fused_shape(shapes)
        starts, found = [0] * len(total), []
        for source, (shape, scale) in enumerate(zip(shapes, self.scales, strict=True)):
            per_axis = []
            for axis, size in enumerate(shape):
                count = counts.get(axis, 1)
                part, whole = size // count, total[axis] // count
                per_axis.append(
                    [
                        (
                            slice(j * part, (j + 1) * part),
                            slice(j * whole + starts[axis], j * whole + starts[axis] + part),
                        )
                        for j in range(count)
                    ]
                )
                if axis in self.axes:
                    starts[axis] += part
            for ranges in itertools.product(*per_axis):
                take, put = zip(*ranges, strict=True) if ranges else ((), ())
                found.append(Placement(source, take, put, scale))
        return found

    def embed(self, blocks: Sequence[Array]) -> Array:
        """J: the fused array."""
        if not self.axes:
            return sum(scale * block for scale, block in zip(self.scales, blocks, strict=True))  # type: ignore[return-value]
        shapes = [block.shape for block in blocks]
        fused = jnp.zeros(self.fused_shape(shapes), jnp.result_type(*blocks))
        for source, take, put, scale in self.placements(shapes):
            fused = fused.at[put].set(scale * blocks[source][take])
        return fused

    def transpose(self, fused: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """Jᵀ: each source's block of the fused array, times its scale."""
        return self._gather(fused, shapes, self.scales)

    def pinv(self, fused: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """J⁺ = (JᵀJ)⁺Jᵀ: blocks that do not overlap are divided by their scale; a sum is spread over its terms."""
        if self.axes:
            return self._gather(fused, shapes, [1 / scale for scale in self.scales])
        total = sum(scale * scale for scale in self.scales)
        return [fused * (scale / total) for scale in self.scales]

    def _gather(self, fused: Array, shapes: Sequence[tuple[int, ...]], factors: Sequence[float]) -> list[Array]:
        parts = [jnp.zeros(shape, fused.dtype) for shape in shapes] if self.packed else [fused] * len(shapes)
        for source, take, put, _ in self.placements(shapes):
            block = factors[source] * fused[put]
            parts[source] = parts[source].at[take].set(block) if self.packed else block
        return parts


@dataclasses.dataclass(frozen=True)
class FusionMap:
    """The growth event ``Θ = J (θ_1, ..., θ_k)`` of whole networks; each direction is a pure, jit-able function.

    Attributes:
      rules: the fused network's tree, with a ``Rule`` at every leaf.
      shapes: for each source its tree of array shapes.
      weights: of the sources in the mean; they sum to 1.
    """

    rules: Params
    shapes: tuple[Params, ...]
    weights: tuple[float, ...]

    def leaf_shapes(self) -> list[list[tuple[int, ...]]]:
        """For each leaf, in the order of the rules, its shape in every source."""
        per_source = [[struct.shape for struct in jax.tree.leaves(tree)] for tree in self.shapes]
        return [list(shapes) for shapes in zip(*per_source, strict=True)]

    def embed(self, sources: Sequence[Params]) -> Params:
        """J: the fused parameters."""
        return jax.tree.map(lambda rule, *blocks: rule.embed(blocks), self.rules, *sources)

    def transpose(self, fused: Params) -> tuple[Params, ...]:
        """Jᵀ: ``⟨J u, v⟩ = ⟨u, Jᵀ v⟩``. It maps the gradient of the fused loss to the gradient along the sources."""
        return self._split("transpose", fused)

    def pinv(self, fused: Params) -> tuple[Params, ...]:
        """J⁺, with ``J⁺ J = 1`` wherever J is injective (everything but averaged biases)."""
        return self._split("pinv", fused)

    def _split(self, direction: str, fused: Params) -> tuple[Params, ...]:
        treedef: Any = jax.tree.structure(self.rules)
        rules = jax.tree.leaves(self.rules)
        leaves = treedef.flatten_up_to(fused)
        parts = [
            getattr(rule, direction)(leaf, shapes)
            for rule, leaf, shapes in zip(rules, leaves, self.leaf_shapes(), strict=True)
        ]
        return tuple(jax.tree.unflatten(treedef, part) for part in zip(*parts, strict=True))
