r"""The coefficients of a composition by another method: Lie brackets of tree series and Baker–Campbell–Hausdorff.

A vector field is a series :math:`\sum_t c(t) F(t)` over coloured trees, here ``{tree: c(t)}`` WITH the symmetry factor
divided out (:func:`~bea.symbolic.equation.with_symmetry`), because then the derivative of one field along another is
plain grafting, :math:`F(t)'[F(s)] = \sum_{v \in t} F(s \text{ grafted on } v)`, the free pre-Lie product (Chapoton &
Livernet 2001).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from bea.symbolic.equation import MEMORY_LIMIT, check_order, modified_equation, with_symmetry, without_symmetry
from bea.symbolic.methods import Method, steps_of
from bea.trees import Tree, trees
from bea.words import bch, bracketing, evaluate_bracket

Series = dict[Tree, Any]


@lru_cache(maxsize=1 << 16)
def grafts(scion: Tree, stock: Tree) -> tuple[Tree, ...]:
    """Return the trees made by grafting ``scion`` on each node of ``stock``: one tree for each node, with repeats."""
    found = [Tree.of((*stock.children, scion), stock.colour)]
    for i, child in enumerate(stock.children):
        rest = stock.children[:i] + stock.children[i + 1 :]
        found += [Tree.of((*rest, grown), stock.colour) for grown in grafts(scion, child)]
    return tuple(found)


def derivative_along(field: Mapping[Tree, Any], direction: Mapping[Tree, Any], order: int) -> Series:
    """Return field' · direction, without trees of more than ``order`` nodes."""
    result: Series = {}
    for scion, x in direction.items():
        for stock, y in field.items():
            if scion.order + stock.order <= order:
                for tree in grafts(scion, stock):
                    result[tree] = result.get(tree, 0) + x * y
    return result


def tree_bracket(f: Mapping[Tree, Any], g: Mapping[Tree, Any], order: int) -> Series:
    """Return [f, g] = g' f − f' g, without trees of more than ``order`` nodes."""
    result = derivative_along(g, f, order)
    for tree, value in derivative_along(f, g, order).items():
        result[tree] = result.get(tree, 0) - value
    return {tree: value for tree, value in result.items() if value != 0}


def combine(first: Mapping[Tree, Any], second: Mapping[Tree, Any], order: int) -> Series:
    """Return the field whose time-one flow is the time-one flow of ``first``, then that of ``second``."""
    total: Series = {}
    for word, value in bch(2, order).items():
        term = evaluate_bracket(
            bracketing(word), lambda i: first if i == 0 else second, lambda a, b: tree_bracket(a, b, order)
        )
        for tree, x in term.items():
            total[tree] = total.get(tree, 0) + value * x
    return total


