r"""Modified fields of concrete formulas: sympy in, sympy out.

Elementary differentials are contracted from cached partial derivatives, in one of sympy's polynomial rings with a letter
for each function (:mod:`bea.symbolic.rings`). Only what is returned becomes an expression again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import sympy as sp

from bea.symbolic.brackets import combine
from bea.symbolic.compact import divisors_of
from bea.symbolic.equation import MEMORY_LIMIT, check_order, modified_equation, with_symmetry
from bea.symbolic.methods import Method, RungeKutta, Step, steps_of
from bea.symbolic.rings import Element, Ring
from bea.trees import Tree, count_trees

NON_SMOOTH = (
    sp.Abs, sp.Max, sp.Min, sp.sign, sp.Heaviside, sp.Piecewise, sp.floor, sp.ceiling, sp.DiracDelta,
    sp.re, sp.im, sp.arg, sp.conjugate, sp.frac, sp.Mod,
)  # fmt: skip
"""Functions without the derivatives that an expansion needs."""

MOST_TERMS = 300_000
"""Largest number of symbolic products in one table of elementary differentials; above it ValueError is raised."""

Symbols = Sequence[sp.Symbol]
Components = Any
"""A sequence of expressions, or a sympy column, which is no Sequence."""


def check_expression(expr: Any, what: str) -> sp.Expr:
    """Return ``expr`` as an exact, smooth sympy expression; raise ValueError with the float or function if it is none."""
    expr = sp.sympify(expr, strict=True)
    if not isinstance(expr, sp.Expr):
        raise ValueError(f"{what} is {expr}, a {type(expr).__name__}, not an expression")
    for kind in NON_SMOOTH:
        if found := sorted(map(str, expr.atoms(kind))):
            raise ValueError(
                f"{what} contains {found[0]}, and {kind.__name__} is not smooth: the expansion needs its derivatives; "
                f"use a smooth stand-in, such as sqrt(x**2 + eps**2) for Abs(x)"
            )
    if floats := sorted(map(str, expr.atoms(sp.Float))):
        raise ValueError(f"{what} contains the float {floats[0]}: write it exactly, such as Rational(1, 2) for 0.5")
    if expr.has(sp.zoo, sp.oo, -sp.oo, sp.nan):
        raise ValueError(f"{what} is not finite: {expr}")
    return expr


def check_symbols(
    symbols: Symbols, expressions: Sequence[sp.Expr], what: str, steps: Sequence[Any] = (), *, all_occur: bool = False
) -> None:
    """Raise ValueError if a symbol occurs twice, is a step size, or (``all_occur``) does not occur in the expressions."""
    if not symbols or not all(isinstance(x, sp.Symbol) for x in symbols):
        raise ValueError(f"symbols must be a non-empty sequence of sympy symbols, not {symbols!r}")
    if len(set(symbols)) < len(symbols):
        raise ValueError(f"symbols has {next(x for x in symbols if list(symbols).count(x) > 1)} twice")
    present = set().union(*(expr.free_symbols for expr in expressions))
    if all_occur and (missing := [str(x) for x in symbols if x not in present]):
        names = ", ".join(sorted(map(str, present))) or "none"
        raise ValueError(f"{', '.join(missing)} missing from {what}: its symbols are {names}")
    for step in steps:
        if clash := sp.sympify(step).free_symbols & (present | set(symbols)):
            raise ValueError(
                f"the step size {step} also occurs in {what} ({min(map(str, clash))}): rename one of the two"
            )


def gradient_field(loss: Any, symbols: Symbols) -> sp.Matrix:
    """Return −∇loss, the field that gradient descent follows with steps h."""
    loss = sp.sympify(loss)
    return sp.Matrix([-sp.diff(loss, x) for x in symbols])


def lie_bracket(f: sp.MatrixBase, g: sp.MatrixBase, symbols: Symbols) -> sp.Matrix:
    """Return [f, g] = g' f − f' g.

    Source: theory.md, (2.2).
    """
    x = sp.Matrix(list(symbols))
    return (sp.Matrix(g).jacobian(x) * sp.Matrix(f) - sp.Matrix(f).jacobian(x) * sp.Matrix(g)).applyfunc(sp.expand)


class Differentials:
    """Elementary differentials F(t) of coloured trees for given fields, as elements of one ring.

    Args:
      fields: the components of each field.
      symbols: the parameters.
      order: the largest order of trees that are asked for; the result can then be differentiated once.
    """

    def __init__(self, fields: Sequence[Components], symbols: Symbols, order: int):
        self.ring = Ring([e for field in fields for e in field], symbols, order)
        read = [[self.ring.read(e) for e in field] for field in fields]
        self.bottom = math.lcm(*(e.bottom for field in read for e in field))
        self._partials: dict[tuple[int, int, tuple[int, ...]], Any] = {
            (c, i, ()): e.top * (self.bottom // e.bottom) for c, field in enumerate(read) for i, e in enumerate(field)
        }
        self._known: dict[Tree, list[Any]] = {}
        self._products: dict[tuple[Tree, ...], dict[tuple[int, ...], Any]] = {(): {(): self.ring.integers.one}}

    @cached_property
    def divisors(self) -> list[Any]:
        """Factors of the fields, which their differentials often have too."""
        return divisors_of(top for (_, _, index), top in self._partials.items() if not index)

    def field(self) -> list[Element]:
        """Return the components of the first field."""
        return [Element(self.ring, self._partials[0, i, ()], self.bottom) for i in range(len(self.ring.symbols))]

    def _partial(self, colour: int, component: int, index: tuple[int, ...]) -> Any:
        key = (colour, component, index)
        if key not in self._partials:
            self._partials[key] = self.ring.diff(self._partial(colour, component, index[:-1]), index[-1])
        return self._partials[key]

    def _product(self, trees: tuple[Tree, ...]) -> dict[tuple[int, ...], Any]:
        """Return Σ Π F(t_j)_{i_j} over the index tuples i that are the same when sorted, by sorted tuple."""
        if trees not in self._products:
            last, found = self(trees[-1]), dict[tuple[int, ...], Any]()
            for index, value in self._product(trees[:-1]).items():
                for i, component in enumerate(last):
                    key = tuple(sorted((*index, i)))
                    found[key] = found.get(key, self.ring.integers.zero) + value * component
            self._products[trees] = found
        return self._products[trees]

    def __call__(self, tree: Tree) -> list[Any]:
        """Return F(t) times d^|t| m^(|t| − 1), for the fields' common denominator d and the ring's scale m."""
        if tree not in self._known:
            self._known[tree] = self._sum({tree: 1})
        return self._known[tree]

    def _sum(self, series: Mapping[Tree, int]) -> list[Any]:
        """Return Σ c(t) F(t): the trees whose roots have one colour and as many children share the root's derivatives."""
        total = [self.ring.integers.zero] * len(self.ring.symbols)
        shared: dict[tuple[int, int], dict[tuple[int, ...], Any]] = {}
        for tree, value in series.items():
            group = shared.setdefault((tree.colour, len(tree.children)), {})
            for index, product in self._product(tree.children).items():
                group[index] = group.get(index, self.ring.integers.zero) + product * value
        for (colour, _), group in shared.items():
            for index, value in group.items():
                for i in range(len(total)):
                    total[i] = total[i] + value * self._partial(colour, i, index)
        return total

    def combination(self, series: Mapping[Tree, Fraction]) -> list[Element]:
        """Return the components of Σ c(t) F(t), for rational c(t) and trees of one order."""
        common = math.lcm(*(value.denominator for value in series.values()))
        order = max(tree.order for tree in series)
        total = self._sum({tree: int(value * common) for tree, value in series.items() if value})
        bottom = common * self.bottom**order * self.ring.scale ** (order - 1)
        return [Element(self.ring, top, bottom) for top in total]

    def shown(self, components: Sequence[Element], simplify: bool = True) -> sp.Matrix:
        """Return the components as formulas, compact or multiplied out."""
        return sp.Matrix([e.compact(self.divisors) if simplify else e.expanded() for e in components])


