"""``deepfusion derive``: modified equations from the command line, as text, LaTeX or JSON."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bea.symbolic import METHODS
from deepfusion.options import Json
from deepfusion.terminal import working
from fusion_core.errors import InputError

if TYPE_CHECKING:
    from bea.symbolic.presentation import Derivation, NamedPhase


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
    method: Annotated[str, typer.Option(help=f"The method that makes a step: {', '.join(METHODS)}.")] = "euler",
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX.")] = False,
    trees: Annotated[bool, typer.Option("--trees", help="With --latex: draw the trees (TikZ).")] = False,
    as_json: Json = False,
) -> None:
    """Derive what discrete training follows: exact, to any order.

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
    given = [name for name, value in (("--loss", loss), ("--phases", phases), ("--field", field)) if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other: give one of them")
    if where and phases is None:
        raise InputError("--where gives the losses of --phases, and there is no --phases")
    if momentum is not None and loss is None:
        raise InputError("--momentum goes with --loss")
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    try:
        with working("multiplying out and simplifying the formulas", quiet=True, after=4.0):
            found = _derivation(loss, phases, field, where or [], order, symbols, step, momentum, method, trees)
    except ValueError as error:  # of bea.symbolic: what it says is for whoever typed the formula
        raise InputError(" ".join(str(error).split())) from None
    if as_json:
        print(json.dumps(found.data | {"text": found.text, "latex": found.latex}, indent=1, ensure_ascii=False))
    else:
        print(found.latex if latex else found.text)


def _derivation(
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
) -> Derivation:
    """Return the derivation of the one thing that is given, the method's own if nothing is."""
    import sympy as sp

    from bea.symbolic import parse_formula as parse
    from bea.symbolic import presentation

    pieces = [part for phase in (phases or "").split(",") for part in phase.split(":")]
    # what is named as a symbol is one, also where its name is a constant's, such as E
    own = {name.strip() for name in (*(symbols or "").split(","), step, momentum or "", *pieces)}
    parse_formula = functools.partial(parse, own=own)
    if phases is not None:
        parts = [_read_phase(part, own) for part in phases.split(",")]
        if not where:
            return presentation.present_phases(parts, order, method, trees)
        losses = _read_where(where, [part.name for part in parts], own)
        steps = sp.Add(*(x for part in parts for x in (part.step, part.steps)))
        parameters = _parameters(symbols, list(losses.values()), steps)
        return presentation.present_phases_of(parts, losses, parameters, order, method)
    size = parse_formula(step)
    if loss is not None:
        formula = parse_formula(loss)
        parameters = _parameters(symbols, [formula], size)
        if momentum is not None:
            return presentation.present_momentum(formula, parameters, size, parse_formula(momentum))
        return presentation.present_loss(formula, parameters, size, order, method)
    if field is not None:
        components = [parse_formula(part) for part in field.split(",")]
        return presentation.present_field(components, _parameters(symbols, components, size), size, order, method)
    return presentation.present_method(method, order, trees)


def _parameters(symbols: str | None, formulas: list[Any], step: Any) -> list[Any]:
    """Return the parameters: those of ``--symbols``, or all names in the formulas."""
    from bea.symbolic import parse_formula

    if symbols is not None:
        found = [parse_formula(name, own=[name.strip()]) for name in symbols.split(",")]
        if not all(x.is_Symbol for x in found):
            raise InputError(f"--symbols {symbols!r} is not a list of names such as 'x,y'")
        return found
    names = set().union(*(formula.free_symbols for formula in formulas))
    if clash := names & step.free_symbols:
        raise InputError(f"{min(map(str, clash))} is the step size and also in the formula: name another with --step")
    if not names:
        raise InputError(
            "the formula has no parameters; E and pi are numbers unless they are named, such as by --symbols E"
        )
    return sorted(names, key=str)


def _read_phase(text: str, own: set[str]) -> NamedPhase:
    """Read one ``name:step`` or ``name:step:repeats``."""
    from bea.symbolic import parse_formula
    from bea.symbolic.presentation import NamedPhase

    pieces = [piece.strip() for piece in text.split(":")]
    owner = f"phase {text.strip()!r}"
    if len(pieces) not in (2, 3) or not all(pieces):
        raise InputError(f"{owner} is not name:step or name:step:repeats, such as E1:h1 or E1:h1:5")
    name, step, count = (parse_formula(piece, own=own) for piece in (*pieces, "1")[:3])
    if not name.is_Symbol:
        raise InputError(f"{owner}: {pieces[0]!r} is not the name of a loss")
    if not (count.is_Symbol or (count.is_Integer and count >= 1)):
        raise InputError(f"{owner}: repeats are a whole number of at least 1 or a name, not {count}")
    if step.is_number and not step > 0:
        raise InputError(f"{owner}: the step size {step} is not positive")
    return NamedPhase(str(name), step, count)


def _read_where(where: list[str], names: list[str], own: set[str]) -> dict[str, Any]:
    """Read the ``name=formula`` of every loss."""
    from bea.symbolic import parse_formula

    losses = {}
    for item in where:
        name, equals, formula = item.partition("=")
        if not equals or name.strip() not in names:
            known = ", ".join(dict.fromkeys(names))
            raise InputError(f"--where {item!r} is not name=formula with a name from {known}")
        losses[name.strip()] = parse_formula(formula, own=own - set(names))
    if missing := [name for name in names if name not in losses]:
        raise InputError(f"no formula for {missing[0]}: add --where '{missing[0]}=...' or leave all formulas out")
    return losses
