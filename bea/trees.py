r"""Rooted trees, plain and coloured, in a compact canonical form: a tree is its own text.

``[]`` is the single node, ``[t1 t2 ... tk]`` (written without spaces) the tree whose root has the children t1 … tk,
``2[...]`` a root of colour 2 (colour 0 is not written). Children are in non-decreasing order of :meth:`Tree.sort_key`, so
equal trees are equal texts: hashing, comparing and storing them costs as much as for a short ``str``.

A tree stands for an elementary differential of the vector fields :math:`f_0, f_1, \dots` (one colour a field),

.. math:: F([t_1, \dots, t_k]_c) = f_c^{(k)}\bigl(F(t_1), \dots, F(t_k)\bigr) .

Source: Hairer, Lubich & Wanner, *Geometric Numerical Integration*, section III.1; the enumeration is written from the
recurrence t = u ∘ v (v becomes the last child of u's root), which makes every tree of order q one pair of smaller ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np

MOST_NODES = 150
"""Largest number of nodes of a tree in text."""
_NODE = re.compile(r"(\d*)\[")


class Tree(str):
    """A rooted tree with coloured nodes, as its canonical text.

    ``Tree("[[[]][]]")`` reads any text of the grammar above and sorts the children; ``Tree.of(children, colour)``
    builds one from its parts. A tree equals its text, so ``coefficients["[[]]"]`` looks one up.

    Raises:
      ValueError: the text is not a tree.
    """

    __slots__ = ()

    def __new__(cls, text: str = "[]") -> Tree:
        if isinstance(text, Tree):
            return text
        if text.count("[") > MOST_NODES:
            raise ValueError(f"the text has {text.count('['):,} nodes: a tree is read up to {MOST_NODES}")
        tree, end = cls._parse(text, 0)
        if end != len(text):
            raise ValueError(f"{text!r} is not one rooted tree: {text[end:]!r} is left over after {text[:end]!r}")
        return tree

    @classmethod
    def _parse(cls, text: str, start: int) -> tuple[Tree, int]:
        head = _NODE.match(text, start)
        if head is None:
            raise ValueError(f"{text!r} is not a rooted tree: expected '[' or a colour and '[' at position {start}")
        children, at = [], head.end()
        while at < len(text) and text[at] != "]":
            child, at = cls._parse(text, at)
            children.append(child)
        if at == len(text):
            raise ValueError(f"{text!r} is not a rooted tree: the '[' at position {head.end() - 1} is never closed")
        return cls.of(children, int(head[1] or 0)), at + 1

    @classmethod
    def of(cls, children: Iterable[Tree] = (), colour: int = 0) -> Tree:
        """Return the tree whose root has this colour and these children, in any order.

        Raises:
          ValueError: the colour is negative.
        """
        if colour < 0:
            raise ValueError(f"a colour is an integer >= 0, not {colour}")
        ordered = sorted(children, key=Tree.sort_key)
        return cls._trusted((str(colour) if colour else "") + "[" + "".join(ordered) + "]")

    @classmethod
    def _trusted(cls, canonical: str) -> Tree:
        return str.__new__(cls, canonical)

    def __repr__(self) -> str:
        return f"Tree({str(self)!r})"

    def sort_key(self) -> tuple:
        """Return the key of the enumeration: number of nodes, then the children from the largest down, then the colour."""
        return _sort_key(self)

    @property
    def children(self) -> tuple[Tree, ...]:
        """Subtrees of the root, in canonical order."""
        return _children(self)

    @property
    def colour(self) -> int:
        """Colour of the root."""
        return int(self[: self.index("[")] or 0)

    @property
    def order(self) -> int:
        """Number of nodes, which is the tree's power of h."""
        return self.count("[")

    @property
    def colours(self) -> tuple[int, ...]:
        """Colours of all nodes in preorder."""
        return tuple(int(colour or 0) for colour in _NODE.findall(self))

    @property
    def symmetry(self) -> int:
        r""":math:`\sigma(t) = \prod_i m_i!\, \sigma(t_i)^{m_i}` over distinct children: the number of automorphisms."""
        groups = [(child, len(list(same))) for child, same in groupby(self.children)]
        return math.prod(math.factorial(count) * child.symmetry**count for child, count in groups)

    @property
    def density(self) -> int:
        r""":math:`\gamma(t) = |t| \prod_i \gamma(t_i)`; the exact flow has the coefficients :math:`1/\gamma(t)`."""
        return self.order * math.prod(child.density for child in self.children)

    def recolour(self, colours: Sequence[int]) -> Tree:
        """Return the tree with colour c replaced by ``colours[c]``; merging colours makes two fields one."""
        return Tree.of((child.recolour(colours) for child in self.children), colours[self.colour])


