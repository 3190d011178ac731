"""Every figure of speed and memory with its limit and its peer: docs/performance.md, from one hour on one machine.

    python -m benchmarks.performance --run             runs the benchmarks one after another, about an hour on a quiet machine
    python -m benchmarks.performance --run --only train_step formulas
    python -m benchmarks.performance --write           renews docs/performance.md from what was measured

Each benchmark's own numbers are kept as benchmarks/results/NAME.json; a new run of one replaces it whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fusion_core import atomic
from fusion_core.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = pathlib.Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "performance.md"

# benchmark -> arguments of its run
RUNS: dict[str, tuple[str, ...]] = {
    "first_step": (),
    "train_step": ("--no-variants",),
    "step_limit": (),
    "generate": (),
    "bea_cost": (),
    "formulas": (),
    "symbolic": (),
    "data_pipeline": (),
    "processes": (),
    "growing_pause": (),
}
# what --run leaves out: its result is a file of another machine
ELSEWHERE = {"gpu_train_step": "one NVIDIA GPU"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured number: what it is, in which benchmark's result, against what, and the goal (at most, or at least)."""

    what: str
    benchmark: str
    of: Callable[[Any], float | None]
    against: str
    form: str = "{:.2f}"
    at_most: float | None = None
    at_least: float | None = None

    def reached(self, value: float) -> bool | None:
        """Return whether the goal is reached; None if there is none."""
        if self.at_most is None and self.at_least is None:
            return None
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


