"""Derivations in three forms: plain text, LaTeX and data for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import sympy as sp

from bea.symbolic import printing
from bea.symbolic.brackets import is_gradient_series, split_gradient
from bea.symbolic.equation import modified_equation, with_symmetry, without_symmetry
from bea.symbolic.fields import Phase, compose, gradient_field, modified_field, phase_series
from bea.symbolic.losses import NotAGradient, modified_loss
from bea.symbolic.momentum import momentum_loss
from bea.symbolic.work import check_work
from bea.trees import Tree

CONVENTION = "h f~ = sum over trees of omega(t) / symmetry(t) * F(t) * (step of each node)"


@dataclass(frozen=True)
class Derivation:
    """The result of one derivation.

    Attributes:
      text: the result as lines of plain text.
      write_latex: writes the result as LaTeX.
      data: the result ready for JSON; formulas and rationals are texts that ``parse_formula`` reads.
    """

    text: str
    write_latex: Callable[[], str]
    data: dict[str, Any]

    @cached_property
    def latex(self) -> str:
        """The result as LaTeX, written when it is asked for."""
        return self.write_latex()


def present_loss(loss: sp.Expr, parameters: Sequence[sp.Symbol], step: sp.Expr, order: int, method: str) -> Derivation:
    """Derive the modified loss of ``method`` through ``order``, or the order from which on there is none."""
    data: dict[str, Any] = {"kind": "modified loss", "loss": str(loss), "symbols": _texts(parameters), "order": order}
    check_work([loss], parameters, order)
    try:
        found = modified_loss(loss, parameters, step, order, method=method)
    except NotAGradient as stop:
        return _no_loss(stop, parameters, step, order, data)
    data |= {"exists": True, "modified_loss": str(found)}
    text = f"modified loss through order {order}:  {data['modified_loss']}"
    return Derivation(text, lambda: rf"\tilde E = {sp.latex(found)}", data)


def _no_loss(
    stop: NotAGradient, parameters: Sequence[sp.Symbol], step: sp.Expr, order: int, data: dict[str, Any]
) -> Derivation:
    data |= {"exists": False, "fails_at_order": stop.order, "modified_loss": str(stop.loss)}
    data |= {"field": _texts(stop.field), "antisymmetric": [_texts(row) for row in stop.leading.tolist()]}
    text = [
        f"no modified loss of order {stop.order}: from there on the modified field is not a gradient",
        f"modified loss through order {stop.order - 1}:  {data['modified_loss']}",
        f"modified field through order {order}:",
        *_components(parameters, data["field"]),
        f"antisymmetric part of the Jacobian of its {step}^{stop.order - 1} term:",
        *(f"  [{', '.join(row)}]" for row in data["antisymmetric"]),
    ]
    tex = lambda: "\n".join(
        [
            rf"\tilde E = {sp.latex(stop.loss)} + O({sp.latex(step ** (stop.order - 1))})",
            rf"\tilde f = {sp.latex(stop.field)}",
            rf"\frac{{J - J^T}}{{2}} = {sp.latex(stop.leading)}",
        ]
    )
    return Derivation("\n".join(text), tex, data)


def present_momentum(loss: sp.Expr, parameters: Sequence[sp.Symbol], step: sp.Expr, beta: sp.Expr) -> Derivation:
    """Derive the modified loss of heavy-ball descent with coefficient ``beta``, on its slow manifold."""
    check_work([loss], parameters, 2)
    found = momentum_loss(loss, parameters, step, beta)
    data = {"kind": "modified loss with momentum", "loss": str(loss), "beta": str(beta), "modified_loss": str(found)}
    time = step / (1 - beta)
    text = f"modified loss on the slow manifold (one step is its flow for the time {time}):  {found}"
    return Derivation(text, lambda: rf"\tilde E = {sp.latex(found)}", data)


def present_field(
    components: Sequence[sp.Expr], parameters: Sequence[sp.Symbol], step: sp.Expr, order: int, method: str
) -> Derivation:
    """Derive the modified field of ``method`` on a field given by its components."""
    check_work(components, parameters, order, gradient=False)
    found = modified_field(components, parameters, step, order, method=method)
    data: dict[str, Any] = {
        "kind": "modified field",
        "symbols": _texts(parameters),
        "order": order,
        "field": _texts(found),
    }
    lines = [f"modified field through order {order}:", *_components(parameters, data["field"])]
    return Derivation("\n".join(lines), lambda: rf"\tilde f = {sp.latex(found)}", data)


def present_method(method: str, order: int, trees: bool) -> Derivation:
    """Derive the coefficients of a method's modified equation; ``trees`` draws them in the LaTeX."""
    found = modified_equation(method, order)
    text = f"modified equation of {method} through order {order}, h f~ =\n{printing.text(found)}"
    data = {"kind": "modified equation"} | _table(found, ["f"])
    return Derivation(text, lambda: printing.latex(found, trees=trees, align=True), data)


