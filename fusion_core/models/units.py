"""Spaces of units, and the axes that make or read them: the terms of an architecture's table of arrays.

A *space* is a set of units that are copied together: the hidden units of one layer, the heads of one attention, the
residual stream. An array *makes* the units of a space with the axis that has them as its outputs, and *reads* them with
the axis along which it sums over them. Shapes, fusion, growth, learning-rate factors and the streaming of files follow.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any  # a tree of arrays
Config = Any  # a frozen dataclass that ``fusion_core.models.registry`` has a record for


class Space(NamedTuple):
    """A set of units that are copied together.

    Attributes:
      name: unique within a network.
      size: number of units.
      field: the configuration's field with their number.
      position: index into the field, if it is a tuple of widths.
      also: (other field, its units per unit of this space), such as the query heads of a key head.
    """

    name: str
    size: int
    field: str
    position: int | None = None
    also: tuple[tuple[str, int], ...] = ()

    def makes(self, *blocks: int) -> Axis:
        """Return the axis of an array that makes the units: one entry a unit, or as many as ``blocks`` says (``Axis``)."""
        return Axis(self, False, blocks or (1,))

    def reads(self, block: int = 1) -> Axis:
        """Return the axis of an array that sums over the units: ``block`` entries a unit."""
        return Axis(self, True, (block,))


class Axis(NamedTuple):
    """An axis of an array along which the units of a space lie.

    Attributes:
      space: the units' space.
      reads: whether the array sums over the units, rather than making them.
      blocks: entries of one unit along the axis, for a head its width; several numbers if arrays lie one after the other
        along it, each with all units (GPT-2's q, k and v in one).
    """

    space: Space
    reads: bool
    blocks: tuple[int, ...] = (1,)

    @property
    def length(self) -> int:
        """Number of entries along the axis."""
        return self.space.size * sum(self.blocks)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of one array.

    Attributes:
      axes: for each axis an ``Axis``, or the length of an axis that is common to all sources and never grows.
      offset: number that the network adds to the array: 1 for Gemma's norms, which scale by ``1 + w``.
      adds: whether it is a norm whose output is added to the stream (Gemma's last ones in a block).
    """

    axes: tuple[Axis | int, ...]
    offset: float = 0.0
    adds: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(axis if isinstance(axis, int) else axis.length for axis in self.axes)

    @property
    def is_head(self) -> bool:
        """Whether the array reads units and makes none: its outputs are the network's."""
        return self.number(reads=False) is None and self.number(reads=True) is not None

    def number(self, *, reads: bool) -> int | None:
        """Return the number of the axis that reads units, or of the one that makes them; None if there is none."""
        return next((i for i, a in enumerate(self.axes) if isinstance(a, Axis) and a.reads is reads), None)


class Stack(NamedTuple):
    """Layers that follow one another.

    Attributes:
      field: the configuration's field with the number of layers; or with the tuple of widths, if each layer reads only
        the one before it.
      prefix: part of their arrays' names before the layer's number.
      layers: number of layers under that prefix.
      repeated: numbers of the layers that may be repeated.
    """

    field: str
    prefix: str
    layers: int
    repeated: range

    def split(self, name: str) -> tuple[int, str] | None:
        """Return an array's layer and the rest of its name; None if it is in no layer of this stack."""
        if not name.startswith(self.prefix + "."):
            return None
        layer, rest = name.removeprefix(self.prefix + ".").split(".", 1)
        return int(layer), rest

    def join(self, layer: int, rest: str) -> str:
        """Return the name of an array of a layer."""
        return f"{self.prefix}.{layer}.{rest}"


def layers_of(field: str, prefix: str, depth: int) -> Stack:
    """Return the stack of ``depth`` residual blocks, which may all be repeated."""
    return Stack(field, prefix, depth, range(depth))


def shapes_of(arrays: Params) -> Params:
    """Return the tree of shapes of a tree of layouts, as ``jax.ShapeDtypeStruct`` of float32."""
    return jax.tree.map(lambda layout: jax.ShapeDtypeStruct(layout.shape, jnp.float32), arrays)


def by_name(tree: Params) -> dict[str, Any]:
    """Return a tree's leaves under their dotted names, as in Hugging Face's files: ``encoder.block.0.layer...weight``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def nested(named: dict[str, Any]) -> Params:
    """Return the nested dict of dotted names: the inverse of ``by_name`` for trees of dicts alone."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def is_norm(name: str) -> bool:
    """Return whether the dotted name is that of a norm, or of a norm's scale or bias."""
    return any("norm" in part or part.startswith("ln_") for part in name.split(".")[-2:])


def fan_in(shape: tuple[int, ...]) -> int:
    """Return the number of inputs of one output of a matrix or convolution, out × in × ..."""
    return math.prod(shape[1:])
