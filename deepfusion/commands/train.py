"""``deepfusion train``: a plan run, resumed and reported."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import pathlib
import re
import shlex
from typing import Annotated, Any

import typer

from deepfusion.commands.plan import PlanFile
from deepfusion.options import Json, check_finite
from deepfusion.plain import os_error
from deepfusion.tables import prefixed, print_table
from deepfusion.terminal import notes, working
from fusion_core import atomic
from fusion_core.errors import InputError, Interrupted, TrainingDiverged, exit_code
from fusion_core.seeds import check_seed
from fusion_core.timings import Timings

# of ``gc.set_threshold``: what JAX makes while it traces and lowers is kept, so that looking through it every 700 objects for
# what could go costs a tenth of a second or two before the first step
COLLECT = (50_000, 20, 20)


def train(
    plan: PlanFile,
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    node: Annotated[str | None, typer.Option(help="Run this node alone; its inputs' folders must be there.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Run the plan once for each of these seeds, such as 0,1,2, and compare them.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Peak of one device, in 10¹² FLOP/s, for the MFU. Default: known devices'.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard's files.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Find the other processes (SLURM, TPU pod).")
    ] = False,
    coordinator: Annotated[str | None, typer.Option(help="host:port of process 0, if there are several.")] = None,
    processes: Annotated[int | None, typer.Option(help="Number of processes.")] = None,
    process: Annotated[int | None, typer.Option(help="Number of this process, from 0.")] = None,
    start_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for the other processes to start.", min=1.0)
    ] = 300.0,
    timings: Annotated[
        bool, typer.Option("--timings", help="Print where time and memory up to the first step went.")
    ] = False,
    compile_cache: Annotated[
        bool, typer.Option(help="Keep compiled steps in the user's cache, and take them from there.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Run a plan: train and fuse its nodes, and report.

    Every node has a folder of its own, with its network in Hugging Face's layout; report.html has pictures and tables.

    \b
    deepfusion train plan.toml --out runs/m
    deepfusion train plan.toml --out runs/m --resume          after Ctrl-C, a crash, or for what is left
    deepfusion train plan.toml --out runs/m --node a          one node, here; others elsewhere
    deepfusion train plan.toml --out runs/m --seeds 0,1,2     three runs; tables have means and standard errors
    """
    spent = Timings()
    gc.set_threshold(*COLLECT)
    with working("loading JAX and reading the plan"), spent.part("loading JAX and reading the plan"):
        from fusion_core.runs import read_plan
        from fusion_core.train import initialize_distributed
        from fusion_core.train.compiled import keep_compiled
        from fusion_core.train.distributed import finish, leave

        read = read_plan(plan)
        if seeds is not None:
            read = dataclasses.replace(read, seeds=_numbers(seeds))
    if compile_cache:
        keep_compiled(notes)
    check_finite("--tflops", tflops)
    several = initialize_distributed(
        coordinator, processes, process, detect=distributed, start_timeout=start_timeout, note=notes
    )
    try:
        _run(read, out, resume, node, tflops, tensorboard, as_json, several, spent if timings else None)
        finish()
    except (Interrupted, KeyboardInterrupt) as error:
        leave("interrupted", exit_code(error))
        command = f"deepfusion train {shlex.quote(str(plan))} --out {shlex.quote(str(out))} --resume"
        notes(f"\nInterrupted; go on with:  {command}{f' --node {shlex.quote(node)}' if node else ''}")
        raise typer.Exit(exit_code(error)) from None
    except (InputError, OSError) as error:
        leave(os_error(error) if isinstance(error, OSError) else str(error), 2)
        raise
    except Exception as error:
        leave(str(error) if isinstance(error, TrainingDiverged) else f"{type(error).__name__}: {error}", 1)
        raise