@dataclass(frozen=True)
class NamedPhase:
    """``steps`` steps of size ``step`` on the loss called ``name``."""

    name: str
    step: sp.Expr
    steps: sp.Expr

    def __str__(self) -> str:
        return f"a step of {self.step} on {self.name}" if self.steps == 1 else (
            f"{self.steps} steps of {self.step} on {self.name}"
        )  # fmt: skip


def present_phases(phases: Sequence[NamedPhase], order: int, method: str, trees: bool) -> Derivation:
    """Derive the field F whose flow for time one is the phases one after the other, for any losses of these names."""
    names = [phase.name for phase in phases]
    distinct = list(dict.fromkeys(names))
    series = phase_series([(phase.step, phase.steps, method) for phase in phases], order)
    if len(distinct) < len(names):
        series = _merged(series, [distinct.index(name) for name in names])
    omega = without_symmetry(series)
    expanded = {tree: sp.expand(c) for tree, c in omega.items()}
    exists = next((p for p in range(order, 0, -1) if is_gradient_series(expanded, p)), 0)
    potential, rest = split_gradient({t: c for t, c in omega.items() if t.order <= min(order, 2)})
    rest = {t: sp.expand(c) for t, c in with_symmetry(rest).items()}

    def shown(values: Mapping[Tree, Any], *, scalar: bool = False) -> str:
        return printing.expression(values, distinct, kind="loss", as_latex=False, scalar=scalar)

    lines = [f"{', then '.join(map(str, phases))}: the flow for time one of F, through order {order}"]
    lines += ["F =", shown(series), "", f"through order {min(order, 2)} F = -grad(L) + R with"]
    lines += ["L =", shown(potential, scalar=True), "R =", shown(rest)]
    if exists < order:
        lines.append(f"a modified loss exists for all losses through order {exists} only")
    kind: Literal["field", "loss"] = "field" if trees else "loss"
    tex = lambda: printing.expression(series, distinct, kind=kind, trees=trees, left="F", align=True)
    data = {
        "kind": "phases",
        "phases": [{"loss": p.name, "step": str(p.step), "steps": str(p.steps)} for p in phases],
        "order": order,
        "loss_exists_through_order": exists,
        **_table(omega, distinct),
        "loss": [
            {"contraction": printing.contraction(t, distinct, as_latex=False), "coefficient": str(c)}
            for t, c in potential.items()
        ],
    }
    return Derivation("\n".join(lines), tex, data)


def present_phases_of(
    phases: Sequence[NamedPhase],
    losses: Mapping[str, sp.Expr],
    parameters: Sequence[sp.Symbol],
    order: int,
    method: str,
) -> Derivation:
    """Derive the field whose flow for time one is the phases one after the other, for given losses."""
    check_work(list(losses.values()), parameters, order)
    runs = [
        Phase(list(gradient_field(losses[phase.name], parameters)), phase.step, phase.steps, method) for phase in phases
    ]
    found = compose(runs, parameters, order)
    data: dict[str, Any] = {"kind": "phases", "symbols": _texts(parameters), "order": order, "field": _texts(found)}
    lines = [f"field whose flow for time one is all phases, through order {order}:"]
    lines += _components(parameters, data["field"])
    return Derivation("\n".join(lines), lambda: f"F = {sp.latex(found)}", data)


def _merged(series: Mapping[Tree, Any], colours: Sequence[int]) -> dict[Tree, Any]:
    """Return the series with phases of one colour merged into one field."""
    merged: dict[Tree, Any] = {}
    for tree, value in series.items():
        image = tree.recolour(colours)
        merged[image] = merged.get(image, 0) + value
    return {tree: sp.expand(c) for tree, c in sorted(merged.items(), key=lambda item: item[0].sort_key())}


def _texts(values: Any) -> list[str]:
    return list(map(str, values))


def _components(parameters: Sequence[sp.Symbol], field: Sequence[str]) -> list[str]:
    return [f"  d{x}/dt = {e}" for x, e in zip(parameters, field, strict=True)]


def _table(coefficients: Mapping[Tree, Any], names: Sequence[str]) -> dict[str, Any]:
    rows = [
        {
            "tree": str(tree),
            "order": tree.order,
            "symmetry": tree.symmetry,
            "omega": str(value),
            "differential": printing.differential(tree, names, as_latex=False),
        }
        for tree, value in coefficients.items()
    ]
    return {"convention": CONVENTION, "coefficients": rows}