def tidy(expr: sp.Expr) -> sp.Expr:
    """Return the expression as a person would write it: multiplied out, then factored, with functions as letters."""
    return Ring([expr]).read(expr).compact()


def by_order(table: Differentials, method: Method, order: int) -> list[list[Element]]:
    r"""Return the corrections :math:`c_1, \dots, c_p` of a method for one field, as elements of the table's ring."""
    if any(step.field for step in steps_of(method)):
        raise ValueError("corrections are those of one field: give compose() the phases of several")
    series = with_symmetry(modified_equation(method, order))
    return [table.combination({t: c for t, c in series.items() if t.order == q}) for q in range(1, order + 1)]


def corrections(
    field: Components, symbols: Symbols, order: int, *, method: Method = "euler", simplify: bool = True
) -> list[sp.Matrix]:
    r"""Return the fields :math:`c_1 = f, c_2, \dots, c_p` with :math:`\tilde f = c_1 + h c_2 + \dots + h^{p-1} c_p`.

    Args:
      field: components of f, as many as symbols; further symbols are constants.
      symbols: the parameters.
      order: p ≥ 1.
      method: one-step method, see :func:`~bea.symbolic.equation.modified_equation`; for one field only.
      simplify: whether to factor or simplify every component; if false, they are expanded.

    Raises:
      ValueError: the field has floats, non-smooth functions or not one component for each symbol, or the order is below 1
        or needs too much memory.
    """
    (f,) = _checked([field], symbols, order)
    table = Differentials([f], symbols, order)
    return [table.shown(c, simplify) for c in by_order(table, method, order)]


