r"""Formulas as polynomials over the integers: parameters, constants, and one letter for each function and its derivatives.

A formula that is no polynomial is one in further generators, its letters: :math:`\exp(u)`, :math:`\sin(u)`,
:math:`u^{1/q}`, :math:`u^{-1}`, the partial derivatives of an undefined function, … What holds for independent letters
holds for the functions, so sums and products of elements are exact. Derivatives are exact too: those of the letters are
polynomials in letters again, taken beforehand. Whether an element is zero is known after :meth:`Ring.normal` where the
letters are independent; elsewhere numbers decide, as in :func:`is_zero`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import mpmath
import sympy as sp
from sympy.core.function import AppliedUndef
from sympy.polys.rings import PolyElement

from bea.symbolic.compact import compact

MOST_OPERATIONS = 60
"""Largest number of operations of a denominator that is factored before it becomes a letter."""
DIGITS = 50
"""Digits of the numbers by which an element is told from zero."""


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


@dataclass(frozen=True)
class Letter:
    """A generator for a function, the inverse of ``base``, or its root of degree ``degree``."""

    kind: Literal["function", "inverse", "root"]
    base: sp.Expr
    degree: int = 1

    @property
    def expr(self) -> sp.Expr:
        """The letter's value."""
        if self.kind == "function":
            return self.base
        return sp.Pow(self.base, -1 if self.kind == "inverse" else sp.Rational(1, self.degree))


def _power(base: sp.Expr, exponent: sp.Rational) -> Iterator[tuple[sp.Expr | Letter, int]]:
    """Return base ** exponent as a product of powers, of formulas to positive exponents and of letters."""
    whole, part = divmod(exponent, 1)
    if part:
        yield Letter("root", base, int(part.q)), int(part.p)
    if whole > 0:
        yield base, int(whole)
    elif whole < 0:
        yield from ((factor, n * int(-whole)) for factor, n in _inverse(base))


@lru_cache(maxsize=1 << 12)
def _inverse(base: sp.Expr) -> tuple[tuple[sp.Expr | Letter, int], ...]:
    """Return 1/base as powers of rational numbers and letters, one for each factor of the base."""
    if base.is_Rational:
        return ((1 / base, 1),)
    if base.is_Add and base.count_ops() <= MOST_OPERATIONS:
        base = sp.factor(base)
    if base.is_Mul:
        return tuple(itertools.chain.from_iterable(_inverse(factor) for factor in base.args))
    if isinstance(base, sp.exp):
        return tuple(_product(sp.exp(-base.exp)))
    if base.is_Pow and base.exp.is_Rational:
        return tuple(_power(base.base, -base.exp))
    return ((Letter("inverse", base), 1),)


def _product(expr: sp.Expr) -> Iterator[tuple[sp.Expr | Letter, int]]:
    """Return an expression that is no sum, product, number or symbol as a product of powers."""
    if isinstance(expr, sp.exp):  # exp(p w / q) is a power of exp(w / q)
        number, rest = expr.exp.primitive()
        if rest.could_extract_minus_sign():
            number, rest = -number, -rest
        letter = sp.exp(rest / number.q)
        if letter != expr:
            yield (letter, int(number.p)) if number > 0 else (Letter("inverse", letter), int(-number.p))
            return
    elif expr.is_Pow and expr.exp.is_Rational:
        yield from _power(expr.base, expr.exp)
        return
    yield Letter("function", expr), 1


