r"""Actual steps in exact arithmetic: iterates as polynomials in h with rational coefficients, and their logarithm.

An independent check of every coefficient, without trees or derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any


class Truncated:
    """A polynomial in h, truncated after h^p; supports +, − and × with its kind and with rationals."""

    __slots__ = ("coefficients",)

    def __init__(self, coefficients: Sequence[Any]):
        self.coefficients = list(coefficients)

    @classmethod
    def constant(cls, value: Any, order: int) -> Truncated:
        return cls([value] + [Fraction(0)] * order)

    @classmethod
    def h(cls, order: int) -> Truncated:
        return cls([Fraction(0), Fraction(1)] + [Fraction(0)] * (order - 1))

    def _lift(self, other: Any) -> Truncated:
        return other if isinstance(other, Truncated) else Truncated.constant(other, len(self.coefficients) - 1)

    def __add__(self, other: Any) -> Truncated:
        return Truncated([a + b for a, b in zip(self.coefficients, self._lift(other).coefficients, strict=True)])

    __radd__ = __add__

    def __neg__(self) -> Truncated:
        return Truncated([-a for a in self.coefficients])

    def __sub__(self, other: Any) -> Truncated:
        return self + (-self._lift(other))

    def __rsub__(self, other: Any) -> Truncated:
        return -self + other

    def __mul__(self, other: Any) -> Truncated:
        right, n = self._lift(other).coefficients, len(self.coefficients)
        return Truncated(
            [sum((self.coefficients[j] * right[k - j] for j in range(k + 1)), Fraction(0)) for k in range(n)]
        )

    __rmul__ = __mul__

    def __pow__(self, exponent: int) -> Truncated:
        result = self._lift(Fraction(1))
        for _ in range(exponent):
            result = result * self
        return result


def log_map(step: Callable[[list[Any]], list[Any]], point: Sequence[Any], order: int) -> list[Any]:
    r"""Return the modified displacement of a step from its iterates, in exact numbers of any kind.

    .. math:: h \tilde f(\theta_0) = \sum_{k=1}^{p} \frac{(-1)^{k+1}}{k}\, \Delta^k \theta_0 + O(h^{p+1})

    This is :func:`bea.log_map`, which takes floating pytrees, in exact numbers. With :class:`Truncated` numbers the
    remainder is truncated too, so the result EQUALS the modified equation's.

    Raises:
      ValueError: order is below 1.
    """
    if order < 1:
        raise ValueError(f"order is {order}, but has to be at least 1: it is the number of steps to run")
    differences = [list(point)]
    for _ in range(order):
        differences.append(step(differences[-1]))
    total: list[Any] | None = None
    for k in range(1, order + 1):
        differences = [[b - a for a, b in zip(x, y, strict=True)] for x, y in pairwise(differences)]
        term = [value * Fraction((-1) ** (k + 1), k) for value in differences[0]]
        total = term if total is None else [a + b for a, b in zip(total, term, strict=True)]
    assert total is not None
    return total
