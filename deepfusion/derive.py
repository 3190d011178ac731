"""``deepfusion derive``: modified equations from the command line, as text, LaTeX or JSON.

A thin shell over ``bea.symbolic``. Formulas are read by :func:`bea.symbolic.parse_formula`; nothing typed is evaluated.
"""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import sympy as sp
import typer

import bea.symbolic as bs
from bea.symbolic.brackets import is_gradient_series, split_gradient
from bea.symbolic.equation import with_symmetry, without_symmetry
from bea.symbolic.fields import phase_series
from bea.symbolic.parse import FormulaError, parse_formula
from bea.symbolic.printing import contraction, differential, expression
from bea.trees import Tree

EXAMPLES = """
Derive what discrete training follows: exact, to any order.

\b
The modified loss of gradient descent on a formula (step h):
  deepfusion derive --loss "(x*y-1)**2/2" --order 2
From order 3 on there is one for some losses only; the answer says which term fails, and by how much:
  deepfusion derive --loss "(x*y-1)**2/2" --order 3
Heavy ball with coefficient b, on its slow manifold:
  deepfusion derive --loss "x**2*y" --momentum b
Two phases of training, one step of size h1 on E1, then one of h2 on E2, for any losses, as a paper would print it:
  deepfusion derive --phases "E1:h1,E2:h2" --order 3 --latex
n steps on the first (name:step:repeats), for given losses:
  deepfusion derive --phases "E1:h1:n,E2:h2" --where "E1=x**2*y" --where "E2=y**2/2" --order 2
The modified field of any smooth field, components separated by commas:
  deepfusion derive --field "y, -sin(x)" --symbols x,y --order 3
The coefficients of a method by trees, for programs:
  deepfusion derive --method rk4 --order 5 --json
"""


@dataclass(frozen=True)
class Answer:
    """One derivation in all forms that it is printed in."""

    text: str
    latex: str
    data: dict[str, Any]


def derive(
    loss: Annotated[str | None, typer.Option(help="A loss, such as '(x*y-1)**2/2'; prints its modified loss.")] = None,
    phases: Annotated[str | None, typer.Option(help="Phases 'name:step[:repeats]', separated by commas.")] = None,
    field: Annotated[str | None, typer.Option(help="A field, components separated by commas.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="With --phases: 'name=formula' for a loss; repeatable.")
    ] = None,
    order: Annotated[int, typer.Option(help="Right through this power of the step size.")] = 2,
    symbols: Annotated[str | None, typer.Option(help="The parameters, 'x,y'; default: all names, sorted.")] = None,
    step: Annotated[str, typer.Option(help="Name or value of the step size, for --loss and --field.")] = "h",
    momentum: Annotated[str | None, typer.Option(help="With --loss: heavy-ball coefficient, a name or number.")] = None,
    method: Annotated[str, typer.Option(help=f"What makes a step: {', '.join(bs.METHODS)}.")] = "euler",
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX.")] = False,
    trees: Annotated[bool, typer.Option("--trees", help="With --latex: draw the trees (TikZ).")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: text, LaTeX and coefficients.")] = False,
) -> None:
    try:
        answer = _answer(loss, phases, field, where or [], order, symbols, step, momentum, method, trees)
    except ValueError as error:
        typer.echo(f"deepfusion derive: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    if json:
        typer.echo(
            json_module.dumps(answer.data | {"text": answer.text, "latex": answer.latex}, indent=1, ensure_ascii=False)
        )
    else:
        typer.echo(answer.latex if latex else answer.text)


derive.__doc__ = EXAMPLES


def _answer(
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
            *(f"  {row}" for row in stop.antisymmetric.tolist()),
        ]
        tex = "\n".join(
            [
                rf"\tilde E = {sp.latex(stop.loss)} + O({sp.latex(step ** (stop.order - 1))})",
                rf"\tilde f = {sp.latex(stop.field)}",
                rf"\frac{{J - J^T}}{{2}} = {sp.latex(stop.antisymmetric)}",
            ]
        )
        data |= {"exists": False, "fails_at_order": stop.order, "modified_loss": str(stop.loss)}
        data |= {
            "field": list(map(str, stop.field)),
            "antisymmetric": [list(map(str, r)) for r in stop.antisymmetric.tolist()],
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


# typer carries its own copy of click from 0.2x on, and neither version exports the base of its usage errors
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command(name="derive", help=EXAMPLES)(derive)


def main(arguments: list[str] | None = None) -> int:
    """``python -m deepfusion.derive``; usage errors are one line and exit code 2."""
    try:
        code = app(args=arguments, prog_name="deepfusion derive", standalone_mode=False)
    except USAGE_ERROR as error:
        typer.echo(f"deepfusion derive: {' '.join(error.format_message().split())}", err=True)
        return 2
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