class Ring:
    """Polynomials over the integers in ``symbols``, the other symbols of ``expressions``, and their letters.

    Args:
      expressions: what is to be read; the ring holds these, and sums, products and derivatives of them.
      symbols: the parameters, with respect to which derivatives are taken.
      depth: how often derivatives of the expressions may be taken.
    """

    def __init__(self, expressions: Iterable[sp.Expr], symbols: Sequence[sp.Symbol] = (), depth: int = 0):
        expressions = list(expressions)
        self.symbols = list(symbols)
        self._slopes: dict[Letter, dict[sp.Symbol, sp.Expr]] = {}
        plain: dict[sp.Symbol, None] = {}
        letters: dict[Letter, None] = {}
        new = self._register(expressions, plain, letters)
        for _ in range(depth):
            for letter in new:
                expr = letter.expr
                own = [x for x in self.symbols if x in expr.free_symbols]
                self._slopes[letter] = {x: sp.diff(expr, x) for x in own}
            new = self._register((e for letter in new for e in self._slopes[letter].values()), plain, letters)
            if not new:
                break
        self.constants = sorted(plain.keys() - set(self.symbols), key=str)
        self.letters = list(letters)
        names = [*self.symbols, *self.constants, *(sp.Dummy() for _ in letters)] or [sp.Dummy()]
        self.rationals = sp.ring(names, sp.QQ)[0]
        self.integers = self.rationals.clone(domain=sp.ZZ)
        first = len(self.symbols) + len(self.constants)
        self.index: dict[Any, int] = {x: i for i, x in enumerate(names[:first])}
        self.index |= {letter: first + i for i, letter in enumerate(self.letters)}
        self.values = [*names[:first], *(letter.expr for letter in self.letters)] or names

    @staticmethod
    def _register(expressions: Iterable[sp.Expr], plain: dict, letters: dict) -> list[Letter]:
        """Add the symbols and letters in expressions to those known; return the new letters."""
        before, todo = len(letters), list(expressions)
        while todo:
            expr = todo.pop()
            if isinstance(expr, Letter):
                if expr not in letters:
                    letters[expr] = None
                    if expr.kind != "function":
                        todo.append(expr.base)
            elif expr.is_Symbol:
                plain[expr] = None
            elif expr.is_Add or expr.is_Mul:
                todo += expr.args
            elif expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
                todo.append(expr.base)
            elif not expr.is_Rational:
                todo += [factor for factor, _ in _product(expr)]
        return list(letters)[before:]

    def read(self, expr: sp.Expr) -> Element:
        """Return a formula as an element of the ring; its symbols and letters are the ring's."""
        bottom, top = self._read(expr).clear_denoms()
        return Element(self, top.set_ring(self.integers), int(bottom))

    def _read(self, expr: Any) -> PolyElement:
        if expr in self.index:
            return self.rationals.gens[self.index[expr]]
        if expr.is_Rational:
            return self.rationals(sp.QQ(int(expr.p), int(expr.q)))
        if expr.is_Add:
            return sum(map(self._read, expr.args), self.rationals.zero)
        if expr.is_Mul:
            return math.prod(map(self._read, expr.args), start=self.rationals.one)
        if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
            return self._read(expr.base) ** int(expr.exp)
        return math.prod((self._read(factor) ** n for factor, n in _product(expr)), start=self.rationals.one)

    @cached_property
    def _derivatives(self) -> tuple[int, dict[int, list[tuple[int, PolyElement]]]]:
        """Return m, and for every symbol (letter, m times the derivative of the letter)."""
        read = {letter: {x: self.read(e) for x, e in slopes.items()} for letter, slopes in self._slopes.items()}
        scale = math.lcm(*(e.bottom for slopes in read.values() for e in slopes.values()))
        table: dict[int, list[tuple[int, PolyElement]]] = {i: [] for i in range(len(self.symbols))}
        for letter, slopes in read.items():
            for x, e in slopes.items():
                table[self.index[x]].append((self.index[letter], e.top * (scale // e.bottom)))
        return scale, table

    @property
    def scale(self) -> int:
        """The integer m such that :meth:`diff` gives m times a derivative."""
        return self._derivatives[0]

    def diff(self, top: PolyElement, symbol: int) -> PolyElement:
        """Return :attr:`scale` times the derivative of a polynomial with respect to the symbol of this number."""
        scale, table = self._derivatives
        found = top.diff(symbol) * scale
        for letter, slope in table[symbol]:
            found += top.diff(letter) * slope
        return found

    def normal(self, top: PolyElement, *, squares: bool = True) -> tuple[PolyElement, dict[Letter, int], int]:
        """Return (numerator without inverses, {inverse letter: power k}, number): top is numerator / (number · Π baseᵏ).

        Roots are reduced to powers below their degree; with ``squares`` also sin² to 1 − cos² and cosh² to 1 + sinh².
        """
        below: dict[Letter, int] = {}
        number = 1
        for letter in self.letters:
            generator = self.index[letter]
            most = max((m[generator] for m in top), default=0)
            if letter.kind == "inverse" and most:
                base = self.read(letter.base)
                split = _split(top, generator).items()
                top = sum((p * base.top ** (most - k) * base.bottom**k for k, p in split), self.integers.zero)
                below[letter] = most
                number *= base.bottom**most
            degree, value = self._relation(letter, squares)
            if degree and (most := most // degree):
                split, root = _split(top, generator).items(), self.integers.gens[generator]
                reduced = (
                    p * root ** (k % degree) * value.top ** (k // degree) * value.bottom ** (most - k // degree)
                    for k, p in split
                )
                top, number = sum(reduced, self.integers.zero), number * value.bottom**most
        if any(x.kind == "inverse" and m[self.index[x]] for x in self.letters for m in top):
            top, more, again = self.normal(top, squares=squares)
            below, number = {x: below.get(x, 0) + more.get(x, 0) for x in below | more}, number * again
        return top, below, number

    def _relation(self, letter: Letter, squares: bool) -> tuple[int, Any]:
        """Return (n, value) for a letter whose n-th power is known, else (0, None)."""
        if letter.kind == "root":
            return letter.degree, self.read(letter.base)
        for function, partner, sign in ((sp.sin, sp.cos, -1), (sp.cosh, sp.sinh, 1)):
            if squares and letter.kind == "function" and isinstance(letter.base, function):
                other = Letter("function", partner(letter.base.args[0]))
                if other in self.index:
                    return 2, Element(self, 1 + sign * self.integers.gens[self.index[other]] ** 2, 1)
        return 0, None

    def is_zero(self, top: PolyElement) -> bool:
        """Return whether the element is identically zero; raise ValueError if that cannot be decided."""
        if not top or not self.letters:
            return not top
        top = self.normal(top)[0]
        if not top or self._is_clearly_not_zero(top):
            return not top
        return is_zero(top.as_expr(*self.values))

    def _is_clearly_not_zero(self, top: PolyElement) -> bool:
        """Return whether numbers in place of the letters show that a polynomial is not identically zero."""
        if all(letter.kind == "function" and _is_free(letter.base) for letter in self.letters):
            return True
        if self._point is None:
            return False
        with mpmath.workdps(DIGITS):
            value = sum(
                int(v) * mpmath.fprod(x**k for x, k in zip(self._point, m, strict=True) if k) for m, v in top.items()
            )
            return bool(abs(value) > mpmath.mpf(10) ** -20)

    @cached_property
    def _point(self) -> list[Any] | None:
        """Return the values of the generators at a rational point, free letters at numbers; None if one is not finite."""
        symbols = sorted(set().union(*(x.free_symbols for x in self.values)), key=str)
        point: dict[Any, sp.Rational] = {x: sp.Rational(2 * k + 3, 3 * k + 7) for k, x in enumerate(symbols)}
        free = sorted(set().union(*(x.atoms(sp.Derivative, AppliedUndef) for x in self.values)), key=str)
        point |= {x: sp.Rational(3 * k + 5, 2 * k + 11) for k, x in enumerate(free)}
        values = [value.xreplace(point).evalf(DIGITS, chop=False) for value in self.values]
        if not all(value.is_number and value.is_finite for value in values):
            return None
        return [value._to_mpmath(mpmath.libmp.dps_to_prec(DIGITS)) for value in values]


def _is_free(expr: sp.Expr) -> bool:
    """Return whether a letter is an undefined function or its derivative, which may have any value."""
    return isinstance(expr, AppliedUndef) or (isinstance(expr, sp.Derivative) and isinstance(expr.expr, AppliedUndef))


def _split(top: PolyElement, generator: int) -> dict[int, PolyElement]:
    """Return the coefficients of a polynomial in one generator, by power."""
    parts: dict[int, PolyElement] = {}
    for monomial, value in top.items():
        k = monomial[generator]
        part = parts.setdefault(k, top.ring.zero)
        part[(*monomial[:generator], 0, *monomial[generator + 1 :])] = value
    return parts


@dataclass(frozen=True)
class Element:
    """``top / bottom`` in a ring, with an integer ``bottom`` above 0."""

    ring: Ring
    top: Any
    bottom: int

    def expanded(self) -> sp.Expr:
        """Return the formula, multiplied out."""
        shown = self.ring.rationals.from_dict({m: sp.QQ(int(v), self.bottom) for m, v in self.top.items()})
        return shown.as_expr(*self.ring.values)

    def compact(self, divisors: Sequence[Any] = ()) -> sp.Expr:
        """Return the formula as a person would write it, a product where it is one (:mod:`bea.symbolic.compact`)."""
        return compact(self, divisors)
