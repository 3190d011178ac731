r"""Formulas as a person would write them: a number, powers of letters, and factors, the cheap ones first.

A polynomial is divided by factors that it is likely to have (those of the loss or the field); what is left is factored
only if it has few terms, and if no line through the space of its letters shows that it has no factors. On a line
:math:`a + tb` a polynomial of degree D is one in t; modulo a prime it has factors of some degrees, and a factor of the
polynomial itself has one of the sums of these degrees, for every line and every prime. If only 0 and D are left, there
is no factor.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterable
from typing import Any

import sympy as sp
from sympy.core.mul import _keep_coeff
from sympy.polys.galoistools import gf_ddf_zassenhaus, gf_degree, gf_monic, gf_sqf_p

MOST_FACTORED = 50
"""Largest number of terms of a polynomial that is factored: high degrees in several symbols take minutes."""
PREFERENCE = 2
"""Operations that a formula over one denominator may have more than one with several."""
PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179)
"""Primes modulo which a polynomial is restricted to a line, one after another."""


def quotient(top: Any, divisor: Any) -> Any | None:
    """Return top / divisor in a ring over the integers, None if that is no polynomial; both are not zero."""
    lead = max(divisor)
    if not _divides(lead, max(top)) or not _divides(min(divisor), min(top)):
        return None
    unit, rest = divisor[lead], [(m, v) for m, v in divisor.items() if m != lead]
    left, found = dict(top), top.ring.zero
    queue = [tuple(-k for k in m) for m in left]
    heapq.heapify(queue)
    while queue:
        monomial = tuple(-k for k in heapq.heappop(queue))
        value = left.pop(monomial, 0)
        if not value:
            continue
        if not _divides(lead, monomial) or value % unit:
            return None
        power, value = tuple(k - j for k, j in zip(monomial, lead, strict=True)), value // unit
        found[power] = value
        for m, v in rest:
            product = tuple(k + j for k, j in zip(power, m, strict=True))
            if product not in left:
                heapq.heappush(queue, tuple(-k for k in product))
            left[product] = left.get(product, 0) - value * v
    return found


def _divides(monomial: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(k <= j for k, j in zip(monomial, other, strict=True))


def monomial_and_rest(top: Any) -> tuple[tuple[int, ...], Any]:
    """Return the largest monomial that divides a polynomial, and the polynomial without it."""
    monomial = tuple(map(min, zip(*top, strict=True)))
    if not any(monomial):
        return monomial, top
    found = top.ring.zero
    found.update({tuple(k - j for k, j in zip(m, monomial, strict=True)): v for m, v in top.items()})
    return monomial, found


def is_irreducible(top: Any) -> bool:
    """Return whether a line proves that a primitive polynomial has no factors; if false, it may have none either."""
    degree = max(map(sum, top))
    draw, possible = random.Random(0), (1 << degree + 1) - 1
    for prime in PRIMES:
        line = [(draw.randrange(1, prime), draw.randrange(1, prime)) for _ in top.ring.gens]
        values = _on_line(top, line, prime, degree)
        if not values[0] or not gf_sqf_p(monic := gf_monic(values, prime, sp.ZZ)[1], prime, sp.ZZ):
            continue
        sums = 1
        for product, size in gf_ddf_zassenhaus(monic, prime, sp.ZZ):
            for _ in range(gf_degree(product) // size):
                sums |= sums << size
        possible &= sums
        if possible == 1 | 1 << degree:
            return True
    return degree <= 1


def _on_line(top: Any, line: list[tuple[int, int]], prime: int, degree: int) -> list[Any]:
    """Return the polynomial at a + t b modulo a prime, coefficients of t from the highest down."""
    # at degree + 1 points t, then the coefficients of the interpolation (Newton's)
    values = []
    for t in range(degree + 1):
        point = [(a + t * b) % prime for a, b in line]
        values.append(
            sum(int(v) * math.prod(map(pow, point, m, itertools.repeat(prime))) for m, v in top.items()) % prime
        )
    for k in range(1, degree + 1):
        inverse = pow(k, -1, prime)
        for t in range(degree, k - 1, -1):
            values[t] = (values[t] - values[t - 1]) * inverse % prime
    found = [0]
    for k in range(degree, -1, -1):  # found * (t - k) + values[k]
        found = [(a - k * b) % prime for a, b in zip([*found, 0], [0, *found], strict=True)]
        found[-1] = (found[-1] + values[k]) % prime
    return [sp.ZZ(v) for v in found[-degree - 1 :]]


def factors(top: Any, divisors: Iterable[Any] = ()) -> list[tuple[Any, int]]:
    """Return primitive factors with their powers of a primitive polynomial that no monomial divides.

    Args:
      top: the polynomial, over the integers.
      divisors: primitive polynomials that are tried first. They are found at any size, others only where few terms are left.
    """
    found: list[tuple[Any, int]] = []
    for divisor in divisors:
        power = 0
        while (rest := quotient(top, divisor)) is not None:
            top, power = rest, power + 1
        if power:
            found.append((divisor, power))
    if top.is_ground:
        return found
    if 1 < len(top) <= MOST_FACTORED and not is_irreducible(top):
        return found + [(factor, power) for factor, power in top.factor_list()[1]]
    return [*found, (top, 1)]


def parts(top: Any) -> tuple[int, tuple[int, ...], Any]:
    """Return (number, monomial, rest), whose product is the polynomial; the rest is primitive with a leading term above 0."""
    number, top = top.primitive()
    if top.LC < 0:
        number, top = -number, -top
    monomial, top = monomial_and_rest(top)
    return int(number), monomial, top


def divisors_of(tops: Iterable[Any]) -> list[Any]:
    """Return the distinct factors with two terms or more of some polynomials, for :func:`factors`."""
    found: list[Any] = []
    for top in tops:
        if top:
            found += [f for f, _ in factors(parts(top)[2], found) if f not in found and len(f) > 1]
    return found


def compact(element: Any, divisors: Iterable[Any] = ()) -> sp.Expr:
    """Return an element of a ring as a product, over one denominator unless it is much shorter with the inverses as letters.

    Args:
      element: a :class:`~bea.symbolic.rings.Element`.
      divisors: factors that it is likely to have.
    """
    ring, divisors = element.ring, list(divisors)
    plain = _written(ring, element.top, sp.Rational(1, element.bottom), {}, divisors)
    if not any(letter.kind != "function" for letter in ring.letters):
        return plain
    top, below, number = ring.normal(element.top, squares=False)
    fraction = _written(ring, top, sp.Rational(1, element.bottom * number), below, divisors)
    return fraction if fraction.count_ops() <= plain.count_ops() + PREFERENCE else plain


def _written(ring: Any, top: Any, scale: sp.Rational, below: dict[Any, int], divisors: list[Any]) -> sp.Expr:
    """Return scale · top / Π base ** power over the inverse letters in ``below``, as a product."""
    if not top:
        return sp.Integer(0)
    number, monomial, top = parts(top)
    powers: list[sp.Expr] = []
    for letter, power in below.items():
        base = ring.read(letter.base)
        unit, bare, rest = parts(base.top)
        if not any(bare):  # else the letter is the inverse of a letter, and the monomials cancel in sympy
            while power and (less := quotient(top, rest)) is not None:
                top, power, scale = less, power - 1, scale * sp.Rational(base.bottom, unit)
        powers.append(letter.base**-power)
    powers += [value**k for value, k in zip(ring.values, monomial, strict=False)]
    powers += [factor.as_expr(*ring.values) ** power for factor, power in factors(top, divisors)]
    return _keep_coeff(scale * number, sp.Mul(*powers))
