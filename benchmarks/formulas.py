r"""Speed of modified losses of given formulas, against plain sympy in the same run and against fixed limits.

``python -m benchmarks.formulas`` times what ``deepfusion derive --loss`` prints as text: the modified loss, or, if there
is none, the loss of lower order, the modified field and the antisymmetric part of its Jacobian. The plain way multiplies
expressions out and factors each (:func:`plain_field`). Both are checked to be equal at a rational point. Times are the
process's own (user and system), so that other work on the machine matters little; sympy's cache is emptied before each
run. ``--json FILE`` (``-`` for the terminal) writes the numbers.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import sympy as sp

from bea.symbolic import NotAGradient, gradient_field, modified_equation, modified_loss, parse_formula
from bea.symbolic.equation import with_symmetry
from bea.symbolic.presentation import present_loss
from bea.trees import Tree
from benchmarks.output import hand_over

SIX = "((p*a+q*c-1)**2+(p*b+q*d-2)**2)/2"
# (name, loss, order, limit in seconds, whether plain sympy is timed too): the project's own limits
CASES: list[tuple[str, str, int, float, bool]] = [
    ("four parameters, one product", "(a*b*c*d-1)**2/2", 4, 0.3, True),
    ("four parameters, two products", "(a*b+c*d-1)**2/2", 4, 0.3, True),
    ("six parameters, one product", "(a*b*c*d*p*q-1)**2/2", 4, 5.0, False),
    ("six parameters, three products", "(a*b+c*d+p*q-1)**2/2", 4, 5.0, False),
    ("six parameters, a net of two layers", SIX, 4, 5.0, False),
    ("exp", "x*exp(x*y)+y**2", 4, 0.3, True),
    ("tanh", "(tanh(x*y)-1)**2/2", 4, 0.3, True),
    ("sin, cos", "sin(x)*cos(y)+x**2", 4, 0.3, True),
    ("log, exp", "log(1+exp(-x*y))", 3, 0.3, True),
    ("a root", "y*sqrt(1+x**2)", 4, 0.3, True),
]
STEP = sp.Symbol("h")


def plain_field(loss: sp.Expr, symbols: Sequence[sp.Symbol], order: int, method: str = "euler") -> list[sp.Matrix]:
    """Return the corrections of all orders by the plain way: expressions, tree by tree, each multiplied out."""
    field, known = gradient_field(loss, symbols), {}

    def differential(tree: Tree) -> sp.Matrix:
        if tree not in known:
            inner, total = [differential(child) for child in tree.children], sp.zeros(len(symbols), 1)
            for index in itertools.product(range(len(symbols)), repeat=len(inner)):
                slope = field.diff(*(symbols[i] for i in index)) if index else field
                total += slope * sp.prod(vector[i] for vector, i in zip(inner, index, strict=True))
            known[tree] = total.applyfunc(sp.expand)
        return known[tree]

    found = [sp.zeros(len(symbols), 1) for _ in range(order)]
    for tree, value in with_symmetry(modified_equation(method, order)).items():
        found[tree.order - 1] += sp.Rational(value.numerator, value.denominator) * differential(tree)
    return found


def plainly_simplified(expr: sp.Expr) -> sp.Expr:
    """Return the expression factored, or simplified if it has functions and is short."""
    if expr.is_polynomial(*expr.free_symbols):
        return sp.factor(expr) if len(sp.Add.make_args(sp.expand(expr))) <= 50 else expr
    return sp.simplify(expr) if expr.count_ops() <= 20 else sp.factor_terms(expr)


def plain_text(loss: sp.Expr, symbols: Sequence[sp.Symbol], order: int) -> str:
    """Return what a modified field and its Jacobians' antisymmetric parts are by the plain way, every entry simplified."""
    lines = []
    for correction in plain_field(loss, symbols, order):
        jacobian = correction.jacobian(list(symbols))
        entries = [*correction, *(jacobian[i, j] - jacobian[j, i] for i in range(len(symbols)) for j in range(i))]
        lines += [str(plainly_simplified(sp.expand(e))) for e in entries]
    return "\n".join(lines)


