r"""The linear map of a growth, ``Θ = J θ``, of one network or of several.

One rule for each grown array gives the origin of its entries. From the rules follow J, and everything that must agree
with it: noise, learning-rate factors, optimizer states, the streaming of files. The transpose is that of JAX, and the
pseudo-inverse is one division by a diagonal:

* several networks: no small entry goes to two places, so that J Jᵀ is diagonal and ``J⁺ = Jᵀ (J Jᵀ)⁻¹``;
* one network: no grown entry holds two small ones, so that JᵀJ is diagonal and ``J⁺ = (JᵀJ)⁻¹ Jᵀ``.

J⁺ is zero where the diagonal is. Sources: theory.md, section 3; docs/fusion.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.units import Run, Selection, first_copies
from fusion_core.models.units import Config, Params, by_name


class Block(NamedTuple):
    """The origin of one part of a grown array.

    Attributes:
      network: number of the small network; None if the part is drawn, and so zero in J.
      name: name of the small array.
      scale: factor on the small array.
      weight: weight of the part's outputs in the mean; 1 if there is no mean.
    """

    network: int | None
    name: str
    scale: float = 1.0
    weight: float = 1.0


class Placement(NamedTuple):
    """The place of one block of one part in the grown array: ``grown[put] = scale · small[take]``.

    Attributes:
      source: number of the part.
      take: a range along every axis of the small array.
      put: a range along every axis of the grown array, of the same lengths.
      scale: factor on the block.
    """

    source: int
    take: tuple[slice, ...]
    put: tuple[slice, ...]
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """The rule by which small arrays become one grown array.

    Attributes:
      blocks: origins of its parts.
      axes: for each axis the origin of its entries; None if the axis is common and keeps its length. Entries are filled
        where the parts along all axes agree: two axes with parts give a block-diagonal matrix, one a concatenation, none a
        sum of the parts. Along an axis that reads copies of a unit, entries are divided by their number.
      shape: shape of the grown array.
      new: whether the small network does not have the array's layer.
      offset: number o that the network adds to the array (``fusion_core.models.units.Layout``). What is scaled is the sum,
        so that a part of scale s also gets the constant ``o (s − 1)`` (``shifts``), which is no part of J.
    """

    blocks: tuple[Block, ...]
    axes: tuple[Selection | None, ...]
    shape: tuple[int, ...]
    new: bool = False
    offset: float = 0.0

    @property
    def scales(self) -> tuple[float, ...]:
        """Factor of each part."""
        return tuple(block.scale for block in self.blocks)

    @property
    def shifts(self) -> tuple[float, ...]:
        """Constant that is added to each part."""
        return tuple(self.offset * (scale - 1) for scale in self.scales)

    @property
    def own(self) -> tuple[int, ...]:
        """Numbers of the axes along which the parts lie."""
        return tuple(i for i, axis in enumerate(self.axes) if axis is not None and axis.part is not None)

    def axis(self, *, reads: bool) -> int | None:
        """Return the number of the axis that reads copies or parts, or that makes them; None if there is none."""
        return next((i for i, axis in enumerate(self.axes) if axis is not None and axis.reads is reads), None)

    @property
    def copies_read(self) -> int:
        """Number of whole copies that the array reads, one after the other along its axis that reads; 1 if it has none."""
        number = self.axis(reads=True)
        selection = None if number is None else self.axes[number]
        return 1 if selection is None else len(selection.taken) // len(np.unique(selection.taken))

    @property
    def filled(self) -> int:
        """Number of entries of the parts' arrays: those that J can make different from zero, if each goes to one place."""
        return sum(math.prod(t.stop - t.start for t in p.take) for p in self.placements())

    def new_entries(self) -> Array:
        """Return which entries are new, bool of the rule's shape.

        Old are the first source's own, the first copy of each unit, and what is common to all sources; every entry of a
        layer that the small network does not have is new.
        """
        new = jnp.full(self.shape, self.new)
        for number, axis in enumerate(self.axes):
            if axis is not None:
                first = first_copies(axis.taken) == np.arange(len(axis.taken)) if axis.part is None else axis.part == 0
                new = new | ~along(first, number, new)
        return new

    def rescaled(self, factors: Sequence[float]) -> Rule:
        """Return the rule with each part's scale multiplied by a factor."""
        blocks = [b._replace(scale=b.scale * float(f)) for b, f in zip(self.blocks, factors, strict=True)]
        return dataclasses.replace(self, blocks=tuple(blocks))

    def placements(self) -> list[Placement]:
        """Return the blocks, part by part; if no axis has parts, they lie on each other and are added."""
        return self._placements(self.scales, True, 1)

    def _placements(self, factors: Sequence[float], divide: bool | None, power: int) -> list[Placement]:
        found = []
        for part, factor in enumerate(factors):
            along_axes = [
                [Run(slice(0, length), slice(0, length), 1)] if axis is None else axis.runs(part)
                for axis, length in zip(self.axes, self.shape, strict=True)
            ]
            divides = [axis is not None and axis.reads is divide for axis in self.axes]
            for runs in itertools.product(*along_axes):
                copies = math.prod(run.copies for run, by in zip(runs, divides, strict=True) if by)
                take, put = tuple(run.take for run in runs), tuple(run.put for run in runs)
                found.append(Placement(part, take, put, factor / copies**power))
        return found

    def embed(self, arrays: Sequence[Array | None]) -> Array:
        """Return the grown array from those of the parts; None for a part that is drawn."""
        return self.placed(arrays, self.scales, divide=True)

    def shifted(self, grown: Array) -> Array:
        """Return the grown array with the parts' constants added."""
        if not any(self.shifts):
            return grown
        if not self.own:
            return grown + self.offset * (math.fsum(self.scales) - 1)
        for placement in self.placements():
            grown = grown.at[placement.put].add(self.shifts[placement.source])
        return grown

    def placed(
        self, arrays: Sequence[Array | None], factors: Sequence[float], *, divide: bool | None, power: int = 1
    ) -> Array:
        """Return the parts' arrays at their places.

        Args:
          arrays: one array for each part.
          factors: one factor for each array.
          divide: whether to divide by the numbers of copies to the ``power`` along the axis that reads them (True), or
            along the one that makes them (False); if None, there is no division.
          power: exponent of the numbers.
        """
        if len(self.blocks) > 1:
            return self._several(arrays, factors, divide, power)
        (array,), (factor,) = arrays, factors
        assert array is not None
        if factor == 0:
            return jnp.zeros(self.shape, array.dtype)
        for number, axis in enumerate(self.axes):
            if axis is None:
                continue
            array = jnp.take(array, axis.taken, axis=number)
            if axis.copies is not None and axis.reads is divide:
                array = array * along(1 / axis.copies**power, number, array)
        return array if factor == 1 else factor * array

    def _several(
        self, arrays: Sequence[Array | None], factors: Sequence[float], divide: bool | None, power: int
    ) -> Array:
        present = [array for array in arrays if array is not None]
        if not self.own:
            dtype = jnp.result_type(*present)
            wide = jnp.promote_types(dtype, jnp.float32)  # a sum of many in float16 would be rounded at every one
            parts = [f * array.astype(wide) for f, array in zip(factors, arrays, strict=True) if array is not None]
            return sum(parts[1:], parts[0]).astype(dtype)
        grown = jnp.zeros(self.shape, jnp.result_type(*present))
        for part, take, put, scale in self._placements(factors, divide, power):
            array = arrays[part]
            if array is not None:
                grown = grown.at[put].set(scale * array[take])
        return grown


