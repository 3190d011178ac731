"""Seconds in which no network trains when one is grown in the middle of a run: with compilation ahead, and without.

A plan trains a T5, doubles it by ``hypercloning`` and trains on. The pause is from the small network's last step, when its
record is shown, to the start of the grown one's first, when its program runs. In it are two evaluations, which the plan asks
for and which are computing of their own; waiting for what is made ahead; the growth; copies of states; files that are waited
for; and the rest. What the main thread compiles meanwhile is given too (it is within these). A dispatch, the next thing that
ends, is not part of the pause; its seconds are given beside it.

``with`` is a run as it is; ``without`` compiles when it is needed, takes the states from their checkpoints and writes each file
before it goes on, as runs did before. Each run is a process of its own with empty caches, and with and without take turns.

``python -m benchmarks.growing_pause`` prints Markdown; ``--json FILE`` (``-`` for the terminal) writes the numbers. It says
whether all weights and losses of the two are the same, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest.mock
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
from rich.console import Console

import fusion_core.runs.run as runs
from benchmarks.output import hand_over
from fusion_core.provenance import provenance
from fusion_core.runs import context, read_plan, run_plan
from fusion_core.timings import COMPILING
from fusion_core.train import Trainer, loop, training
from fusion_core.train.ahead import Ahead
from fusion_core.train.store import Checkpoints
from fusion_core.train.writer import Writer

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


EVALUATIONS, AHEAD, GROWTH, COPIES, FILES = "evaluations", "made ahead", "growth", "copies", "files"
PARTS = {EVALUATIONS: "the two evaluations", AHEAD: "waiting for what is made ahead", GROWTH: "the growth", COPIES: "copies",
         FILES: "waiting for files"}  # fmt: skip


class Watch:
    """Seconds of the main thread by part, from ``begin`` to the first training step; a part within another is its own.

    Args:
      undo: at whose end the functions are as they were.
    """

    def __init__(self, undo: contextlib.ExitStack) -> None:
        self._undo = undo
        self._inside: list[float] = []  # for each part that is open, the seconds of those within it
        self.begin()

    def begin(self) -> None:
        """Forget what was before: the pause begins now."""
        self.spent = dict.fromkeys([*PARTS, "compiling"], 0.0)
        self.begun, self.launched, self.processor = time.perf_counter(), 0.0, time.process_time()

    def _counts(self) -> bool:
        return threading.current_thread() is threading.main_thread() and not self.launched

    def put(self, owner: Any, function: str, made: Any) -> None:
        """Put another function in the place of one of a module or class."""
        self._undo.enter_context(unittest.mock.patch.object(owner, function, made))

    def part(self, name: str, owner: Any, *functions: str) -> None:
        """Add what functions of a module or class take, with all they leave to be computed, to a part."""
        for function in functions:
            self.put(owner, function, self._timed(name, getattr(owner, function)))

    def _timed(self, name: str, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def timed(*arguments: Any, **named: Any) -> Any:
            if not self._counts():
                return found(*arguments, **named)
            begun = time.perf_counter()
            self._inside.append(0.0)
            try:
                return jax.block_until_ready(found(*arguments, **named))
            finally:
                seconds = time.perf_counter() - begun
                self.spent[name] += seconds - self._inside.pop()
                if self._inside:
                    self._inside[-1] += seconds

        return timed

    def step(self, found: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``Ahead.__call__`` that notes when a training step, which has four arguments, was given to the devices."""

        def call(ahead: Ahead, *arguments: Any) -> Any:
            result = found(ahead, *arguments)
            if len(arguments) == 4 and self._counts():
                self.launched, self.processor = time.perf_counter(), time.process_time() - self.processor
            return result

        return call

    def compiled(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Take in what JAX reports of a compilation."""
        if event in COMPILING and self._counts():
            self.spent["compiling"] += duration_secs


def run(folder: pathlib.Path, ahead: bool) -> dict[str, Any]:
    """Run the plan in a folder; return the pause, where it went, and a sum of the results."""
    with contextlib.ExitStack() as undo:
        return _run(folder, Watch(undo), ahead)


def _run(folder: pathlib.Path, watch: Watch, ahead: bool) -> dict[str, Any]:
    watch.part(EVALUATIONS, Trainer, "scores")
    watch.part(AHEAD, Future, "result")
    watch.part(GROWTH, runs, "grown_state")
    watch.part(COPIES, training, "host_copy", "replicate")
    watch.part(COPIES, loop, "replicate")
    watch.part(FILES, context.RunContext, "finish", "save_result", "position_after")
    watch.part(FILES, Checkpoints, "save", "wait", "restore")
    watch.put(Ahead, "__call__", watch.step(Ahead.__call__))
    if not ahead:
        begin = Writer.begin

        def whole(writer: Writer, work: Callable[[], None]) -> Any:
            begun = begin(writer, work)
            writer.wait(begun)
            return begun

        watch.put(Writer, "begin", whole)
        watch.put(runs, "compile_ahead", lambda *arguments: None)
        watch.put(context.RunContext, "_hold", lambda *arguments: None)
    watch.part(FILES, Writer, "begin", "wait")
    jax.monitoring.register_event_duration_secs_listener(watch.compiled)
    times: list[tuple[str, float, dict[str, Any]]] = []

    def show(record: dict[str, Any]) -> None:
        times.append((record["node"], time.perf_counter(), record))
        if record["node"] == "small" and "loss" in record:
            watch.begin()

    try:
        run_plan(read_plan(folder / "plan.toml"), folder / "run", show=show)
    finally:
        jax.monitoring.unregister_event_duration_listener(watch.compiled)
    trained = [when for node, when, record in times if node == "grown" and "loss" in record]
    evaluated = next(when for node, when, _ in times if node == "grown")
    numbers = [[r[k] for k in ("loss", "validation_loss", "gradient_norm") if k in r] for _, _, r in times]
    weights = (folder / "run" / "nodes" / "grown" / "model" / "model.safetensors").read_bytes()
    seconds, parts = watch.launched - watch.begun, {name: watch.spent[name] for name in PARTS}
    return {
        "seconds": seconds,
        "without_evaluations": seconds - parts[EVALUATIONS],
        "to_the_first_evaluation": evaluated - watch.begun,
        **parts,
        "rest": seconds - sum(parts.values()),
        "compiling": watch.spent["compiling"],
        "dispatch": trained[1] - trained[0],  # a record is shown when the dispatch after it is done
        "processor_seconds": watch.processor,
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
    """Return the numbers as tables."""
    named = {"seconds": "standing still, s", **PARTS, "rest": "the rest", "compiling": "of these compiling",
             "processor_seconds": "processor s", "dispatch": "a dispatch, s"}  # fmt: skip
    lines = [f"| network | made ahead | {' | '.join(named.values())} |", "|---|---|" + "--:|" * len(named)]
    for row in result["sizes"]:
        for name, m in row["median"].items():
            lines.append(f"| {row['size']} | {name} | {' | '.join(f'{m[key]:.2f}' for key in named)} |")
        lines.append(f"| {row['size']} | ratio | {row['ratio']:.2f} |{' |' * (len(named) - 1)}")
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
