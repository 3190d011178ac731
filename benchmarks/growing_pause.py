"""Seconds in which no network trains when one is grown in the middle of a run: with compilation ahead, and without.

A plan trains a T5, doubles it by ``hypercloning`` and trains on. The pause is from the small network's last record of training
to the grown one's first, less the seconds of a dispatch: the last evaluation, checkpoint and files of the small one, the
growth with its files, the grown one's first evaluation, and what has to be compiled. ``with`` is a run as it is; ``without``
compiles when it is needed and takes the states from their checkpoints, as runs did before. Each run is a process of its own
with empty caches, and with and without take turns.

``python -m benchmarks.growing_pause`` prints Markdown; ``--json FILE`` (``-`` for the terminal) writes the numbers. It says
whether all weights and losses of the two are the same, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from benchmarks.output import hand_over
from fusion_core.provenance import provenance
from fusion_core.runs import read_plan, run_plan

# name -> (network, steps of each node, batch, length)
SIZES = {
    "smallest": ("{ d_model = 16, d_kv = 8, d_ff = 64, num_heads = 2, num_layers = 1, num_decoder_layers = 1 }", 20, 4, 16),
    "tiny": ("{ d_model = 64, d_kv = 16, d_ff = 256, num_heads = 4, num_layers = 2, num_decoder_layers = 2 }", 2000, 16, 64),
    "t5-small": ('"t5-small"', 60, 8, 64),
}  # fmt: skip
DISPATCH = 5
PLAN = """
steps_per_dispatch = {dispatch}
[data]
packages = []
vocab = 512
validation_batches = 2
[defaults]
batch = {batch}
length = {length}
optimizer = {{ name = "adafactor", rate = 0.01 }}
cadence = {{ log = {dispatch}, evaluate = {steps}, checkpoint = {steps} }}
[node.small]
model = {model}
steps = {steps}
[node.wide]
from = "small"
operator = "hypercloning"
factor = 2
[node.grown]
from = "wide"
steps = {after}
"""


def run(folder: pathlib.Path, ahead: bool) -> dict[str, Any]:
    """Run the plan in a folder; return the pause, where it went, and a sum of the results."""
    if not ahead:
        from fusion_core.runs import context, run

        run.compile_ahead = lambda *arguments: None  # type: ignore[attr-defined]
        context.RunContext._hold = lambda *arguments: None  # type: ignore[attr-defined]
    times: list[tuple[str, float, dict[str, Any]]] = []
    spent: list[float] = []

    def show(record: dict[str, Any]) -> None:
        times.append((record["node"], time.perf_counter(), record))
        spent.append(time.process_time())

    run_plan(read_plan(folder / "plan.toml"), folder / "run", show=show)
    trained = [i for i, (_, _, record) in enumerate(times) if "loss" in record]
    last = max(i for i in trained if times[i][0] == "small")
    first, second = [i for i in trained if times[i][0] == "grown"][:2]
    evaluated = next(i for i in range(last, first) if times[i][0] == "grown")
    dispatch = times[second][1] - times[first][1]
    numbers = [[r[k] for k in ("loss", "validation_loss", "gradient_norm") if k in r] for _, _, r in times]
    weights = (folder / "run" / "nodes" / "grown" / "model" / "model.safetensors").read_bytes()
    return {
        "seconds": times[first][1] - times[last][1] - dispatch,
        "to_the_first_evaluation": times[evaluated][1] - times[last][1],
        "dispatch": dispatch,
        "processor_seconds": spent[first] - spent[last] - (spent[second] - spent[first]),
        "sum": hashlib.sha256(json.dumps(numbers).encode() + weights).hexdigest(),
    }


def compute(size: str, repeats: int, report: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Return all measurements of a size, as JSON."""
    model, steps, batch, length = SIZES[size]
    plan = PLAN.format(dispatch=DISPATCH, model=model, steps=steps, batch=batch, length=length, after=3 * DISPATCH)
    rounds = []
    for i in range(repeats):
        found = {}
        for name in ("with", "without"):
            report(f"{size}, {name} ({i + 1} of {repeats})")
            with tempfile.TemporaryDirectory(prefix="pause-") as place:
                (pathlib.Path(place) / "plan.toml").write_text(plan, encoding="utf-8")
                kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
                command = [sys.executable, "-m", "benchmarks.growing_pause", "--worker", place, "--ahead", name]
                done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the run {name} ended with {done.returncode}: {done.stderr[-1000:]}")
            found[name] = json.loads(done.stdout.splitlines()[-1])
        rounds.append(found)
    keys = [key for key in rounds[0]["with"] if key != "sum"]
    median = {name: {key: statistics.median(r[name][key] for r in rounds) for key in keys} for name in rounds[0]}
    return {
        "size": size,
        "median": median,
        "ratio": statistics.median(r["with"]["seconds"] / r["without"]["seconds"] for r in rounds),
        "same": len({found["sum"] for r in rounds for found in r.values()}) == 1,
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    lines = [
        "| network | compiled ahead | standing still, s | to the first evaluation, s | processor s | a dispatch, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["sizes"]:
        for name, m in row["median"].items():
            cells = (m["seconds"], m["to_the_first_evaluation"], m["processor_seconds"], m["dispatch"])
            lines.append(f"| {row['size']} | {name} | {' | '.join(f'{value:.2f}' for value in cells)} |")
        lines.append(f"| {row['size']} | ratio | {row['ratio']:.2f} | | | |")
    same = ", ".join(f"{row['size']}: {'yes' if row['same'] else 'NO'}" for row in result["sizes"])
    return "\n".join([*lines, "", f"Losses and weights the same, bit for bit: {same}."])


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growing_pause", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["tiny", "t5-small"], help="networks")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--ahead", choices=("with", "without"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        print(json.dumps(run(arguments.worker, arguments.ahead == "with")))
        return 0
    with Console(stderr=True).status("") as status:
        sizes = [compute(size, arguments.repeats, status.update) for size in arguments.sizes]
    result = {"sizes": sizes, "dispatch": DISPATCH, "provenance": provenance()}
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