def modified_equation_by_brackets(method: Method, order: int) -> dict[Tree, Fraction]:
    """Return the same coefficients as :func:`~bea.symbolic.equation.modified_equation`, by brackets; slower, for checking.

    Each step is the flow of its own modified field, n repeats are n times that field, and the steps are combined in
    pairs by the Baker–Campbell–Hausdorff series.
    """
    steps = steps_of(method)
    colours = 1 + max(step.field for step in steps)
    check_order(order, colours, MEMORY_LIMIT // 100, remedy="or take modified_equation")
    total: Series = {}
    for step in steps:
        assert isinstance(step.scale, Fraction)
        own = with_symmetry(modified_equation(step.method, order))
        recolour = [step.field]
        field = {t.recolour(recolour): step.steps * step.scale**t.order * value for t, value in own.items() if value}
        total = combine(total, field, order) if total else field
    zeros = {tree: Fraction(0) for tree in trees(order, colours)}
    return without_symmetry(zeros | total)


def is_gradient_series(coefficients: Mapping[Tree, Any], order: int) -> bool:
    r"""Return whether the series is a gradient through trees of ``order`` nodes for EVERY loss, in every dimension.

    With :math:`f = -\nabla E` a tree's nodes are derivative tensors of E, and moving the root along an edge does not
    change the tensor network: the gradient of a network without a root is the sum over the choices of its root. So a
    series without the symmetry factor in it is a gradient if and only if :math:`\omega(u \circ v) = \omega(v \circ
    u)` for all u, v. (Compare Hairer, Lubich & Wanner, section VI.7.2 and theorem IX.9.3, where Hamiltonian fields
    need the opposite sign.)
    """
    small = [t for t in coefficients if t.order < order]
    return all(
        coefficients.get(Tree.of((*u.children, v), u.colour), 0)
        == coefficients.get(Tree.of((*v.children, u), v.colour), 0)
        for u in small
        for v in small
        if u.order + v.order <= order
    )


def gradient_order(method: Method, order: int) -> int:
    """Return the largest p ≤ ``order`` to which the method's modified field is a gradient for every loss (Euler: 2)."""
    coefficients = modified_equation(method, order)
    return next(p for p in range(order, 0, -1) if is_gradient_series(coefficients, p))


def recoloured(coefficients: Mapping[Tree, Any], colours: Sequence[int]) -> Series:
    """Return the coefficients after colour c becomes ``colours[c]``, summed over trees that become equal.

    The coefficients, given and returned, are without the symmetry factor.
    """
    total: Series = {}
    for tree, value in with_symmetry(coefficients).items():
        image = tree.recolour(colours)
        total[image] = total.get(image, 0) + value
    return without_symmetry(total)


def split_gradient(coefficients: Mapping[Tree, Any]) -> tuple[Series, Series]:
    r"""Split a series in :math:`f_c = -\nabla E_c` into minus the gradient of a loss and a rest that is no gradient.

    The rooted versions t of one unrooted tree τ are averaged with their weights :math:`1/\sigma(t)`; with the average
    ω(τ)

    .. math:: \tilde E = \sum_\tau (-1)^{|\tau| + 1} \frac{\omega(\tau)}{|\mathrm{Aut}\,\tau|}\, S(\tau), \qquad
       \nabla S(\tau) = \sum_t \frac{|\mathrm{Aut}\,\tau|}{\sigma(t)}\, T(t)

    with the contraction S(τ) of the derivative tensors of the losses and T(t) the one that leaves the root's index
    open. The rest vanishes if and only if :func:`is_gradient_series`.

    Args:
      coefficients: coefficients without the symmetry factor; they may include step sizes.

    Returns:
      ``({τ as one of its rooted versions: number before S(τ)}, {t: rest, without the symmetry factor})``, without
      zeros.
    """
    loss: Series = {}
    rest: Series = {}
    done: set[Tree] = set()
    for tree in coefficients:
        if tree in done:
            continue
        versions = rootings(tree)
        done |= versions
        weight = sum((Fraction(1, t.symmetry) for t in versions), Fraction(0))
        mean = sum(coefficients.get(t, 0) * Fraction(1, t.symmetry) for t in versions) * (1 / weight)
        if mean != 0:
            best = max(versions, key=lambda t: (len(t.children), t.sort_key()))
            loss[best] = (-1) ** (tree.order + 1) * mean * weight * Fraction(1, tree.order)
        for t in sorted(versions, key=Tree.sort_key):
            if (left := coefficients.get(t, 0) - mean) != 0:
                rest[t] = left
    return loss, rest


@lru_cache(maxsize=1 << 14)
def rootings(tree: Tree) -> frozenset[Tree]:
    """Return all rooted trees that are the same tree without its root."""
    found, todo = {tree}, [tree]
    while todo:
        t = todo.pop()
        for i, child in enumerate(t.children):
            rest = Tree.of(t.children[:i] + t.children[i + 1 :], t.colour)
            moved = Tree.of((*child.children, rest), child.colour)
            if moved not in found:
                found.add(moved)
                todo.append(moved)
    return frozenset(found)
