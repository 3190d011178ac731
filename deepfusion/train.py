"""``deepfusion plan`` and ``deepfusion train``: a growth plan checked and priced, then run, resumed and reported."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PlanFile = Annotated[pathlib.Path, typer.Argument(help="A plan in TOML; docs/train.md and examples/plans show how.")]
Devices = Annotated[int, typer.Option(help="That share every batch.", min=1)]
Tflops = Annotated[
    float | None, typer.Option(help="Peak of one device, in 10¹² FLOP/s, for the MFU. Default: known ones'.")
]

# An A100's bfloat16 peak and what a well-fed T5 reaches of it
PEAK, UTILIZATION = 312.0, 0.4


def plan(
    plan: PlanFile,
    devices: Devices = 1,
    tflops: Annotated[float, typer.Option(help="Peak of one device, in 10¹² FLOP/s.", min=1e-6)] = PEAK,
    mfu: Annotated[float, typer.Option(help="Share of the peak that is reached.", min=1e-6, max=1.0)] = UTILIZATION,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Check a plan, and print its graph and what it costs. Nothing is run.

    \b
    deepfusion plan plan.toml
    deepfusion plan plan.toml --devices 8 --tflops 989 --mfu 0.45
    """
    from fusion_core.runs import costs, read_plan, resolve

    read = read_plan(plan)
    nodes = resolve(read, devices)
    found = costs(nodes, devices, tflops * 1e12 * mfu)
    assumed = f"{devices} device{'s' if devices > 1 else ''} of {tflops:g} TFLOP/s at {mfu:.0%} of that"
    totals = {"flops": sum(c.flops for c in found), "device_hours": sum(c.hours for c in found)}
    totals["wall_hours"] = totals["device_hours"] / devices
    if as_json:
        rows = [
            dataclasses.asdict(cost) | {"memory": cost.memory, "inputs": list(dict.fromkeys(node.node.inputs))}
            for cost, node in zip(found, nodes, strict=True)
        ]
        print(json.dumps({"name": read.name, "nodes": rows, "assumed": assumed, **totals}))
        return
    console = Console()
    table = Table(title=f"{read.name}: {len(nodes)} nodes")
    for column in ("node", "from", "width", "parameters", "steps", "FLOPs", "hours", "memory"):
        table.add_column(column, justify="left" if column in ("node", "from") else "right")
    for cost, node in zip(found, nodes, strict=True):
        trains = cost.kind == "train"
        steps = "auto" if cost.steps is None else f"{cost.steps:,}"
        table.add_row(
            escape(cost.name),
            escape(" + ".join(node.node.inputs)) or "random start",
            str(node.config.d_model),
            f"{cost.parameters:,}",
            steps if trains else "fusion",
            f"{cost.flops:.3g}" if trains else "",
            f"{cost.hours:.3g}" if trains else "",
            _bytes(cost.memory),
        )
    console.print(table)
    console.print(
        f"Together {totals['flops']:.3g} FLOPs, {totals['device_hours']:.3g} device-hours, {totals['wall_hours']:.3g} hours of "
        f"waiting, on {assumed}. Memory: parameters, optimizer and gradients exactly, activations estimated, without "
        "rematerialisation.",
        highlight=False,
    )


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def train(
    plan: PlanFile,
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    node: Annotated[str | None, typer.Option(help="This node alone; its inputs' folders must be there.")] = None,
    tflops: Tflops = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard's files.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Find the other processes (SLURM, TPU pod).")
    ] = False,
    coordinator: Annotated[str | None, typer.Option(help="host:port of process 0, where there are several.")] = None,
    processes: Annotated[int | None, typer.Option(help="How many there are.")] = None,
    process: Annotated[int | None, typer.Option(help="This one's number, from 0.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Run a plan: train and fuse its nodes, each in a folder of its own, and report.

    \b
    deepfusion train plan.toml --out runs/m
    deepfusion train plan.toml --out runs/m --resume          after Ctrl-C, a crash, or for what is left
    deepfusion train plan.toml --out runs/m --node a          one node, here; others elsewhere
    """
    from fusion_core.errors import InputError
    from fusion_core.runs import read_plan
    from fusion_core.train import Interrupted, TrainingDiverged, initialize_distributed
    from fusion_core.train.distributed import finish, leave

    read = read_plan(plan)
    several = initialize_distributed(coordinator, processes, process, detect=distributed)
    try:
        _run(read, out, resume, node, tflops, tensorboard, as_json, several)
        finish()
    except (Interrupted, KeyboardInterrupt):
        leave("interrupted", 130)
        command = f"deepfusion train {shlex.quote(str(plan))} --out {shlex.quote(str(out))} --resume"
        command += f" --node {shlex.quote(node)}" if node else ""
        Console(stderr=True).print(f"\nInterrupted; go on with:  {escape(command)}", soft_wrap=True)
        raise typer.Exit(130) from None
    except InputError as error:
        leave(str(error), 2)
        raise
    except Exception as error:
        leave(str(error) if isinstance(error, TrainingDiverged) else f"{type(error).__name__}: {error}", 1)
        raise


def _run(
    read: Any,
    out: pathlib.Path,
    resume: bool,
    node: str | None,
    tflops: float | None,
    tensorboard: bool,
    as_json: bool,
    several: bool,
) -> None:
    """The run itself, once the processes have found each other."""
    import jax
    from fusion_core.runs.execute import PLAN

    from deepfusion.plan_report import rows, write_report
    from fusion_core.errors import InputError
    from fusion_core.runs import run_plan
    from fusion_core.train.loop import graceful_interrupt
    from fusion_core.train.metrics import TensorBoard
    from fusion_core.train.view import view_of

    first = jax.process_index() == 0
    begun = (out / PLAN).exists()
    if several:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("all have looked at the folder")
    # nodes run one by one share a folder, each with a command of its own
    if begun and not resume and node is None:
        raise InputError(f"{out} holds a run; go on with it by --resume, or choose another folder")
    if not begun and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not the folder of a run; choose another")
    writers = [TensorBoard(out / "tensorboard")] if tensorboard and first else []
    notes = Console(stderr=True, quiet=not first)
    peak = None if tflops is None else tflops * 1e12 * jax.device_count()
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(view_of(notes))
        for writer in writers:
            stack.callback(writer.close)
        stack.enter_context(
            graceful_interrupt(lambda: view.note("Stopping at the next step; Ctrl-C again stops at once."))
        )

        def show(record: dict[str, Any]) -> None:
            view.show(record)
            for writer in writers:
                writer.write(record)

        results = run_plan(read, out, only=node, peak_flops=peak, show=show, note=view.note, begin=view.begin)
    if not first:
        return
    if results is None:
        notes.print(
            f"Done here; other nodes of the plan are not finished yet. Go on with --resume in {escape(str(out))}."
        )
        print(json.dumps({"folder": str(out), "finished": False}) if as_json else "", end="\n" if as_json else "")
        return
    report = write_report(results, out)
    if as_json:
        print(json.dumps({"folder": str(out), "finished": True, "report": str(report), "nodes": rows(results)}))
        return
    table = Table(title=f"{read.name}: validation loss")
    for column in ("node", "from", "parameters", "steps", "FLOPs with its ancestors'", "loss"):
        table.add_column(column, justify="left" if column in ("node", "from") else "right")
    for row in rows(results):
        table.add_row(
            escape(row["node"]),
            escape(" + ".join(row["inputs"])),
            f"{row['parameters']:,}",
            row["steps"],
            f"{row['total_flops']:.3g}",
            "" if row["loss"] is None else f"{row['loss']:.4f}",
        )
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(f"Report:  {escape(str(report))}", highlight=False, soft_wrap=True)
