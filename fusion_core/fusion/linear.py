"""Fusion is linear: one rule per array, and from the rules the map J, its transpose and its pseudo-inverse.

Everything that must agree about what was grown (parameters, theory, optimizer state) is derived from the same rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Params = Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the sources' arrays of one name become the fused array.

    Attributes:
      axes: the axes that belong to a source. Source i's block, times ``scales[i]``, stands at its own range along each
        of them, and zeros stand elsewhere: two axes give a block-diagonal matrix, one axis a concatenation, none a
        weighted sum.
      scales: one factor a source.
    """

    axes: tuple[int, ...]
    scales: tuple[float, ...]

    def _ranges(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[slice, ...]]:
        starts = [0] * len(shapes[0])
        ranges = []
        for shape in shapes:
            ranges.append(tuple(slice(s, s + n) for s, n in zip(starts, shape, strict=True)))
            starts = [s + n if axis in self.axes else 0 for axis, (s, n) in enumerate(zip(starts, shape, strict=True))]
        return ranges

    def embed(self, blocks: Sequence[Array]) -> Array:
        """J: the fused array."""
        ranges = self._ranges([block.shape for block in blocks])
        if not self.axes:
            return sum(scale * block for scale, block in zip(self.scales, blocks, strict=True))  # type: ignore[return-value]
        fused = jnp.zeros([r.stop for r in ranges[-1]], jnp.result_type(*blocks))
        for scale, block, where in zip(self.scales, blocks, ranges, strict=True):
            fused = fused.at[where].set(scale * block)
        return fused

    def transpose(self, fused: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """Jᵀ: each source's block of the fused array, times its scale."""
        return [scale * fused[where] for scale, where in zip(self.scales, self._ranges(shapes), strict=True)]

    def pinv(self, fused: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """J⁺ = (JᵀJ)⁺Jᵀ: blocks that do not overlap are divided by their scale; a sum is spread over its terms."""
        if self.axes:
            return [fused[where] / scale for scale, where in zip(self.scales, self._ranges(shapes), strict=True)]
        total = sum(scale * scale for scale in self.scales)
        return [fused * (scale / total) for scale in self.scales]


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

    def _leaf_shapes(self) -> list[list[tuple[int, ...]]]:
        """For each leaf, in the order of the rules, its shape in every source."""
        per_source = [jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple)) for tree in self.shapes]
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
            for rule, leaf, shapes in zip(rules, leaves, self._leaf_shapes(), strict=True)
        ]
        return tuple(jax.tree.unflatten(treedef, part) for part in zip(*parts, strict=True))