def modified_field(
    field: Components, symbols: Symbols, step: Any, order: int, *, method: Method = "euler", simplify: bool = True
) -> sp.Matrix:
    r"""Return the field whose exact time-h flow is one step of the method; :math:`h \tilde f` is exact through :math:`h^p`.

    .. math:: \tilde f = f - \frac h2 f'f + h^2\left(\frac13 f'f'f + \frac1{12} f''(f, f)\right) + \dots
    \quad\text{(explicit Euler)}

    Arguments and errors are those of :func:`corrections`; ``step`` is h, a symbol or number that is not in the field.
    """
    check_symbols(symbols, [sp.sympify(e) for e in field], "the field", [step])
    found = corrections(field, symbols, order, method=method, simplify=simplify)
    h = sp.sympify(step)
    return sum((c * h**k for k, c in enumerate(found)), sp.zeros(len(symbols), 1))


@dataclass(frozen=True)
class Phase:
    """``steps`` steps of size ``step`` along ``field`` (a sequence of expressions); steps may be a symbol."""

    field: Components
    step: Any
    steps: Any = 1
    method: str | RungeKutta = "euler"


def phase_series(steps: Sequence[tuple[Any, Any, str | RungeKutta]], order: int) -> dict[Tree, Any]:
    r"""Return the time-one field of phases as a tree series: {coloured tree: coefficient of F(t), symmetry divided out}.

    Args:
      steps: for each phase (h_i, n_i, method); colour i is phase i. Repeats n_i may be symbols: each phase is n_i times
        its own modified field, and the Baker–Campbell–Hausdorff series combines them.
      order: p ≥ 1.
    """
    check_order(order, len(steps), MEMORY_LIMIT // 1000, remedy="or fewer phases")
    total: dict[Tree, Any] = {}
    whole = all(sp.sympify(n).is_Integer for _, n, _ in steps)
    if whole:
        method = [Step(name, field=i, steps=int(n)) for i, (_, n, name) in enumerate(steps)]
        total = dict(with_symmetry(modified_equation(method, order)))
    else:
        for i, (_, n, name) in enumerate(steps):
            own = with_symmetry(modified_equation(name, order))
            field = {t.recolour([i]): c * sp.sympify(n) for t, c in own.items() if c}
            total = combine(total, field, order) if total else field
    result = {}
    for tree, value in total.items():
        value = sp.expand(value)
        if value != 0:
            result[tree] = value * sp.prod([sp.sympify(steps[c][0]) for c in tree.colours])
    return result


def compose(phases: Sequence[Phase], symbols: Symbols, order: int, *, simplify: bool = True) -> sp.Matrix:
    r"""Return the field whose time-one flow is all phases, one after another, exact through ``order`` in the total time.

    .. math:: F = \sum_i n_i h_i f_i - \frac12 \sum_i n_i h_i^2 f_i' f_i + \frac12 \sum_{i<j} n_i h_i n_j h_j [f_i,
    f_j] + \dots,
       \qquad [f_1, f_2] = f_2' f_1 - f_1' f_2

    Args:
      phases: the phases in the order in which they run.
      symbols: the parameters.
      order: p ≥ 1.
      simplify: whether to factor or simplify every component.

    Raises:
      ValueError: there are no phases; else as :func:`corrections`.

    Source: theory.md, (2.1).
    """
    if not phases:
        raise ValueError("compose needs at least one phase")
    fields = _checked([phase.field for phase in phases], symbols, order)
    check_symbols(symbols, [e for f in fields for e in f], "the fields", [x for p in phases for x in (p.step, p.steps)])
    for phase in phases:
        steps = sp.sympify(phase.steps)
        if steps.is_number and not (steps.is_Integer and steps >= 1):
            raise ValueError(f"a phase has a whole number of steps, at least 1, or a symbol, not {steps}")
    series = phase_series([(p.step, p.steps, p.method) for p in phases], order)
    table = Differentials(fields, symbols, order)
    total = sp.zeros(len(symbols), 1)
    by_coefficient: dict[sp.Expr, dict[Tree, Fraction]] = {}
    for tree, value in series.items():
        number, rest = value.as_coeff_Mul()
        by_coefficient.setdefault(rest, {})[tree] = Fraction(int(number.p), int(number.q))
    for coefficient, part in by_coefficient.items():
        total += coefficient * table.shown(table.combination(part), simplify)
    return total


def _checked(fields: Sequence[Components], symbols: Symbols, order: int) -> list[list[sp.Expr]]:
    checked = [[check_expression(e, f"component {i} of the field") for i, e in enumerate(field)] for field in fields]
    check_symbols(symbols, [e for f in checked for e in f], "the field")
    for f in checked:
        if len(f) != len(symbols):
            raise ValueError(f"the field has {len(f)} components for {len(symbols)} symbols: it needs one for each")
    check_order(order, len(fields), MEMORY_LIMIT // 1000, remedy="or fewer fields")
    terms = sum(count_trees(order, len(fields))) * len(symbols) ** 2 + len(symbols) ** order
    if terms > MOST_TERMS:
        raise ValueError(
            f"order {order} in {len(symbols)} dimensions with {len(fields)} fields means about {terms:,} symbolic "
            f"products, above the limit of {MOST_TERMS:,}: lower the order or the dimension, or use numbers "
            f"(bea.modified_field)"
        )
    return checked
