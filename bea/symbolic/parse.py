"""Formulas as text, parsed by Python's syntax tree with a list of allowed names, never evaluated as Python."""

from __future__ import annotations

import ast
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable
from fractions import Fraction

import sympy as sp

FUNCTIONS: dict[str, Callable] = {
    name: getattr(sp, name)
    for name in (
        "exp", "log", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan", "asinh", "erf",
    )
}  # fmt: skip
"""Functions that a formula may call."""
CONSTANTS: dict[str, sp.Expr] = {"pi": sp.pi, "E": sp.E}
"""Names of constants, unless they are parameters."""
NOT_SMOOTH = (
    "Abs",
    "abs",
    "Max",
    "max",
    "Min",
    "min",
    "sign",
    "relu",
    "floor",
    "ceil",
    "ceiling",
    "round",
    "Heaviside",
)

MOST_NESTED, MOST_EXPONENTIALS, LARGEST_ARGUMENT = 6, 3, 10_000
LONGEST, DEEPEST, LARGEST_EXPONENT, LARGEST_NUMBER = 2_000, 60, 64, 10**30
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class FormulaError(ValueError):
    """A formula that cannot be parsed; the message names the part and the allowed forms."""


def parse_formula(text: str, names: Iterable[str] | None = None, own: Iterable[str] = ()) -> sp.Expr:
    """Read a formula in Python's notation as a sympy expression with exact numbers (0.5 is read as 1/2).

    Args:
      text: numbers, names, + − * / ** ^, parentheses and the functions of :data:`FUNCTIONS`.
      names: the symbols that may occur; if None, any plain name.
      own: names that are symbols even where they are constants otherwise; others may occur too.

    Raises:
      FormulaError: the text is anything else. Nothing is ever evaluated as Python.
    """
    if len(text) > LONGEST:
        raise FormulaError(f"the formula has {len(text):,} characters, more than {LONGEST:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Python's advice on odd code, such as 1(2), is not for the user of a formula
            tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise FormulaError(
            f"{_shown(text)} is not a formula: {getattr(error, 'msg', None) or 'it cannot be read'}"
        ) from None
    expr = _read(tree.body, text, None if names is None else set(names), set(own), 0)
    if expr.has(sp.zoo, sp.oo, sp.nan):
        raise FormulaError(f"{_shown(text)} divides by zero")
    if expr.has(sp.I):
        raise FormulaError(f"{_shown(text)} is not real")
    return expr


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _read(node: ast.AST, text: str, names: set[str] | None, own: set[str], depth: int) -> sp.Expr:
    if depth > DEEPEST:
        raise FormulaError(f"{_shown(text)} is nested more than {DEEPEST} deep")
    read = lambda part: _read(part, text, names, own, depth + 1)
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as value):
            return _number(node, value, text)
        case ast.Name(id=name):
            return sp.Symbol(name) if name in own else _symbol(name, text, names)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -read(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return read(operand)
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            base, exponent = read(left), read(right)
            _check_tower(exponent, node)
            if exponent.is_number and not abs(exponent) <= LARGEST_EXPONENT:
                raise FormulaError(f"the exponent in {_shown(ast.unparse(node))} is above {LARGEST_EXPONENT}")
            return _bounded(base**exponent, node)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, left=left, right=right):
            a, b = read(left), read(right)
            kind = type(op)
            return _bounded(
                a + b if kind is ast.Add else a - b if kind is ast.Sub else a * b if kind is ast.Mult else a / b, node
            )
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            inner = read(argument)
            if name in ("exp", "sinh", "cosh"):
                _check_tower(inner, node)
            if _nested(inner) >= MOST_NESTED:
                raise FormulaError(f"{_shown(text)} has more than {MOST_NESTED} functions in one another")
            return FUNCTIONS[name](inner)
        case ast.Call(func=ast.Name(id=name)) if name in NOT_SMOOTH:
            raise FormulaError(f"{name} is not smooth, and the expansion needs its derivatives: use a smooth stand-in")
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
            raise FormulaError(f"{name} takes exactly one argument")
        case ast.Call(func=ast.Name(id=name)):
            raise FormulaError(f"unknown function {name}: use one of {', '.join(FUNCTIONS)}")
    raise FormulaError(
        f"{_shown(ast.unparse(node))} is not allowed in a formula: use numbers, names, + - * / ** and functions"
    )


def _check_tower(exponent: sp.Expr, node: ast.AST) -> None:
    """Raise FormulaError if exponentials stand so high on each other that their values have too many digits."""
    if _tower(exponent) >= MOST_EXPONENTIALS or _magnitude(exponent) > LARGEST_ARGUMENT:
        raise FormulaError(
            f"{_shown(ast.unparse(node))} is a tower of exponentials: at most {MOST_EXPONENTIALS} may be in one another, and "
            f"an exponent may reach {LARGEST_ARGUMENT:,} where all names are 1"
        )


@functools.cache
def _nested(expr: sp.Expr) -> int:
    """Return how many functions are in one another."""
    return max(map(_nested, expr.args), default=0) + isinstance(expr, sp.Function)


@functools.cache
def _tower(expr: sp.Expr) -> int:
    """Return how many exponentials are in one another."""
    inside = max(map(_tower, expr.args), default=0)
    return inside + (isinstance(expr, sp.exp | sp.sinh | sp.cosh) or (expr.is_Pow and not expr.exp.is_Rational))


@functools.cache
def _magnitude(expr: sp.Expr) -> float:
    """Return about the largest size of an expression where all symbols are 1; infinite if that is no number."""
    if expr.is_Rational or expr in (sp.pi, sp.E):
        return abs(float(expr))
    sizes = [_magnitude(arg) for arg in expr.args]
    try:
        if expr.is_Add or expr.is_Mul:
            return sum(sizes) if expr.is_Add else math.prod(sizes)
        if expr.is_Pow:
            return max(sizes[0], 1.0) ** (max(float(expr.exp), 0.0) if expr.exp.is_Rational else sizes[1])
        return math.exp(sizes[0]) if isinstance(expr, sp.exp | sp.sinh | sp.cosh) else max([1.0, *sizes])
    except OverflowError:
        return math.inf


def _bounded(value: sp.Expr, node: ast.AST) -> sp.Expr:
    if value.is_Rational and max(abs(value.p), value.q) > LARGEST_NUMBER:
        raise FormulaError(f"{_shown(ast.unparse(node))} is a number of more than 30 digits")
    return value


def _number(node: ast.AST, value: int | float, text: str) -> sp.Expr:
    """Return the number as written: 0.1 is 1/10, not the nearest binary fraction."""
    literal = Fraction(value) if isinstance(value, int) else Fraction(repr(value)) if abs(value) < 1e300 else None
    if literal is None or max(abs(literal.numerator), literal.denominator) > LARGEST_NUMBER:
        raise FormulaError(f"a number in {_shown(text)} has more than 30 digits")
    return sp.Rational(literal.numerator, literal.denominator)


def _symbol(name: str, text: str, names: set[str] | None) -> sp.Expr:
    if names is not None and name in names:
        return sp.Symbol(name)
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name in FUNCTIONS or name in NOT_SMOOTH:
        raise FormulaError(f"{name} is a function in {_shown(text)}: call it, {name}(x)")
    if not _NAME.fullmatch(name) or "__" in name:
        raise FormulaError(f"{name!r} is not a name for a parameter: letters, digits and single underscores")
    if names is not None:
        raise FormulaError(f"unknown name {name} in {_shown(text)}: the names are {', '.join(sorted(names)) or 'none'}")
    return sp.Symbol(name)