@lru_cache(maxsize=1 << 14)
def _children(tree: Tree) -> tuple[Tree, ...]:
    found, depth, start = [], 0, tree.index("[") + 1
    for at in range(start, len(tree) - 1):
        if tree[at] == "[":
            depth += 1
        elif tree[at] == "]":
            depth -= 1
            if depth == 0:
                found.append(Tree._trusted(tree[start : at + 1]))
                start = at + 1
    return tuple(found)


@lru_cache(maxsize=1 << 14)
def _sort_key(tree: Tree) -> tuple:
    return (tree.order, tuple(_sort_key(child) for child in reversed(tree.children)), tree.colour)


def count_trees(order: int, colours: int = 1) -> list[int]:
    """Return the number of rooted trees of each order 1 … ``order`` with nodes of ``colours`` colours, without building any.

    Plain: 1, 1, 2, 4, 9, 20, 48, 115, … (OEIS A000081); two colours: 2, 4, 14, 52, 214, … (A000151).
    """
    forests, trees, weights = [1], [], [0]
    for n in range(1, order + 1):
        trees.append(colours * forests[n - 1])
        weights.append(sum(d * trees[d - 1] for d in range(1, n + 1) if n % d == 0))
        forests.append(sum(weights[k] * forests[n - k] for k in range(1, n + 1)) // n)
    return trees


class TreeTable:
    """All trees to an order as integer pairs: tree i has the last child ``last[i]``, and is ``rest[i]`` without it.

    Ids run through the orders one after another; the trees of order q are ``block(q)``. Within an order, ids ascend
    with the last child, so the trees u that may take v as their next child are a prefix of their block. Single nodes
    have ``rest = last = -1``.
    """

    def __init__(self, order: int, colours: int = 1):
        counts = count_trees(order, colours)
        self.order, self.colours = order, colours
        self.start = np.concatenate([[0], np.cumsum(counts)])
        self.rest = np.full(self.start[-1], -1, np.int32)
        self.last = np.full(self.start[-1], -1, np.int32)
        for q in range(2, order + 1):
            at = self.start[q - 1]
            for size in range(1, q):
                # children v of this size, and for each the number of trees u whose last child is at most v
                v = np.arange(*self.block(size).indices(self.start[-1])[:2], dtype=np.int32)
                u = self.block(q - size)
                fits = np.searchsorted(self.last[u], v, side="right")
                stop = at + fits.sum()
                self.last[at:stop] = np.repeat(v, fits)
                self.rest[at:stop] = u.start + np.arange(fits.sum()) - np.repeat(np.cumsum(fits) - fits, fits)
                at = stop

    def block(self, order: int) -> slice:
        """Return the ids of the trees of this order."""
        return slice(int(self.start[order - 1]), int(self.start[order]))

    def texts(self) -> list[Tree]:
        """Return the trees themselves, by id."""
        join = Tree._trusted
        texts = [join((str(c) if c else "") + "[]") for c in range(self.colours)]
        for u, v in zip(self.rest[self.colours :].tolist(), self.last[self.colours :].tolist(), strict=True):
            texts.append(join(texts[u][:-1] + texts[v] + "]"))
        return texts


def trees(order: int, colours: int = 1) -> Iterator[Tree]:
    """Return all trees with 1 … ``order`` nodes of ``colours`` colours, in the order of :meth:`Tree.sort_key`."""
    return iter(TreeTable(order, colours).texts())
