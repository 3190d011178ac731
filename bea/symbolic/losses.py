r"""Modified losses, if they exist, and an error with the reason if they do not.

A field on R^d is a gradient if and only if its Jacobian is symmetric; each order of the modified field is tested, and
integrated if it passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from itertools import permutations
from typing import Any

import sympy as sp
from sympy.core.mul import _keep_coeff

from bea.symbolic.equation import modified_equation, with_symmetry
from bea.symbolic.fields import (
    Differentials,
    Symbols,
    _checked,
    by_order,
    check_expression,
    check_symbols,
    gradient_field,
    tidy,
)
from bea.symbolic.methods import Method, Step
from bea.symbolic.rings import Element
from bea.trees import Tree

MOST_BATCHES = 6
"""Largest number of minibatches, whose orders are averaged one by one (6! = 720)."""


Curl = dict[tuple[int, int], Element]
"""The entries (i, j), j < i, of the antisymmetric part of a Jacobian that are not identically zero."""


class NotAGradient(ValueError):
    """The modified field is not a gradient from some order on, so no modified loss exists.

    The field and its antisymmetric part become formulas when they are asked for.

    Attributes:
      field: the modified field through the requested order, a sympy column.
      antisymmetric: (J − Jᵀ)/2 of that field's Jacobian J, zero below ``order``.
      leading: its lowest term without the power of h: the antisymmetric part of the first correction that fails.
      order: that correction's order p: h f̃ is no gradient from h^p on.
      loss: the modified loss that does exist, through order p − 1.
    """

    def __init__(
        self,
        table: Differentials,
        corrections: list[list[Element]],
        entries: Curl,
        order: int,
        loss: sp.Expr,
        step: sp.Expr,
    ):
        self._table, self._corrections, self._curl, self._step = table, corrections, entries, step
        self.order, self.loss = order, loss
        (i, j), first = next(iter(entries.items()))
        super().__init__(
            f"no modified loss of order {self.order} exists: the {step}^{self.order - 1} term of the modified field is not "
            f"a gradient, its Jacobian has the antisymmetric part {_short(_shown(table, i, j, first))} at "
            f"({i + 1}, {j + 1}); ask for order {self.order - 1}, or take modified_field"
        )

    @cached_property
    def field(self) -> sp.Matrix:
        columns = map(self._table.shown, self._corrections)
        return sum((c * self._step**k for k, c in enumerate(columns)), sp.zeros(len(self._table.ring.symbols), 1))

    @cached_property
    def leading(self) -> sp.Matrix:
        return _matrix(self._table, self._curl)

    @cached_property
    def antisymmetric(self) -> sp.Matrix:
        rest = (_matrix(self._table, curl(c)) for c in self._corrections[self.order :])
        return sum((m * self._step**k for k, m in enumerate((self.leading, *rest), self.order - 1)), 0 * self.leading)


def _short(expr: sp.Expr) -> str:
    text = str(expr)
    return text if len(text) <= 100 else text[:97] + "..."


def curl(field: Sequence[Element]) -> Curl:
    """Return the antisymmetric part (J − Jᵀ)/2 of the Jacobian J of a field, without what is zero."""
    ring, bottom = field[0].ring, field[0].bottom
    found: Curl = {}
    for i in range(len(field)):
        for j in range(i):
            top = ring.diff(field[i].top, j) - ring.diff(field[j].top, i)
            if not ring.is_zero(top):
                found[i, j] = Element(ring, top, 2 * bottom * ring.scale)
    return found


def _shown(table: Differentials, i: int, j: int, element: Element) -> sp.Expr:
    """Return the entry (i, j) of an antisymmetric part: it often vanishes where the two parameters are equal, or opposite."""
    x, y = (table.ring.integers.gens[k] for k in sorted((i, j)))
    return element.compact([*table.divisors, x - y, x + y])


def antisymmetric_part(field: sp.MatrixBase, symbols: Symbols) -> sp.Matrix:
    """Return (J − Jᵀ)/2 of the Jacobian J of a field: zero exactly where the field is a gradient."""
    components = [sp.sympify(e) for e in field]
    table = Differentials([components], symbols, 1)
    return _matrix(table, curl(table.field()))


def _matrix(table: Differentials, entries: Curl) -> sp.Matrix:
    found = sp.zeros(len(table.ring.symbols))
    for (i, j), element in entries.items():
        found[i, j] = _shown(table, i, j, element)
        found[j, i] = -found[i, j]
    return found


def potential(field: sp.MatrixBase, symbols: Symbols) -> sp.Expr:
    """Return φ with ∇φ = ``field``, for a field whose Jacobian is symmetric; integrals that sympy cannot solve remain.

    For polynomial fields φ(x) = ∫₀¹ x · field(sx) ds, a division by the degree; for others one coordinate after another.
    """
    components = [sp.sympify(e) for e in field]
    radial = _radial(Differentials([components], symbols, 1).field())
    return radial.expanded() if radial else _integral(components, symbols)


def _radial(field: Sequence[Element]) -> Element | None:
    """Return the potential of a polynomial field, None if it is not polynomial in the parameters."""
    ring, bottom = field[0].ring, field[0].bottom
    count = len(ring.symbols)
    if any(not letter.expr.free_symbols.isdisjoint(ring.symbols) for letter in ring.letters):
        return None
    work = sum((x * e.top for x, e in zip(ring.integers.gens, field, strict=False)), ring.integers.zero)
    common = math.lcm(*(sum(m[:count]) for m in work))
    found = ring.integers.from_dict({m: v * (common // sum(m[:count])) for m, v in work.items()})
    return Element(ring, found, bottom * common)


def _integral(field: Sequence[sp.Expr], symbols: Symbols) -> sp.Expr:
    """Return the potential of a field by integrals, one coordinate after another."""
    found: sp.Expr = sp.Integer(0)
    for x, component in zip(symbols, field, strict=True):
        found += sp.integrate(sp.expand(component - sp.diff(found, x), power_exp=False), x)
    return found


def modified_loss(loss: Any, symbols: Symbols, step: Any, order: int, *, method: Method = "euler") -> sp.Expr:
    r"""Return the loss whose gradient flow gradient descent follows, through order p: :math:`\tilde f =
    -\nabla\tilde E`.

    .. math:: \tilde E = E + \frac h4 \|\nabla E\|^2 + O(h^2)

    Order 1 is E itself, order 2 has the h term, for every loss; from order 3 on it exists only for some (all in one
    dimension, all quadratic ones).

    Args:
      loss: sympy expression E.
      symbols: the parameters, every one of which occurs in the loss; its other symbols are constants.
      step: h, the learning rate, a symbol or number that does not occur in the loss.
      order: p ≥ 1; :math:`h\nabla\tilde E` is exact through :math:`h^p`.
      method: the step's method, explicit Euler for gradient descent.

    Raises:
      NotAGradient: a correction is not a gradient; the error has the field, the antisymmetric part and the order.
      ValueError: symbols are missing, the loss has floats or non-smooth functions (named), or the order is below 1 or needs
        too much memory.

    Source: theory.md, (1.3); Barrett & Dherin (2021) for order 2; Hairer, Lubich & Wanner, chapter IX, for the field.
    """
    loss = check_expression(loss, "the loss")
    check_symbols(symbols, [loss], "the loss", [step], all_occur=True)
    h = sp.sympify(step)
    (field,) = _checked([gradient_field(loss, symbols)], symbols, order)
    table = Differentials([field], symbols, order)
    found = by_order(table, method, order)
    total = loss
    for k, correction in enumerate(found[1:], 1):
        if k > 1 and (entries := curl(correction)):
            raise NotAGradient(table, found, entries, k + 1, total, h)
        if k == 1:  # known for every loss, so nothing has to be integrated: f'f = ∇|∇E|²/2
            total += h * squared(table, found[0], _second_coefficient(method) / -2)
        elif radial := _radial(correction):
            total -= h**k * radial.compact(table.divisors)
        else:
            total -= h**k * tidy(_integral([e.expanded() for e in correction], symbols))
    return total


def squared(table: Differentials, field: Sequence[Element], factor: sp.Rational) -> sp.Expr:
    """Return a number times the squared length of a field: as a product, or as a sum of squares if that is shorter."""
    top = sum((e.top**2 for e in field), table.ring.integers.zero) * int(factor.p)
    product = Element(table.ring, top, field[0].bottom ** 2 * int(factor.q)).compact(table.divisors)
    gradient = table.shown([Element(e.ring, -e.top, e.bottom) for e in field])
    squares = _keep_coeff(factor, sp.Add(*(e**2 for e in gradient)))
    return min(product, squares, key=sp.count_ops)


def _second_coefficient(method: Method) -> sp.Rational:
    value = modified_equation(method, 2)[Tree("[[]]")]
    return sp.Rational(value.numerator, value.denominator)


def minibatch_field(losses: Sequence[Any], symbols: Symbols, step: Any, order: int) -> sp.Matrix:
    r"""Return the modified field of an epoch over minibatches without replacement, averaged over all their orders, per step.

    An epoch in the order π is the composition of one Euler step on each loss; its modified field is averaged over the
    m! orders and divided by the epoch's time m h. The average is over coloured trees, and uses no known formula.

    Args:
      losses: E_1, …, E_m, at most ``MOST_BATCHES``.
      symbols: the parameters.
      step: h, the learning rate.
      order: p ≥ 1; h f̃ is exact through h^p. (From order 3 on this averages the fields, not the end points.)

    Raises:
      ValueError: there are no losses or more than ``MOST_BATCHES``; else as :func:`modified_loss`.
    """
    losses = [check_expression(e, f"loss {k}") for k, e in enumerate(losses, 1)]
    m = len(losses)
    if not 1 <= m <= MOST_BATCHES:
        raise ValueError(
            f"there are {m} losses: all orders of 1 to {MOST_BATCHES} minibatches are averaged, one by one"
        )
    check_symbols(symbols, losses, "the losses", [step], all_occur=True)
    series = averaged_over_orders(m, order)
    fields = _checked([list(gradient_field(e, symbols)) for e in losses], symbols, order)
    table, h = Differentials(fields, symbols, order), sp.sympify(step)
    parts = [table.combination({t: c for t, c in series.items() if t.order == q}) for q in range(1, order + 1)]
    return sum((h**k * table.shown(part) / m for k, part in enumerate(parts)), sp.zeros(len(symbols), 1))


def averaged_over_orders(batches: int, order: int) -> dict[Tree, Fraction]:
    """Return the coefficients of one Euler step on each field, averaged over their orders (symmetry divided out)."""
    series = with_symmetry(modified_equation([Step(field=i) for i in range(batches)], order))
    total: dict[Tree, Fraction] = dict.fromkeys(series, Fraction(0))
    for colours in permutations(range(batches)):
        for tree, value in series.items():
            total[tree.recolour(colours)] += value
    return {tree: value / math.factorial(batches) for tree, value in total.items()}


def minibatch_loss(losses: Sequence[Any], symbols: Symbols, step: Any) -> sp.Expr:
    r"""Return the modified loss of an epoch without replacement, averaged over orders, to first order in h (Smith et al. 2021).

    .. math:: \tilde E = E + \frac h4 \|\nabla E\|^2 + \frac{h}{4m} \sum_k \|\nabla E_k - \nabla E\|^2

    The tests derive it from :func:`minibatch_field`. E is the mean of the E_k; arguments are those of that function.

    Raises:
      ValueError: there are no losses; else as :func:`modified_loss`.

    Source: theory.md, (1.7).
    """
    losses = [check_expression(e, f"loss {k}") for k, e in enumerate(losses, 1)]
    if not losses:
        raise ValueError("there are no losses: give the loss of each minibatch")
    check_symbols(symbols, losses, "the losses", [step], all_occur=True)
    m, h = len(losses), sp.sympify(step)
    mean = sum(losses) / m
    norm = lambda e: sum(sp.diff(e, x) ** 2 for x in symbols)
    return mean + h / 4 * norm(mean) + h / (4 * m) * sum(norm(e - mean) for e in losses)
