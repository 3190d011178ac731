r"""Coefficients of modified equations: exact, to any order, one multiplication for each tree.

**Convention** (stated here once). ``modified_equation`` returns :math:`\{t: \omega(t)\}` with

.. math:: h \tilde f = \sum_t \frac{h^{|t|}}{\sigma(t)}\, \omega(t)\, F(t) ,

the symmetry factor :math:`\sigma(t)` NOT in the coefficient (Hairer, Lubich & Wanner, *Geometric Numerical
Integration*, chapter IX, and kauri write it so). For several fields, :math:`h^{|t|}` is :math:`\prod_c h_c^{m_c}`
with :math:`m_c` nodes of colour c. :func:`with_symmetry` divides it out, :func:`without_symmetry` is its inverse.
``order`` = p means all trees of at most p nodes, so :math:`h \tilde f` is exact through :math:`h^p`.

**Algorithm.** Let :math:`P_t(n)` be the coefficient of the n-fold step, a polynomial in n of degree at most |t| that
vanishes at 0; :math:`\omega(t)` is its linear term. We never expand it: its values at n = 0 … p are integers over a
common denominator, and the linear term is a fixed functional of them, :math:`\sum_k (-1)^{k+1}/k\, \Delta^k P_t(0)`.
Values multiply pointwise, so with t = u ∘ v (see :mod:`bea.trees`) and one row a tree

.. math:: G_t = G_u \odot (K G_v), \qquad \omega(t) = w \cdot G_t ,

where (K, w) is the tableau of p repeats of the step with w in place of its weights: *the modified equation has the
elementary weights of one larger Runge–Kutta "method"*. All trees of an order are one array operation.

Arithmetic is modulo 2^64 if the numerators are proven to fit (:func:`fits_64_bits`), else on Python integers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from bea.symbolic.methods import Method, Step, denominator, growth_rate, steps_of
from bea.trees import Tree, TreeTable, count_trees

BYTES_A_TREE = 400
"""Bytes of one tree with its coefficient, without its row of the table (measured, rounded up)."""
MEMORY_LIMIT = 8 * 2**30
"""Bytes of a table of coefficients above which :func:`modified_equation` raises ValueError."""


def modified_equation(method: Method, order: int, *, memory_limit: int = MEMORY_LIMIT) -> dict[Tree, Fraction]:
    r"""Return the exact coefficients :math:`\omega(t)` of the modified equation, for all trees of at most ``order`` nodes.

    Args:
      method: "euler", "implicit-euler", "midpoint", "rk4", … (:data:`~bea.symbolic.methods.METHODS`), a
        :class:`~bea.symbolic.methods.RungeKutta`, or a sequence of :class:`~bea.symbolic.methods.Step` on different
        fields.
      order: p ≥ 1, number of nodes of the largest trees.
      memory_limit: largest memory in bytes; if more is needed, ValueError is raised before any work.

    Returns:
      ``{tree: Fraction}`` in the order of the trees, zeros included, in the convention above:
      ``modified_equation("euler", 3)`` is ``{"[]": 1, "[[]]": -1/2, "[[][]]": 1/6, "[[[]]]": 1/3}``.

    Raises:
      ValueError: order below 1, or so high that the trees would not fit into ``memory_limit``.

    Source: theory.md, (1.1).
    """
    steps = steps_of(method)
    colours = 1 + max(step.field for step in steps)
    check_order(
        order, colours, memory_limit, sweep=sum(min(step.steps, order) * len(step.tableau[1]) for step in steps)
    )
    table = TreeTable(order, colours)
    scale, common = denominator(steps), math.lcm(*range(1, order + 1))
    kernel, weights, colour_of = log_tableau(steps, order)
    dtype = np.int64 if fits_64_bits(steps, order) else object
    numerators = _elementary_weights(
        table,
        _integers([[x * scale for x in row] for row in kernel], dtype),
        _integers([x * scale * common for x in weights], dtype),
        np.array(colour_of),
    )
    denominators = [common * scale ** (q) for q in range(1, order + 1)]
    values: list[Fraction] = []
    for q in range(1, order + 1):
        seen: dict[int, Fraction] = {}  # few distinct numbers, many trees
        for n in numerators[table.block(q)].tolist():
            value = seen.get(n)
            if value is None:
                value = seen[n] = Fraction(n, denominators[q - 1])
            values.append(value)
    return dict(zip(table.texts(), values, strict=True))


def with_symmetry(coefficients: Mapping[Tree, Any]) -> dict[Tree, Any]:
    r"""Return :math:`\omega(t)/\sigma(t)`, the factors of elementary differentials in print, as of f''(f, f)."""
    return {tree: value / tree.symmetry for tree, value in coefficients.items()}


def without_symmetry(coefficients: Mapping[Tree, Any]) -> dict[Tree, Any]:
    r"""Return :math:`c(t)\,\sigma(t)`, the inverse of :func:`with_symmetry`."""
    return {tree: value * tree.symmetry for tree, value in coefficients.items()}


def check_order(order: int, colours: int, memory_limit: int, sweep: int = 1, remedy: str = "") -> None:
    """Raise ValueError if an order is below 1, or its trees (counted, not built) would not fit into memory.

    The message has their number and size. ``sweep`` is the number of stages in one step.
    """
    if isinstance(order, bool) or not isinstance(order, int):
        raise ValueError(f"order is {order!r}, not a whole number: it is the number of nodes of the largest trees")
    if order < 1:
        raise ValueError(
            f"order is {order}: it is the number of nodes of the largest trees, at least 1 (1 is f itself)"
        )
    highest = min(order, 64)
    totals = list(itertools.accumulate(count_trees(highest, colours)))
    sizes = [total * (BYTES_A_TREE + 16 * q * sweep) for q, total in enumerate(totals, 1)]
    if order > 64 or sizes[-1] > memory_limit:
        least = "more than " if order > 64 else ""
        fields = "one field" if colours == 1 else f"{colours} fields"
        above = "" if remedy else f", above the limit of {_size(memory_limit)}"  # otherwise not the caller's
        fits = sum(size <= memory_limit for size in sizes)
        raise ValueError(
            f"order {order} for {fields} means {least}{totals[-1]:,} trees and {least or 'about '}{_size(sizes[-1])}{above}: "
            f"ask for order {fits} or less, {remedy or 'or pass a larger memory_limit'}"
        )


def _size(number: int) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"


def log_functional(order: int) -> list[Fraction]:
    r"""Return :math:`w_j` with :math:`P'(0) = \sum_j w_j\,(P(j+1) - P(j))`, j = 0 … p − 1, for polynomials of degree
    ≤ p.

    From the logarithm :math:`P'(0) = \sum_{k=1}^p \frac{(-1)^{k+1}}{k} \Delta^k P(0)`.
    """
    return [
        sum((Fraction((-1) ** (j + 2 * k) * math.comb(k - 1, j), k) for k in range(j + 1, order + 1)), Fraction(0))
        for j in range(order)
    ]


def repeat_functional(repeats: int, points: int) -> list[int]:
    """Return the integers e_m with Σ_{m<repeats} g(m) = Σ_{m<points} e_m g(m) for every polynomial g of degree < points."""
    if repeats <= points:
        return [1] * repeats
    return [
        sum((-1) ** (k - m) * math.comb(k, m) * math.comb(repeats, k + 1) for k in range(m, points))
        for m in range(points)
    ]


def log_tableau(steps: Sequence[Step], order: int) -> tuple[list[list[Fraction]], list[Fraction], list[int]]:
    """Return a tableau K, weights w and each stage's field, whose elementary weights are ω(t) for |t| ≤ ``order``.

    The stages are those of ``order`` sweeps over the steps. A step with more than ``order`` repeats is represented by its
    first ``order`` ones, since the sum over repeats is a polynomial in their number.
    """
    zero, outer = Fraction(0), log_functional(order)
    # one sweep: its kernel, its weights (the end of the sweep), its colours
    inside: list[list[Fraction]] = []
    end: list[Fraction] = []
    colours: list[int] = []
    for step in steps:
        a, b = step.tableau
        repeats = repeat_functional(step.steps, order)
        for m in range(len(repeats)):
            inside += [end + m * b + row for row in a]
        end = end + [e * weight for e in repeats for weight in b]
        colours += [step.field] * (len(repeats) * len(b))
    size = len(end)
    inside = [row + [zero] * (size - len(row)) for row in inside]
    kernel = [n * end + row + (order - 1 - n) * size * [zero] for n in range(order) for row in inside]
    return kernel, [w * weight for w in outer for weight in end], colours * order


def fits_64_bits(steps: Sequence[Step], order: int) -> bool:
    r"""Return whether every numerator is proven to be below 2^63, so that integers modulo 2^64 give it exactly.

    :math:`\Delta^k P_t(0)` is a sum over monotone maps of the nodes of t onto {1, …, k}, the root to 1, of products
    of at most :math:`\rho^{|t|}` in all (:func:`~bea.symbolic.methods.growth_rate`); there are at most 2 Fubini(|t| −
    1) such maps for all k together, one of them with k = 1. Hence :math:`|\omega(t)| \le \rho^{|t|}
    (\mathrm{Fubini}(|t| - 1) + 1/2)`.
    """
    fubini = [1]
    for n in range(1, order):
        fubini.append(sum(math.comb(n, k) * fubini[n - k] for k in range(1, n + 1)))
    rate = max(growth_rate(steps) * denominator(steps), Fraction(1))
    return math.lcm(*range(1, order + 1)) * rate**order * (fubini[order - 1] + Fraction(1, 2)) < 2**63


def _integers(values: list, dtype: type) -> np.ndarray:
    def one(x: Fraction) -> int:
        assert x.denominator == 1
        return x.numerator if dtype is object else (x.numerator + 2**63) % 2**64 - 2**63

    return np.array(
        [[one(x) for x in row] if isinstance(row, list) else one(row) for row in values for x in [row]], dtype
    )


def _elementary_weights(table: TreeTable, kernel: np.ndarray, weights: np.ndarray, colour_of: np.ndarray) -> np.ndarray:
    """Return ``weights · G_t`` for every tree of the table, by one array operation for each pair of orders."""
    inner = table.start[-2] if table.order > 1 else table.start[-1]  # the largest trees are children of no tree
    stages = len(weights)
    products = np.zeros((inner, stages), kernel.dtype)
    sums = np.zeros((inner, stages), kernel.dtype)
    found = np.zeros(table.start[-1], kernel.dtype)
    for q in range(1, table.order + 1):
        block = table.block(q)
        if q == 1:
            rows = (np.arange(table.colours)[:, None] == colour_of[None, :]).astype(kernel.dtype)
        else:
            rows = products[table.rest[block]] * sums[table.last[block]]
        found[block] = rows @ weights
        if block.stop <= inner:
            products[block] = rows
            sums[block] = rows @ kernel.T
    return found
