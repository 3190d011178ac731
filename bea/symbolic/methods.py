r"""One-step methods as exact tableaux, and the composition of their steps on different fields.

A Runge–Kutta method maps y to

.. math:: y + h \sum_i b_i f(Y_i), \qquad Y_i = y + h \sum_j a_{ij} f(Y_j) .

A composition is a sequence of :class:`Step`, run from left to right: ``[Step("euler", field=0), Step("euler",
field=1)]`` is one Euler step on :math:`f_0` and then one on :math:`f_1`. Step sizes are not part of it: the
coefficient of a tree is multiplied by one factor :math:`h_c` for every node of colour c.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any


def exact(value: Any, what: str) -> Fraction:
    """Return ``value`` as a Fraction; raise ValueError if it is not exact.

    Ints, Fractions, texts such as "1/2" and sympy's Rationals are exact, floats are not.
    """
    if isinstance(value, numbers.Rational) and not isinstance(value, bool):  # sympy's are such numbers too
        return Fraction(int(value.numerator), int(value.denominator))
    if isinstance(value, str):
        try:
            return Fraction(value)
        except (ValueError, ZeroDivisionError):
            pass
    hint = f"; write Fraction({value!r}) to mean this binary number" if isinstance(value, float) else ""
    raise ValueError(f"{what} is {value!r}, not an exact rational such as 2, '1/2' or Fraction(1, 2){hint}")


@dataclass(frozen=True, init=False)
class RungeKutta:
    """A Runge–Kutta method with rational tableau ``a`` (s × s) and weights ``b`` (s).

    Args:
      a: rows of the tableau; explicit methods have zeros on and above the diagonal.
      b: weights, of sum 1.
      c: nodes, which must be the row sums of ``a``; if None, they are not checked.
      name: name of the method in messages.

    Raises:
      ValueError: the tableau is not square, has entries that are not rational, or is inconsistent (Σb ≠ 1, or c is not
        the row sums).
    """

    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]
    name: str = field(default="Runge-Kutta", compare=False)

    def __init__(self, a: Sequence, b: Sequence, c: Sequence | None = None, name: str = "Runge-Kutta"):
        if isinstance(a, str) or isinstance(b, str) or any(isinstance(row, str) for row in a):
            raise ValueError(
                f"{name}: give the tableau as rows of numbers, RungeKutta(a=[[0]], b=[1]), not as one text"
            )
        rows, stages = [list(row) for row in a], len(list(b))
        if not rows or len(rows) != stages or any(len(row) != stages for row in rows):
            widths = [len(row) for row in rows]
            raise ValueError(
                f"{name}: the tableau is not square: {len(rows)} rows of lengths {widths} for {stages} weights b; "
                f"every row needs one entry for each stage (fill an explicit method up with zeros)"
            )
        object.__setattr__(
            self, "a", tuple(tuple(exact(x, f"a[{i}][{j}]") for j, x in enumerate(row)) for i, row in enumerate(rows))
        )
        object.__setattr__(self, "b", tuple(exact(x, f"b[{i}]") for i, x in enumerate(b)))
        object.__setattr__(self, "name", name)
        if sum(self.b) != 1:
            raise ValueError(f"{name}: the tableau is inconsistent: the weights b sum to {sum(self.b)}, not 1")
        if c is not None:
            for i, (row, node) in enumerate(zip(self.a, c, strict=True)):
                if sum(row) != exact(node, f"c[{i}]"):
                    raise ValueError(
                        f"{name}: the tableau is inconsistent: row {i} sums to {sum(row)}, but c is {node}"
                    )


def _named() -> dict[str, RungeKutta]:
    third, half = Fraction(1, 3), Fraction(1, 2)
    tableaux: dict[str, tuple[list, list]] = {
        "euler": ([[0]], [1]),
        "implicit-euler": ([[1]], [1]),
        "midpoint": ([[0, 0], [half, 0]], [0, 1]),
        "implicit-midpoint": ([[half]], [1]),
        "heun": ([[0, 0], [1, 0]], [half, half]),
        "rk4": ([[0] * 4, [half, 0, 0, 0], [0, half, 0, 0], [0, 0, 1, 0]], [third / 2, third, third, third / 2]),
    }
    return {name: RungeKutta(a, b, name=name) for name, (a, b) in tableaux.items()}


METHODS: dict[str, RungeKutta] = _named()
"""The named methods: euler, implicit-euler, midpoint, implicit-midpoint, heun, rk4."""


@dataclass(frozen=True)
class Step:
    """``steps`` repeats of one method on the field number ``field``, with ``scale`` times its step size.

    Args:
      method: a name from :data:`METHODS` or a :class:`RungeKutta`.
      field: colour of the field, 0, 1, …
      steps: number of repeats, ≥ 1; the cost does not depend on it.
      scale: exact rational factor of the step size (composition methods).
    """

    method: str | RungeKutta = "euler"
    field: int = 0
    steps: int = 1
    scale: Fraction | int | str = 1

    def __post_init__(self):
        object.__setattr__(self, "scale", exact(self.scale, "scale"))
        object.__setattr__(self, "method", tableau_of(self.method))
        if self.field < 0:
            raise ValueError(f"field is the number of a vector field, 0, 1, …, not {self.field}")
        if self.steps < 1:
            raise ValueError(f"steps is the number of repeats, at least 1, not {self.steps}")

    @property
    def tableau(self) -> tuple[list[list[Fraction]], list[Fraction]]:
        """``scale * a`` and ``scale * b``."""
        assert isinstance(self.method, RungeKutta)
        assert isinstance(self.scale, Fraction)
        return [[self.scale * x for x in row] for row in self.method.a], [self.scale * x for x in self.method.b]


Method = str | RungeKutta | Step | Sequence[Step]


def tableau_of(method: str | RungeKutta) -> RungeKutta:
    """Return the tableau of a named method, or a tableau as it is; raise ValueError if the name is unknown."""
    if isinstance(method, RungeKutta):
        return method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)} or pass a RungeKutta(a, b)")
    return METHODS[method]


def steps_of(method: Method) -> tuple[Step, ...]:
    """Return a method (a name, a tableau or steps) as a tuple of steps; raise ValueError if there is none."""
    if isinstance(method, (str, RungeKutta)):
        return (Step(method),)
    steps = (method,) if isinstance(method, Step) else tuple(method)
    if not steps or not all(isinstance(step, Step) for step in steps):
        raise ValueError(f"a composition is a non-empty sequence of Step, not {method!r}")
    return steps


def growth_rate(steps: Sequence[Step]) -> Fraction:
    r"""Return a number ρ with |φ(t)| ≤ ρ^|t| for the elementary weights φ of the composition, from its norms.

    It is :math:`\max(\|b\|_1, \|A\|_\infty)` of the one large tableau with n_i copies of each step's.
    """
    before, rows = Fraction(0), Fraction(0)
    for step in steps:
        a, b = step.tableau
        norm = sum(map(abs, b), Fraction(0))
        inner = max(sum(map(abs, row), Fraction(0)) for row in a)
        rows = max(rows, before + (step.steps - 1) * norm + inner)
        before += step.steps * norm
    return max(before, rows)


def denominator(steps: Sequence[Step]) -> int:
    """Return the least common denominator of all tableau entries."""
    entries = [
        x for step in steps for part in step.tableau for row in part for x in (row if isinstance(row, list) else [row])
    ]
    return math.lcm(*(x.denominator for x in entries))