def _numbers(seeds: str) -> tuple[int, ...]:
    parts = seeds.split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,1000}\s*", part) for part in parts) or len(
        {int(part) for part in parts}
    ) < len(parts):
        raise InputError(f"--seeds is {seeds!r}; give different numbers, 0 or more, with commas, such as 0,1,2")
    return tuple(check_seed(int(part), "a seed of --seeds") for part in parts)


def _run(
    read: Any,
    out: pathlib.Path,
    resume: bool,
    node: str | None,
    tflops: float | None,
    tensorboard: bool,
    as_json: bool,
    several: bool,
    timings: Timings | None,
) -> None:
    """Run the plan once the processes have found each other, and print what came of it on the first of them."""
    import jax

    from deepfusion.view import run_shown
    from fusion_core.lock import check_free, lock_names
    from fusion_core.runs.run import PLAN
    from fusion_core.train.devices import barrier, first_process
    from fusion_core.train.metrics import TensorBoard

    if first_process():
        check_free(out)  # whose folder it is comes before what is in it
    begun = (out / PLAN).exists()
    if several:
        barrier("all have looked at the folder")
    # nodes run one by one share a folder, each with a command of its own
    if begun and not resume and node is None:
        raise InputError(f"{out} holds a run; go on with it by --resume, or choose another folder")
    if not begun:
        atomic.check_new(out, "choose another", besides=lock_names(out))
    writers = [TensorBoard(out / "tensorboard")] if tensorboard and first_process() else []
    peak = None if tflops is None else tflops * 1e12 * jax.device_count()
    with contextlib.nullcontext() if timings is None else timings.compilations():
        results = run_shown(read, out, only=node, peak_flops=peak, writers=writers, timings=timings)
    if first_process():
        if timings is not None and not as_json:
            _print_timings(timings)
        more = {} if timings is None else {"timings": timings.record()}
        _report(results, read.name, out, as_json, more)


def _print_timings(timings: Timings) -> None:
    megabytes = lambda size: f"{size / 1e6:,.0f}" if size else ""
    rows = [
        (name, f"{value:.2f}", f"{timings.processor[name]:.2f}", megabytes(timings.peak[name]))
        for name, value in timings.seconds.items()
    ]
    whole = sum(timings.seconds.values()), sum(timings.processor.values()), max(timings.peak.values(), default=0)
    rows += [("all", f"{whole[0]:.2f}", f"{whole[1]:.2f}", megabytes(whole[2]))]
    rows += [(f"of these {name}", f"{value:.2f}", "", "") for name, value in timings.within.items()]
    rows += [("the whole run", "", "", megabytes(timings.record()["peak"]))]
    columns = ("up to the first step", "s", "processor s", "peak MB")
    print_table(columns, rows, title="Timings", text=("up to the first step",))
    print()


def _report(results: dict[str, Any] | None, name: str, out: pathlib.Path, as_json: bool, more: dict[str, Any]) -> None:
    """Write the page and print the table of a finished run; say what to do about an unfinished one."""
    if results is None:
        notes(f"Done here; other nodes of the plan are not finished yet. Go on with --resume in {out}.")
        if as_json:
            print(json.dumps({"folder": str(out), "finished": False} | more))
        return
    from deepfusion.pages.report import lines, rows, write_report

    report, table = write_report(results, out), rows(results)
    if as_json:
        found = {"folder": str(out), "finished": True, "report": str(report), "nodes": table}
        print(json.dumps(found | {"comparison": results["comparison"]} | more))
        return
    columns = ("node", "from", "parameters", "steps", "total FLOPs", "loss")
    cells = [
        (
            row["node"],
            " + ".join(row["inputs"]),
            prefixed(row["parameters"]),
            row["steps"],
            prefixed(row["total_flops"]),
            "" if row["loss"] is None else f"{row['loss']:.4f}",
        )
        for row in table
    ]
    print_table(columns, cells, title=f"{name}: validation loss", text=("node", "from", "steps"))
    print("\n".join(["", *lines(results), "", f"Report:  {report}"]))
