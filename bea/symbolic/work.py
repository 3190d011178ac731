"""What a derivation would take, estimated from the formulas before it begins: products of terms after expansion."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import sympy as sp

MOST_PRODUCTS, MOST_ROOTED = 20_000_000, 50_000
"""Largest number of products of terms, about, of polynomials, and with functions or roots: seconds."""
_TWO_TERMS = (sp.tan, sp.tanh)  # whose derivatives are 1 ± f²
_HUGE = 10**18


def check_work(formulas: Sequence[sp.Expr], symbols: Sequence[sp.Symbol], order: int, gradient: bool = True) -> None:
    """Raise ValueError if the corrections of these losses, or fields, have too many terms to be multiplied out.

    With T terms in a component of the field and at most D in the corrections before, the last one takes about p d² D T
    products in d dimensions: D is T to the power p − 1, and for polynomials at most the number of monomials of its degree.
    """
    d = len(symbols)
    whole = [terms(e) for e in formulas]
    field = max(slopes(e) if gradient else terms(e) for e in formulas)
    before = min(field ** (max(order, 2) - 1), _HUGE)
    polynomial = all(e.is_polynomial(*symbols) for e in formulas)
    most = MOST_PRODUCTS if polynomial else MOST_ROOTED
    if polynomial:
        degree = max(sum_degree(e) for e in formulas) * max(order - 1, 1)
        before = min(before, math.comb(d + degree, d) if degree < 10_000 else _HUGE)
    products = max(order, 2) * d**2 * before * field
    if max(products, max(whole)) > most:
        size = lambda number: f"{number:,}" if number < _HUGE else "more than 10^18"
        raise ValueError(
            f"multiplied out, the formula has {size(max(whole))} terms, and its corrections through order {order} take about "
            f"{size(min(products, _HUGE))} products of terms, above the limit of {most:,}: take a lower power, fewer "
            "parameters, or a lower order"
        )


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
