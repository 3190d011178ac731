"""``deepfusion plan``: a plan checked and priced; nothing is trained."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Annotated, Any

import typer

from deepfusion.options import Json, check_finite
from deepfusion.tables import duration, prefixed, print_table
from deepfusion.terminal import working

# shares of a device's speed that training reaches: a well-fed T5 of an A100's peak in bfloat16; small T5s (7 to 29 %) of
# the speed of plain products on a CPU
ASSUMED_SHARE, MEASURED_SHARE = 0.4, 0.25
PlanFile = Annotated[pathlib.Path, typer.Argument(help="A plan in TOML; docs/train.md and examples/plans show how.")]


def plan(
    plan: PlanFile,
    devices: Annotated[int, typer.Option(help="Devices that share every batch.", min=1)] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(help="Peak of one device, in 10¹² FLOP/s. Default: measured on this machine.", min=1e-6),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(
            help=f"Share of that speed that training reaches. Default: {ASSUMED_SHARE} of --tflops, {MEASURED_SHARE} of "
            "what is measured.",
            min=1e-6,
            max=1.0,
        ),
    ] = None,
    law: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="A law from deepfusion law: say when to grow within the budget. Again for each recipe."),
    ] = None,
    now: Annotated[
        int | None, typer.Option(help="Steps that each source has been given so far, for --law. Default: none.", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a plan, and print its graph and its cost; train nothing.

    \b
    deepfusion plan plan.toml                                     on this machine, whose speed is measured (a second)
    deepfusion plan plan.toml --devices 8 --tflops 989 --mfu 0.45     on eight H100s
    deepfusion plan plan.toml --law law.json                      when to grow, and whether it pays
    """
    work = "loading JAX and reading the plan"
    with working(f"{work}, then measuring this machine" if tflops is None else work, quiet=as_json):
        from deepfusion.foretold import foretold, lines
        from fusion_core.runs import arm_flops, costs, read_plan, resolve
        from fusion_core.runs.data import check_text
        from fusion_core.runs.speed import product_speed

        check_finite("--tflops", tflops)
        check_finite("--mfu", mfu)
        read = read_plan(plan)
        nodes = resolve(read, devices)
        check_text(read.data, read.seed, nodes)
        peak = product_speed(nodes) if tflops is None else tflops * 1e12
        share = mfu or (MEASURED_SHARE if tflops is None else ASSUMED_SHARE)
        found = costs(nodes, devices, peak * share)
        said = foretold(read, nodes, law or [], now)
    kind = "assumed" if tflops is not None else "measured"
    totals = {
        "flops": math.fsum(cost.flops or 0 for cost in found),
        "device_hours": math.fsum(cost.hours or 0 for cost in found),
    }
    arms = arm_flops(read, nodes)
    totals["wall_hours"] = totals["device_hours"] / devices
    if as_json:
        rows = [
            dataclasses.asdict(cost) | {"memory": cost.memory, "inputs": list(dict.fromkeys(node.node.inputs))}
            for cost, node in zip(found, nodes, strict=True)
        ]
        speed = {"speed": kind, "peak_flops": peak, "mfu": share, "devices": devices}
        laws = {"laws": [one.json for one in said]} if said else {}
        print(json.dumps({"name": read.name, "nodes": rows, "arms": arms, **speed, **totals, **laws}))
        return
    columns = ("node", "from", "width", "parameters", "steps", "FLOPs", "time", "memory")
    cells = [_cells(cost, node) for cost, node in zip(found, nodes, strict=True)]
    print_table(columns, cells, title=f"{read.name}: {len(nodes)} nodes", text=("node", "from"))
    each = f"{devices} devices, each of" if devices > 1 else "one device of"
    where = "assumed" if tflops is not None else "measured on this machine by products of the largest node's size"
    print(
        f"Together {prefixed(totals['flops'], 'FLOP')}: {duration(3600 * totals['wall_hours'])} on {each} "
        f"{prefixed(peak, 'FLOP/s')} ({where}), of which training is taken to reach {share:.0%}; compiling, evaluating and "
        "saving come on top. Memory: parameters, optimizer and gradients exactly, activations estimated, without "
        "rematerialisation."
    )
    if sentence := _arms(arms):
        print(sentence)
    for line in lines(said):
        print(line)


def _arms(arms: dict[str, float | None]) -> str:
    """Return a sentence on whether all arms end at equal FLOPs, their sources included."""
    known = {name: flops for name, flops in arms.items() if flops is not None}
    if len(arms) < 2 or not known:
        return ""
    most = max(known.values())
    uneven = [f"{name} at {flops / most:.1%}" for name, flops in known.items() if flops < 0.98 * most]
    unknown = [name for name in arms if name not in known]
    if not uneven and not unknown:
        return "All arms end at equal FLOPs, sources included."
    rest = f"; of {', '.join(unknown)} it is not known beforehand" if unknown else ""
    return f"The arms do not end at equal FLOPs: of the costliest one's FLOPs, {', '.join(uneven) or 'the others all'}{rest}."


def _cells(cost: Any, node: Any) -> tuple[str, ...]:
    trains = cost.kind == "train"
    steps = str(node.node.steps) if trains and cost.steps is None else f"{cost.steps or 0:,}"
    return (
        cost.name,
        " + ".join(node.node.inputs) or "random start",
        str(node.config.d_model),
        prefixed(cost.parameters),
        steps if trains else cost.kind,
        "" if cost.flops is None or not trains else prefixed(cost.flops),
        "" if cost.hours is None or not trains else duration(3600 * cost.hours),
        prefixed(cost.memory, "B"),
    )