def along(values: np.ndarray, number: int, array: Array) -> Array:
    """Return one value for each entry along an axis, in the array's dtype and of a shape to be multiplied with it."""
    return jnp.asarray(values, array.dtype).reshape([-1 if i == number else 1 for i in range(array.ndim)])


@dataclasses.dataclass(frozen=True, eq=False)
class GrowthMap:
    """The linear map J of a growth; each direction is a pure function that can be jitted.

    ``bea.GrowthEvent.of(mapping)`` is the same event in theory's terms.

    Attributes:
      rules: the grown network's tree, with a ``Rule`` at every leaf.
      shapes: tree of shapes of a single network, or a tuple with the tree of each of several. ``embed`` takes, and
        ``transpose`` and ``pinv`` return, trees of this structure.
      config: configuration of the grown network.
      weights: weights of the networks in the mean; they sum to 1.
    """

    rules: Params
    shapes: Params
    config: Config
    weights: tuple[float, ...] = (1.0,)

    @property
    def several(self) -> bool:
        """Whether J maps a tuple of networks, rather than one."""
        return isinstance(self.shapes, tuple)

    def embed(self, small: Params) -> Params:
        """Return J θ: the grown parameters, but for constants (``grown``)."""
        return self.each(lambda rule, arrays: rule.embed(arrays), list(small) if self.several else [small])

    def grown(self, small: Params) -> Params:
        """Return the grown parameters: J θ and the constants of arrays that the network adds a number to."""
        return jax.tree.map(lambda rule, array: rule.shifted(array), self.rules, self.embed(small))

    def each(self, function: Callable[[Rule, list[Any]], Any], networks: Sequence[Params]) -> Params:
        """Return the tree of ``function(rule, leaves of its parts)``; a part that is drawn has None.

        Args:
          function: (rule, leaves) -> leaf of the result.
          networks: for each network a tree like its parameters.
        """
        named = [by_name(network) for network in networks]

        def leaf(rule: Rule) -> Any:
            return function(rule, [None if b.network is None else named[b.network][b.name] for b in rule.blocks])

        return jax.tree.map(leaf, self.rules)

    def transpose(self, grown: Params) -> Params:
        """Return Jᵀ Θ, with ``⟨J u, v⟩ = ⟨u, Jᵀ v⟩``: for the grown loss's gradient, that along the small networks."""
        dtype = jnp.result_type(*jax.tree.leaves(grown))
        small = jax.tree.map(lambda struct: jax.ShapeDtypeStruct(struct.shape, dtype), self.shapes)
        return jax.linear_transpose(self.embed, small)(grown)[0]

    @property
    def copies(self) -> int:
        """Number of copies that the map makes of a unit, or of networks that it puts side by side; 1 if there are none."""
        axes = (a for rule in jax.tree.leaves(self.rules) for a in rule.axes if a is not None)
        return max((int(np.bincount(axis.taken).max()) for axis in axes), default=1)

    def exchanges(self, grown: Params) -> list[Params]:
        """Return the images of Θ under the cyclic exchanges of the copies, Θ itself first; ``bea.separation_rate`` takes it.

        All units of a copy move at once, in every array that makes or reads them: a permutation of the parameters that
        changes no output, for equal copies or not. For two copies there are no other exchanges; for k they are enough
        (``bea.separation``).

        Args:
          grown: Θ, or any tree like it, such as a gradient.

        Raises:
          InputError: there are no copies, or units have different numbers of them.
        """
        if self.copies < 2:
            raise InputError("the map copies no units, so that there are no copies to exchange; take one that widens")

        def moved(rule: Rule, array: Array) -> Array:
            for number, axis in enumerate(rule.axes):
                if axis is not None:
                    array = jnp.take(array, axis.next_copy(), axis=number)
            return array

        images = [grown]
        while len(images) < self.copies:
            images.append(jax.tree.map(moved, self.rules, images[-1]))
        return images

    def pinv(self, grown: Params) -> Params:
        """Return J⁺ Θ, the least-squares solution of least norm; ``J⁺ J = 1`` if J is injective."""
        dtype = jnp.result_type(*jax.tree.leaves(grown))
        divided = lambda tree, by: jax.tree.map(lambda x, d: x / jnp.where(d == 0, 1, d), tree, by)
        tree = grown if self.several else self.shapes
        # without the barrier XLA would compute the diagonal while it compiles
        ones = jax.lax.optimization_barrier(jax.tree.map(lambda x: jnp.ones(x.shape, dtype), tree))
        if self.several:
            return self.transpose(divided(grown, self.embed(self.transpose(ones))))
        return divided(self.transpose(grown), self.transpose(self.embed(ones)))