def row(rows: Sequence[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """Return the one row with these facts."""
    return next(r for r in rows if all(r[name] == value for name, value in facts.items()))


def step_of(size: str) -> Callable[[Any], float | None]:
    return lambda found: row(row(found["sizes"], size=size)["rows"], name="ours, Adafactor").get("ratio")


def share_of(size: str) -> Callable[[Any], float | None]:
    return lambda found: row(row(found["sizes"], size=size)["rows"], name="step")["share_of_limit"]


def bea_of(what: str, column: str, *, lean: bool = False) -> Callable[[Any], float | None]:
    """Return a cost on the T5, or on the T5 whose blocks are rematerialised if ``lean``."""

    def find(found: Any) -> float | None:
        rows = [r for r in found["costs"] if r["what"] == what and r["problem"].startswith("T5")]
        return next((float(r[column]) for r in rows if r["problem"].endswith("rematerialised") == lean), None)

    return find


def longest(what: str, order: int) -> Callable[[Any], float | None]:
    return lambda found: max(r["s"] for r in found["formulas"] if r["what"].startswith(what) and r["order"] == order)


def processes_of(layout: str) -> Callable[[Any], float | None]:
    return lambda found: found["ratios"][layout]["seconds"]


def pause_of(size: str, part: str = "seconds") -> Callable[[Any], float | None]:
    return lambda found: next((r["median"]["with"].get(part) for r in found["sizes"] if r["size"] == size), None)


def of_steps(run: str, *names: str) -> Callable[[Any], float | None]:
    """Return seconds to the first step in a run: of the stages whose names begin so, or of all."""

    def find(found: Any) -> float:
        stages = found["first_step"][run]["seconds"]
        return sum(s for name, s in stages.items() if not names or name.startswith(names))

    return find


def gpu_of(part: str, column: str) -> Callable[[Any], float | None]:
    """Return a column of the fastest way of a part on a GPU."""

    def find(found: Any) -> float | None:
        rows = [r for r in found.get(part, {}).get("rows", ()) if "median" in r]
        return min(rows, key=lambda r: r["median"])[column] if rows else None

    return find


PYTORCH = "Hugging Face's T5 in PyTorch, same batch and FLOPs"
GRADIENT = "one gradient of the same loss"
FIGURES = (
    Figure("text to the first batch, s, 20 MB", "first_step", lambda f: f["text"]["ours"]["seconds"], "", at_most=15),
    Figure(
        "the same, all of the text for the tokenizer, nanoT5's pieces' time in ours", "first_step",
        lambda f: next((r["seconds"] for n, r in f["ratio"].items() if n.startswith("nanoT5's / ours, all")), None),
        "tokenizers and datasets",
    ),
    Figure("all before the first step, first run, s", "first_step", of_steps("first"), ""),
    Figure("all before the first step, second run on the same text, s", "first_step", of_steps("second"), "", at_most=3),
    Figure(
        "peak memory of the first run, GB", "first_step", lambda f: f["first_step"]["first"].get("peak", 0) / 1e9 or None, "",
        at_most=0.8,
    ),
    Figure("a step of the tiny T5, times faster", "train_step", step_of("tiny"), PYTORCH, at_least=2.2),
    Figure("a step of t5-small, times faster", "train_step", step_of("small"), PYTORCH),
    Figure(
        "a step of t5-small, share of the limit", "step_limit", share_of("small"), "the machine's best matrix product",
        "{:.0%}", at_least=0.6,
    ),
    Figure(
        "a step of the tiny T5, share of the limit", "step_limit", share_of("tiny"), "the machine's best matrix product",
        "{:.0%}",
    ),
    Figure(
        "gradient of the modified loss, t5-small, in gradients", "bea_cost",
        bea_of("gradient of the modified loss", "gradients"), GRADIENT, at_most=2.9,
    ),
    Figure(
        "its memory, in a gradient's", "bea_cost", bea_of("gradient of the modified loss", "memory"), GRADIENT, at_most=2,
    ),
    Figure(
        "memory of a modified field of order 2, blocks rematerialised", "bea_cost",
        bea_of("modified field, order 2", "memory", lean=True), GRADIENT, at_most=2,
    ),
    Figure(
        "bracket of two losses, t5-small, in gradients", "bea_cost", bea_of("conflict vector of two losses", "gradients"),
        GRADIENT, at_most=4,
    ),
    Figure("memory of a modified field of order 3", "bea_cost", bea_of("modified field, order 3", "memory"), GRADIENT),
    Figure(
        "the same, blocks rematerialised", "bea_cost", bea_of("modified field, order 3", "memory", lean=True), GRADIENT,
        at_most=3,
    ),
    Figure("memory of a modified field of order 4", "bea_cost", bea_of("modified field, order 4", "memory"), GRADIENT),
    Figure(
        "the same, blocks rematerialised", "bea_cost", bea_of("modified field, order 4", "memory", lean=True), GRADIENT,
        at_most=3,
    ),
    Figure(
        "modified loss of four parameters, order 4, printed, s", "formulas", longest("four", 4), "sympy alone, below",
        "{:.3f}", at_most=0.3,
    ),
    Figure(
        "modified loss of six parameters, order 4, printed, s", "formulas", longest("six", 4), "sympy alone, below",
        at_most=5,
    ),
    Figure(
        "modified equation of order 8, exact, times faster", "symbolic",
        lambda f: row(f["kauri"], order=8)["ratio"] if f["kauri"] else None, "kauri, in floats", "{:,.0f}",
    ),
    Figure(
        "two processes, a core each, in one process's pace", "processes", processes_of("two processes, a core each"),
        "one process with both cores", at_least=0.7,
    ),
    Figure(
        "two virtual devices, in one device's pace", "processes", processes_of("one process, two virtual devices"),
        "one process with both cores", at_least=0.7,
    ),
    Figure("standing still when a tiny T5 is grown, s", "growing_pause", pause_of("tiny"), "nothing compiled ahead, below"),
    Figure(
        "standing still when t5-small is grown, s", "growing_pause", pause_of("t5-small"), "nothing compiled ahead, below",
        at_most=2,
    ),
    Figure(
        "the same without its two evaluations, s", "growing_pause", pause_of("t5-small", "without_evaluations"),
        "nothing compiled ahead, below",
    ),
    Figure(
        "generation, the slowest case, times faster", "generate", lambda f: min(r["ratio"] for r in f["cases"].values()),
        "Hugging Face's generate in PyTorch",
    ),
    Figure("a step of t5-v1_1-base on a GPU, s", "gpu_train_step", gpu_of("base", "median"), "goal on an H200", at_most=0.2),
    Figure(
        "the same, times faster", "gpu_train_step", lambda f: f.get("ratio"),
        "Hugging Face's T5 under torch.compile, same card", at_least=1.3,
    ),
    Figure(
        "a step of t5-small on a GPU, share of its peak", "gpu_train_step", gpu_of("small", "utilisation"),
        "the card's dense bf16 peak", "{:.1%}", at_least=0.35,
    ),
)  # fmt: skip


def measured() -> dict[str, Any]:
    """Return the results at hand, by benchmark."""
    files = {name: RESULTS / f"{name}.json" for name in (*RUNS, *ELSEWHERE)}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def markdown(results: dict[str, Any]) -> str:
    """Return the page: all figures in one table, then every benchmark's own tables."""
    missing = [name for name in RUNS if name not in results]
    lines = [
        "# Speed and memory",
        "",
        "Written by `python -m benchmarks.performance --write` from `benchmarks/results/`, which `--run` measures. Ratios are",
        "of runs in turns on the same machine; a goal that is missed is said to be.",
        *([f"Not measured for this page yet: {', '.join(missing)}."] if missing else []),
        "",
        "| figure | measured | goal | reached | against | by |",
        "|---|--:|--:|---|---|---|",
    ]
    for figure in FIGURES:
        if figure.benchmark not in results:
            continue
        value = figure.of(results[figure.benchmark])
        if value is None:
            continue
        goal = next(
            (
                f"{word} {figure.form.format(g)}"
                for word, g in (("≤", figure.at_most), ("≥", figure.at_least))
                if g is not None
            ),
            "",
        )
        reached = {True: "yes", False: "NO", None: ""}[figure.reached(value)]
        link = f"[{figure.benchmark}](#{figure.benchmark})"
        cells = (figure.what, figure.form.format(value), goal, reached, figure.against, link)
        lines.append(f"| {' | '.join(cells)} |")
    for name, found in results.items():
        module = importlib.import_module(f"benchmarks.{name}")
        summary = " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())
        about = found.get("performance", {})
        load = f", load {about['load']:.1f} before it began" if "load" in about else ""
        on = f" Measured on {about['date']}{load}." if about else ""
        command = " ".join(("python -m", f"benchmarks.{name}", *about.get("arguments", RUNS.get(name, ()))))
        lines += ["", f"## {name}", f"{summary} `{command}`.{on}", "", module.markdown(found)]
        if name == "step_limit" and "train_step" in results:
            lines[-1] = f"{lines[-1].rstrip()}\n\n{what_limits(results, 'tiny', 2.2)}\n"
    return "\n".join(lines).rstrip() + "\n"


def what_limits(results: dict[str, Any], size: str, goal: float) -> str:
    """Return what PyTorch's pace times a goal would be on this machine, and where a step's time goes."""
    pytorch = row(row(results["train_step"]["sizes"], size=size)["rows"], name="PyTorch, Adafactor")["gflops"]
    found = row(results["step_limit"]["sizes"], size=size)
    limit, rows = found["limit"]["gflops"], found["rows"]
    step, pairs, *products = (
        row(rows, name=name)
        for name in ("step", "pairs of attention", "products of attention", "feed-forward layers", "logits and loss")
    )
    shares = [part["share_of_limit"] for part in products]
    wanted = goal * pytorch / limit
    return (
        f"What limits the {size} T5's step: PyTorch computes {pytorch:.0f} GFLOP/s there, so that {goal} times its pace is "
        f"{wanted:.0%} of the machine's best matrix product ({limit:.0f} GFLOP/s)"
        f"{', more than the machine has' if wanted > 1 else ''}; ours is at {step['share_of_limit']:.0%}. Its matrix products "
        f"are at {min(shares):.0%} to {max(shares):.0%} alone, and the pairs of attention take "
        f"{pairs['seconds'] / step['seconds']:.0%} of the step's time alone, at "
        f"{pairs['share_of_limit']:.0%}."
    )


def run(name: str, words: Sequence[str], to: pathlib.Path = RESULTS) -> int:
    """Run a benchmark in a process of its own and keep its result; return its exit code (1: a limit of its own is broken).

    Raises:
      InputError: it wrote no result.
    """
    to.mkdir(exist_ok=True)
    path, fresh = to / f"{name}.json", to / f".{name}.new"
    fresh.unlink(missing_ok=True)
    load = (
        float(pathlib.Path("/proc/loadavg").read_text().split()[0]) if pathlib.Path("/proc/loadavg").exists() else 0.0
    )
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words, "--json", str(fresh)], cwd=ROOT, check=False
    )
    if not fresh.exists():
        raise InputError(f"benchmarks.{name} ended with {done.returncode} and wrote no result; run it alone to see why")
    found = json.loads(fresh.read_text(encoding="utf-8"))
    found["performance"] = {"date": time.strftime("%Y-%m-%d"), "load": load, "arguments": list(words)}
    atomic.write_text(path, json.dumps(found, indent=1) + "\n")
    fresh.unlink()
    return done.returncode


def main(argv: list[str] | None = None) -> int:
    """Run, write; 0 if every benchmark that was asked for gave a result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.performance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", action="store_true", help="measure")
    parser.add_argument(
        "--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="NAME", help=", ".join(RUNS)
    )
    parser.add_argument(
        "--arguments", default="", metavar="WORDS", help="for the benchmarks, in place of the page's own"
    )
    parser.add_argument("--write", action="store_true", help="renew docs/performance.md")
    options = parser.parse_args(argv)
    if not (options.run or options.write):
        print(markdown(measured()))
    failed = []
    for i, name in enumerate(options.only if options.run else ()):
        print(f"{name} ({i + 1} of {len(options.only)})", file=sys.stderr, flush=True)
        try:
            run(name, options.arguments.split() if options.arguments else RUNS[name])
        except InputError as stop:
            failed.append(str(stop))
            print(stop, file=sys.stderr)
    if options.write:
        atomic.write_text(PAGE, markdown(measured()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
