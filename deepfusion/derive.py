"""``deepfusion derive``: modified equations from the command line, as text, LaTeX or JSON.

A thin shell over :mod:`deepfusion.derivations`, which reads the options and asks ``bea.symbolic``.
"""

from __future__ import annotations

import json as json_module
import sys
from typing import Annotated, Any

import typer

import bea.symbolic as bs
from deepfusion.derivations import answer_to

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
        answer = answer_to(loss, phases, field, where or [], order, symbols, step, momentum, method, trees)
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