def shown_text(loss: sp.Expr, symbols: Sequence[sp.Symbol], order: int) -> str:
    """Return what ``deepfusion derive --loss`` prints."""
    return present_loss(loss, symbols, STEP, order, "euler").text


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Return the median and spread (largest − smallest) of the process times of a call with an empty cache, and its value."""
    times, value = [], None
    for _ in range(repeats):
        sp.core.cache.clear_cache()
        start = time.process_time()
        value = work()
        times.append(time.process_time() - start)
    return statistics.median(times), max(times) - min(times), value


def off(loss: sp.Expr, symbols: Sequence[sp.Symbol], order: int) -> float:
    """Return the largest difference of a component of both fields at a rational point and step, to 30 digits."""
    try:
        ours = -sp.Matrix([modified_loss(loss, symbols, STEP, order)]).jacobian(list(symbols)).T
    except NotAGradient as stop:
        ours = stop.field
    theirs = sum((c * STEP**k for k, c in enumerate(plain_field(loss, symbols, order))), sp.zeros(len(symbols), 1))
    at = {x: sp.Rational(2 * k + 3, 3 * k + 7) for k, x in enumerate([*symbols, STEP])}
    return max(abs(float((e.subs(at) - f.subs(at)).evalf(30))) for e, f in zip(ours, theirs, strict=True))


def compute(
    *, repeats: int = 5, cases: Sequence[tuple] = CASES, report: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Return all figures as plain numbers."""
    rows = []
    for what, formula, order, limit, plain in cases:
        report(what)
        loss = parse_formula(formula)
        symbols = sorted(loss.free_symbols, key=str)
        median, spread, found = seconds(functools.partial(shown_text, loss, symbols, order), repeats)
        row = {"what": what, "loss": formula, "order": order, "s": median, "spread_s": spread, "limit_s": limit}
        row |= {"characters": len(found), "held": median < limit, "plain_s": None, "ratio": None, "off": None}
        if plain:
            theirs, _, _ = seconds(functools.partial(plain_text, loss, symbols, order), repeats)
            row |= {"plain_s": theirs, "ratio": theirs / median, "off": off(loss, symbols, order)}
        rows.append(row)
    versions = {
        "python": platform.python_version(),
        "sympy": sp.__version__,
        "ground_types": sp.polys.domains.GROUND_TYPES,
    }
    return {"formulas": rows, "repeats": repeats} | versions | {"machine": platform.machine()}


def markdown(result: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = ["| formula | order | seconds | spread | limit | held | plain sympy, s | ratio | characters |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in result["formulas"]:
        plain = f"{row['plain_s']:.2f} | {row['ratio']:.0f}" if row["plain_s"] is not None else " | "
        lines.append(
            f"| {row['what']}: `{row['loss']}` | {row['order']} | {row['s']:.3f} | {row['spread_s']:.3f} | "
            f"{row['limit_s']:g} | {'yes' if row['held'] else 'NO'} | {plain} | {row['characters']:,} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON; 0 if every limit held and every result is equal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formulas", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, whose median is shown (default 5)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test: two cases, one run")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    cases = [(*case[:2], 2, *case[3:]) for case in CASES if case[0] in ("four parameters, two products", "exp")]
    options = {"cases": cases, "repeats": 1} if arguments.smoke else {"cases": CASES, "repeats": arguments.repeats}
    report = lambda what: print(what, file=sys.stderr)
    result = compute(**options, report=report)
    hand_over(result, markdown(result), arguments.json)
    return 0 if all(row["held"] and (row["off"] or 0) < 1e-20 for row in result["formulas"]) else 1


if __name__ == "__main__":
    sys.exit(main())
