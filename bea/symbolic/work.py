"""What a derivation would take, estimated from the formulas before it begins: products of terms after expansion."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import sympy as sp

from bea.symbolic.fields import gradient_field
from bea.symbolic.rings import Ring

MOST_PRODUCTS = 20_000_000
"""Largest number of products of terms, about: ten seconds."""
MOST_READ = 20_000
"""Largest number of terms of a formula, or of its derivative, that is multiplied out to count them."""
MOST_ORDER = 1000
"""Largest order whose work is estimated; that of a higher one is too much."""
_TWO_TERMS = (sp.tan, sp.tanh)  # whose derivatives are 1 ± f²
_HUGE = 10**18


def check_work(formulas: Sequence[sp.Expr], symbols: Sequence[sp.Symbol], order: int, gradient: bool = True) -> None:
    """Raise ValueError if the corrections of these losses, or fields, have too many terms to be multiplied out.

    With T terms in a component of the field and R in a row of its Jacobian, the correction of order p − 1 has about
    :math:`D = T R^{p-2}` terms in each of d dimensions, and for polynomials at most the number of monomials of its degree.
    The next one takes d D R products, and :math:`T^{p-1}` for each of the symmetric index tuples of p − 1 parameters.
    """
    d, p = len(symbols), max(order, 2)
    whole = max(map(terms, formulas))
    products = _HUGE
    if p <= MOST_ORDER and max(whole, *(slopes(e) if gradient else 0 for e in formulas)) <= MOST_READ:
        fields = [gradient_field(e, symbols) for e in formulas] if gradient else [formulas]
        field, row = map(max, zip(*(_sizes(list(f), symbols) for f in fields), strict=True))
        before = field * row ** (p - 2)
        if all(e.is_polynomial(*symbols) for e in formulas):
            degree = max(sum_degree(e) for e in formulas) * (p - 1)
            before = min(before, math.comb(d + degree, d) if degree < 10_000 else _HUGE)
        products = p * d * (before * row + math.comb(d + p - 2, p - 1) * field ** (p - 1))
    if products > MOST_PRODUCTS:
        size = lambda number: f"{number:,}" if number < _HUGE else "more than 10^18"
        raise ValueError(
            f"multiplied out, the formula has {size(whole)} terms, and its corrections through order {order} take about "
            f"{size(min(products, _HUGE))} products of terms, above the limit of {MOST_PRODUCTS:,}: take a lower power, fewer "
            "parameters, or a lower order"
        )


def _sizes(field: Sequence[sp.Expr], symbols: Sequence[sp.Symbol]) -> tuple[int, int]:
    """Return the most terms of a component of the field, and of a row of its Jacobian."""
    ring = Ring(field, symbols, 1)
    tops = [ring.read(e).top for e in field]
    rows = (sum(len(ring.diff(top, j)) for j in range(len(symbols))) for top in tops)
    return max(map(len, tops)), max(rows)


@functools.cache
def terms(expr: sp.Expr) -> int:
    """Return the number of terms of an expression after it is multiplied out, at most."""
    if expr.is_Add:
        return min(sum(map(terms, expr.args)), _HUGE)
    if expr.is_Mul:
        return min(math.prod(map(terms, expr.args)), _HUGE)
    if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
        return min(math.comb(int(expr.exp) + terms(expr.base) - 1, int(expr.exp)), _HUGE)
    return 1


@functools.cache
def slopes(expr: sp.Expr) -> int:
    """Return the number of terms of a derivative of an expression after it is multiplied out, at most."""
    if not expr.args:
        return 1
    if expr.is_Add:
        return min(sum(map(slopes, expr.args)), _HUGE)
    if expr.is_Mul:
        return min(sum(slopes(x) * math.prod(terms(y) for y in expr.args if y is not x) for x in expr.args), _HUGE)
    if expr.is_Pow and expr.exp.is_Integer:
        power = expr.base ** max(abs(int(expr.exp)) - 1, 0) if expr.exp > 0 else sp.S.One
        return min(terms(power) * slopes(expr.base), _HUGE)
    if expr.is_Pow:
        return min(slopes(expr.exp) + terms(expr.exp) * slopes(expr.base), _HUGE)
    return min((2 if isinstance(expr, _TWO_TERMS) else 1) * sum(map(slopes, expr.args)), _HUGE)


@functools.cache
def sum_degree(expr: sp.Expr) -> int:
    """Return the degree of a polynomial, at most."""
    if expr.is_Add:
        return max(map(sum_degree, expr.args))
    if expr.is_Mul:
        return sum(map(sum_degree, expr.args))
    if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
        return int(expr.exp) * sum_degree(expr.base)
    return 1 if expr.free_symbols else 0
