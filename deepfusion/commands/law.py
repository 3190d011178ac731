"""``deepfusion law``: a law of growth fitted to finished runs, for plans that are too long to try."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Annotated, Any

import typer

from deepfusion.commands.plan import PlanFile
from deepfusion.options import Json
from deepfusion.terminal import notes, working
from fusion_core import atomic


def law(
    plan: PlanFile,
    runs: Annotated[list[pathlib.Path], typer.Argument(help="Folders of finished runs of the plan, on any seeds.")],
    out: Annotated[pathlib.Path, typer.Option(help="File of the law.")],
    kind: Annotated[
        str, typer.Option(help="curves, head_start or two_stage. Default: curves, which needs no grown run.")
    ] = "",
    growth: Annotated[
        str, typer.Option(help="Growth of the recipe that the law is to be of, if there are several.")
    ] = "",
    longest: Annotated[
        float, typer.Option(help="Leave out what comes after so many steps of the large network.", min=1.0)
    ] = math.inf,
    as_json: Json = False,
) -> None:
    """Fit a law of growth to short runs, to plan long ones by.

    The plan has the large network from scratch and the small one alone, and networks that are grown at some steps; its
    schedule is rsqrt or constant. Give several seeds. deepfusion plan --law says what the law foretells of a long run.

    \b
    deepfusion train law.toml --out runs/short
    deepfusion law law.toml runs/short --out law.json
    deepfusion plan long.toml --law law.json
    """
    with working("loading JAX and fitting", quiet=as_json):
        from fusion_core.runs import fit_runs, read_plan
        from fusion_core.train.compiled import keep_compiled

        keep_compiled(notes)
        atomic.check_new(out, "choose another")
        read = read_plan(plan)
        saved = fit_runs(read, runs, kind=kind, growth=growth, longest=longest)
        saved.save(out)
    fitted = saved.law
    if as_json:
        drift = None if math.isnan(fitted.drift) else fitted.drift
        numbers = {"points": fitted.points, "runs": fitted.runs, "longest": fitted.unit, "drift": drift}
        print(json.dumps({"law": str(out), "kind": fitted.kind, **numbers, "fitted": dict(saved.points)}))
        return
    print("\n".join([*_lines(saved), f"Law: {out}"]))


def _lines(saved: Any) -> list[str]:
    """Return what was fitted, and how far it can be believed."""
    fitted, limits = saved.law, saved.points
    past = {"the large network": limits["large"], "the small one": limits["small"]}
    plateaus = " and ".join(f"below {loss:.3g} of {name}" for name, loss in past.items() if loss is not None)
    known = (
        "Shorter fits had too few points to be judged: no loss beyond these runs has a bound."
        if math.isnan(fitted.drift)
        else f"Shorter fits were off by {fitted.drift:.1%} for each doubling of the length."
    )
    return [
        f"The law of {fitted.kind}, fitted to {fitted.points} points of {fitted.runs} curves of at most {fitted.unit:,.0f} "
        f"large steps{f', past their plateaus ({plateaus})' if plateaus else ''}; residuals {fitted.scatter:.2%}.",
        known,
        saved.recipe,
    ]
