r"""Modified losses, if they exist, and an error with the reason if they do not.

A field on R^d is a gradient if and only if its Jacobian is symmetric; each order of the modified field is tested, and
integrated if it passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

import sympy as sp
from sympy.core.function import AppliedUndef

from bea.symbolic.equation import modified_equation, with_symmetry
from bea.symbolic.fields import (
    Symbols,
    _checked,
    _Differentials,
    check_expression,
    check_symbols,
    corrections,
    gradient_field,
    tidy,
)
from bea.symbolic.methods import Method, Step
from bea.trees import Tree

MOST_BATCHES = 6
"""Largest number of minibatches, whose orders are averaged one by one (6! = 720)."""


class NotAGradient(ValueError):
    """The modified field is not a gradient from some order on, so no modified loss exists.

    Attributes:
      field: the modified field through the requested order, a sympy column.
      antisymmetric: (J − Jᵀ)/2 of that field's Jacobian J, zero below ``order``.
      leading: its lowest term without the power of h: the antisymmetric part of the first correction that fails.
      order: that correction's order p: h f̃ is no gradient from h^p on.
      loss: the modified loss that does exist, through order p − 1.
    """

    def __init__(
        self,
        field: sp.Matrix,
        antisymmetric: sp.Matrix,
        leading: sp.Matrix,
        order: int,
        loss: sp.Expr,
        step: sp.Expr,
    ):
        self.field, self.antisymmetric, self.leading = field, antisymmetric, leading
        self.order, self.loss = order, loss
        i, j = next((i, j) for i in range(leading.rows) for j in range(i) if leading[i, j] != 0)
        super().__init__(
            f"no modified loss of order {order} exists: the {step}^{order - 1} term of the modified field is not a "
            f"gradient, its Jacobian has the antisymmetric part {_short(leading[i, j])} at ({i + 1}, {j + 1}); "
            f"ask for order {order - 1}, or take modified_field"
        )


def _short(expr: sp.Expr) -> str:
    text = str(expr)
    return text if len(text) <= 100 else text[:97] + "..."


def is_zero(expr: sp.Expr) -> bool:
    """Return whether the expression is identically zero; raise ValueError if sympy cannot decide.

    A value other than zero at one rational point, to 30 digits, decides against it without any rewriting. Undefined
    functions and their derivatives count as independent letters.
    """
    abstract = expr.atoms(sp.Derivative, AppliedUndef)
    expr = sp.expand(expr.xreplace({atom: sp.Dummy() for atom in abstract}))
    if expr == 0:
        return True
    if expr.is_polynomial(*expr.free_symbols):
        return False
    point = {x: sp.Rational(2 * k + 3, 3 * k + 7) for k, x in enumerate(sorted(expr.free_symbols, key=str))}
    value = expr.subs(point).evalf(30, chop=False)
    if value.is_number and value.is_finite and abs(value) > sp.Rational(1, 10**20):
        return False
    if sp.simplify(expr) == 0:
        return True
    answer = expr.equals(0)
    if answer is None:
        raise ValueError(f"cannot decide whether this is identically zero: {expr}")
    return bool(answer)


def antisymmetric_part(field: sp.MatrixBase, symbols: Symbols) -> sp.Matrix:
    """Return (J − Jᵀ)/2 of the Jacobian J of a field: zero exactly where the field is a gradient."""
    jacobian = sp.Matrix(field).jacobian(sp.Matrix(list(symbols)))
    return ((jacobian - jacobian.T) / 2).applyfunc(lambda e: sp.Integer(0) if is_zero(e) else tidy(e))


def potential(field: sp.MatrixBase, symbols: Symbols) -> sp.Expr:
    """Return φ with ∇φ = ``field``, for a field whose Jacobian is symmetric; integrals that sympy cannot solve remain.

    For polynomial fields φ(x) = ∫₀¹ x · field(sx) ds, a division by the degree; for others one coordinate after another.
    """
    if all(e.is_polynomial(*symbols) for e in field):
        radial = sp.Poly(sp.expand(sum(x * e for x, e in zip(symbols, field, strict=True))), *symbols)
        return sp.Add(*(c * sp.prod([x**k for x, k in zip(symbols, powers, strict=True)]) / max(sum(powers), 1)
                        for powers, c in radial.terms()))  # fmt: skip
    found: sp.Expr = sp.Integer(0)
    for x, component in zip(symbols, field, strict=True):
        found += sp.integrate(sp.expand(component - sp.diff(found, x)), x)
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

    Source: Barrett & Dherin (2021) for order 2; Hairer, Lubich & Wanner, chapter IX, for the field.
    """
    loss = check_expression(loss, "the loss")
    check_symbols(symbols, [loss], "the loss", [step], all_occur=True)
    h = sp.sympify(step)
    found = corrections(gradient_field(loss, symbols), symbols, order, method=method)
    total = loss
    for k, correction in enumerate(found[1:], 1):
        leading = antisymmetric_part(correction, symbols)
        if any(leading):
            whole = sum((c * h**j for j, c in enumerate(found)), sp.zeros(len(symbols), 1))
            rest = (antisymmetric_part(c, symbols) * h**j for j, c in enumerate(found[k + 1 :], k + 1))
            raise NotAGradient(whole, sum(rest, leading * h**k), leading, k + 1, total, h)
        if k == 1:  # known for every loss, so nothing has to be integrated: f'f = ∇|∇E|²/2
            second = _second_coefficient(method)
            total += h * tidy(-second / 2 * sum(sp.diff(loss, x) ** 2 for x in symbols))
        else:
            total += h**k * tidy(potential(-correction, symbols))
    return total


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
    table, h = _Differentials(fields, symbols), sp.sympify(step)
    parts = [table.combination({t: c for t, c in series.items() if t.order == q}) for q in range(1, order + 1)]
    return sum((h**k * part.applyfunc(tidy) / m for k, part in enumerate(parts)), sp.zeros(len(symbols), 1))


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
    """
    losses = [check_expression(e, f"loss {k}") for k, e in enumerate(losses, 1)]
    if not losses:
        raise ValueError("there are no losses: give the loss of each minibatch")
    check_symbols(symbols, losses, "the losses", [step], all_occur=True)
    m, h = len(losses), sp.sympify(step)
    mean = sum(losses) / m
    norm = lambda e: sum(sp.diff(e, x) ** 2 for x in symbols)
    return mean + h / 4 * norm(mean) + h / (4 * m) * sum(norm(e - mean) for e in losses)
