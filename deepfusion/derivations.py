"""What ``deepfusion derive`` answers: options as texts in, text, LaTeX and JSON data out.

Formulas are read by :func:`bea.symbolic.parse_formula`; nothing typed is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy as sp

import bea.symbolic as bs
from bea.symbolic.brackets import is_gradient_series, split_gradient
from bea.symbolic.equation import with_symmetry, without_symmetry
from bea.symbolic.fields import phase_series
from bea.symbolic.parse import FormulaError, parse_formula
from bea.symbolic.printing import contraction, differential, expression
from bea.trees import Tree


@dataclass(frozen=True)
class Answer:
    """One derivation in all forms that it is printed in."""

    text: str
    latex: str
    data: dict[str, Any]


def answer_to(
    loss: str | None,
    phases: str | None,
    field: str | None,
    where: list[str],
    order: int,
    symbols: str | None,
    step: str,
    momentum: str | None,
    method: str,
    trees: bool,
) -> Answer:
    """The derivation that the options ask for (named as the options; see ``deepfusion derive --help``).

    Raises:
      ValueError: options that exclude each other, formulas that are not understood, what ``bea.symbolic`` refuses.
    """
    given = [name for name, value in (("--loss", loss), ("--phases", phases), ("--field", field)) if value is not None]
    if len(given) > 1:
        raise FormulaError(f"{' and '.join(given)} exclude each other: give one of them")
    if where and phases is None:
        raise FormulaError("--where gives the losses of --phases, and there is no --phases")
    if momentum is not None and loss is None:
        raise FormulaError("--momentum goes with --loss")
    if method not in bs.METHODS:
        raise FormulaError(f"unknown method {method!r}: choose one of {', '.join(bs.METHODS)}")
    if phases is not None:
        return _phases(phases, where, order, method, symbols, trees)
    size = parse_formula(step)
    if loss is not None:
        expr = parse_formula(loss)
        parameters = _parameters(symbols, [expr], size)
        return (
            _momentum(expr, parameters, size, momentum)
            if momentum is not None
            else _loss(expr, parameters, size, order, method)
        )
    if field is not None:
        return _field([parse_formula(part) for part in field.split(",")], symbols, size, order, method)
    return _method(method, order, trees)


def _parameters(symbols: str | None, formulas: list[sp.Expr], step: sp.Expr) -> list[sp.Symbol]:
    if symbols is not None:
        found = [parse_formula(name) for name in symbols.split(",")]
        if not all(isinstance(x, sp.Symbol) for x in found):
            raise FormulaError(f"--symbols {symbols!r} is not a list of names such as 'x,y'")
        return found
    names = set().union(*(e.free_symbols for e in formulas))
    if clash := names & step.free_symbols:
        raise FormulaError(f"{min(map(str, clash))} is the step size and also in the formula: name another with --step")
    if not names:
        raise FormulaError("the formula has no parameters")
    return sorted(names, key=str)


def _loss(expr: sp.Expr, parameters: list[sp.Symbol], step: sp.Expr, order: int, method: str) -> Answer:
    data: dict[str, Any] = {
        "kind": "modified loss",
        "loss": str(expr),
        "symbols": list(map(str, parameters)),
        "order": order,
    }
    try:
        found = bs.modified_loss(expr, parameters, step, order, method=method)
    except bs.NotAGradient as stop:
        lines = [
            f"no modified loss of order {stop.order}: from there on the modified field is not a gradient",
            f"modified loss through order {stop.order - 1}:  {stop.loss}",
            f"modified field through order {order}:",
            *(f"  d{x}/dt = {e}" for x, e in zip(parameters, stop.field, strict=True)),
            f"antisymmetric part of the Jacobian of its {step}^{stop.order - 1} term:",
            *(f"  {row}" for row in stop.leading.tolist()),
        ]
        tex = "\n".join(
            [
                rf"\tilde E = {sp.latex(stop.loss)} + O({sp.latex(step ** (stop.order - 1))})",
                rf"\tilde f = {sp.latex(stop.field)}",
                rf"\frac{{J - J^T}}{{2}} = {sp.latex(stop.leading)}",
            ]
        )
        data |= {"exists": False, "fails_at_order": stop.order, "modified_loss": str(stop.loss)}
        data |= {
            "field": list(map(str, stop.field)),
            "antisymmetric": [list(map(str, r)) for r in stop.leading.tolist()],
        }
        return Answer("\n".join(lines), tex, data)
    data |= {"exists": True, "modified_loss": str(found)}
    return Answer(f"modified loss through order {order}:  {found}", rf"\tilde E = {sp.latex(found)}", data)


def _momentum(expr: sp.Expr, parameters: list[sp.Symbol], step: sp.Expr, momentum: str) -> Answer:
    beta = parse_formula(momentum)
    found = bs.momentum_loss(expr, parameters, step, beta)
    data = {"kind": "modified loss with momentum", "loss": str(expr), "beta": str(beta), "modified_loss": str(found)}
    told = f"modified loss on the slow manifold (one step is its flow for the time {step / (1 - beta)}):  {found}"
    return Answer(told, rf"\tilde E = {sp.latex(found)}", data)


def _field(components: list[sp.Expr], symbols: str | None, step: sp.Expr, order: int, method: str) -> Answer:
    parameters = _parameters(symbols, components, step)
    found = bs.modified_field(components, parameters, step, order, method=method)
    lines = [f"modified field through order {order}:"]
    lines += [f"  d{x}/dt = {e}" for x, e in zip(parameters, found, strict=True)]
    data = {
        "kind": "modified field",
        "symbols": list(map(str, parameters)),
        "order": order,
        "field": list(map(str, found)),
    }
    return Answer("\n".join(lines), rf"\tilde f = {sp.latex(found)}", data)


def _method(method: str, order: int, trees: bool) -> Answer:
    coefficients = bs.modified_equation(method, order)
    told = f"modified equation of {method} through order {order}, h f~ =\n" + bs.text(coefficients)
    return Answer(
        told,
        bs.latex(coefficients, trees=trees, align=True),
        {"kind": "modified equation"} | _table(coefficients, ["f"]),
    )


def _table(coefficients: dict[Tree, Any], names: list[str]) -> dict[str, Any]:
    rows = [
        {
            "tree": str(t),
            "order": t.order,
            "symmetry": t.symmetry,
            "omega": str(c),
            "differential": differential(t, names, as_latex=False),
        }
        for t, c in coefficients.items()
    ]
    return {
        "convention": "h f~ = sum over trees of omega(t) / symmetry(t) * F(t) * (step of each node)",
        "coefficients": rows,
    }


def _phases(phases: str, where: list[str], order: int, method: str, symbols: str | None, trees: bool) -> Answer:
    names, steps, repeats = _read_phases(phases)
    if where:
        return _concrete_phases(names, steps, repeats, _read_where(where, names), order, method, symbols)
    distinct = list(dict.fromkeys(names))
    series = phase_series([(h, n, method) for h, n in zip(steps, repeats, strict=True)], order)
    if len(distinct) < len(names):  # a loss that comes back is one field
        merged: dict[Tree, Any] = {}
        colours = [distinct.index(name) for name in names]
        for tree, value in series.items():
            image = tree.recolour(colours)
            merged[image] = merged.get(image, 0) + value
        series = {t: sp.expand(c) for t, c in sorted(merged.items(), key=lambda item: item[0].sort_key())}
    omega = without_symmetry(series)
    exists = next(
        (p for p in range(order, 0, -1) if is_gradient_series({t: sp.expand(c) for t, c in omega.items()}, p)), 0
    )
    low = {t: c for t, c in omega.items() if t.order <= min(order, 2)}
    potential, rest = split_gradient(low)
    show = lambda s, scalar=False: expression(s, distinct, kind="loss", as_latex=False, scalar=scalar)
    rest = {t: sp.expand(c) for t, c in with_symmetry(rest).items()}
    sequence = ", then ".join(
        f"{n} steps of {h} on {e}" if n != 1 else f"a step of {h} on {e}"
        for e, h, n in zip(names, steps, repeats, strict=True)
    )
    lines = [f"{sequence}: the flow for time one of F, through order {order}", "F =", show(series)]
    lines += [
        "",
        f"through order {min(order, 2)} F = -grad(L) + R with",
        "L =",
        show(potential, True),
        "R =",
        show(rest),
    ]
    if exists < order:
        lines.append(f"a modified loss exists for all losses through order {exists} only")
    tex = expression(series, distinct, kind="field" if trees else "loss", trees=trees, left="F", align=True)
    data = {
        "kind": "phases",
        "phases": [{"loss": e, "step": str(h), "steps": str(n)} for e, h, n in zip(names, steps, repeats, strict=True)],
    }
    data |= {"order": order, "loss_exists_through_order": exists} | _table(omega, distinct)
    data |= {
        "loss": [
            {"contraction": contraction(t, distinct, as_latex=False), "coefficient": str(c)}
            for t, c in potential.items()
        ]
    }
    return Answer("\n".join(lines), tex, data)


def _read_phases(phases: str) -> tuple[list[str], list[sp.Expr], list[sp.Expr]]:
    names, steps, repeats = [], [], []
    for part in phases.split(","):
        pieces = [piece.strip() for piece in part.split(":")]
        if len(pieces) not in (2, 3) or not all(pieces):
            raise FormulaError(
                f"phase {part.strip()!r} is not name:step or name:step:repeats, such as E1:h1 or E1:h1:5"
            )
        name, step = parse_formula(pieces[0]), parse_formula(pieces[1])
        count = parse_formula(pieces[2]) if len(pieces) == 3 else sp.Integer(1)
        if not isinstance(name, sp.Symbol):
            raise FormulaError(f"phase {part.strip()!r}: {pieces[0]!r} is not the name of a loss")
        if not (count.is_Symbol or (count.is_Integer and count >= 1)):
            raise FormulaError(
                f"phase {part.strip()!r}: repeats are a whole number of at least 1 or a name, not {count}"
            )
        if step.is_number and not step > 0:
            raise FormulaError(f"phase {part.strip()!r}: the step size {step} is not positive")
        names.append(str(name))
        steps.append(step)
        repeats.append(count)
    return names, steps, repeats


def _read_where(where: list[str], names: list[str]) -> dict[str, sp.Expr]:
    losses = {}
    for item in where:
        name, equals, formula = item.partition("=")
        if not equals or name.strip() not in names:
            raise FormulaError(
                f"--where {item!r} is not name=formula with a name from {', '.join(dict.fromkeys(names))}"
            )
        losses[name.strip()] = parse_formula(formula)
    if missing := [name for name in names if name not in losses]:
        raise FormulaError(f"no formula for {missing[0]}: add --where '{missing[0]}=...' or leave all formulas out")
    return losses


def _concrete_phases(
    names: list[str],
    steps: list,
    repeats: list,
    losses: dict[str, sp.Expr],
    order: int,
    method: str,
    symbols: str | None,
) -> Answer:
    parameters = _parameters(symbols, list(losses.values()), sp.Add(*steps, *repeats))
    runs = [
        bs.Phase(list(bs.gradient_field(losses[name], parameters)), h, n, method)
        for name, h, n in zip(names, steps, repeats, strict=True)
    ]
    found = bs.compose(runs, parameters, order)
    lines = [f"field whose flow for time one is all phases, through order {order}:"]
    lines += [f"  d{x}/dt = {e}" for x, e in zip(parameters, found, strict=True)]
    data = {"kind": "phases", "symbols": list(map(str, parameters)), "order": order, "field": list(map(str, found))}
    return Answer("\n".join(lines), f"F = {sp.latex(found)}", data)
