r"""Speed of exact modified equations, against kauri in the same run and against fixed limits.

``python -m benchmarks.symbolic`` times ours to order 15 (cold: the trees are built anew each time, median of three,
peak memory in a process of its own) and kauri to order 8 (about half a minute), compares every coefficient that both
have, and prints Markdown; ``--json FILE`` (``-`` for the terminal) writes the numbers. ``--kauri-order 9`` takes
minutes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bea.symbolic import METHODS, RungeKutta, Step, modified_equation
from bea.trees import Tree
from benchmarks.output import hand_over

# (name, method, order, limit in seconds, limit in GB): the project's own limits
LIMITS: list[tuple[str, Any, int, float, float | None]] = [
    ("explicit Euler, order 9", "euler", 9, 0.05, None),
    ("explicit Euler, order 12", "euler", 12, 1.0, None),
    ("explicit Euler, order 15", "euler", 15, 60.0, 2.0),
    ("two fields, order 7", [Step(field=0), Step(field=1)], 7, 2.0, None),
]
MEMORY_PROGRAM = r"""
import pathlib, re, resource
from bea.symbolic import Step, modified_equation
status = pathlib.Path("/proc/self/status")
def peak():  # ru_maxrss of a child starts at its parent's, VmHWM at nothing
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
coefficients = modified_equation({method}, {order})
print(len(coefficients), before * 1024, peak() * 1024)
"""


def seconds(work: Callable[[], Any], repeats: int = 3) -> tuple[float, float, Any]:
    """Return the median and spread (largest − smallest) of the wall times of a call, and its last value."""
    times, value = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        value = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), max(times) - min(times), value


def peak_memory(method: Any, order: int) -> dict[str, int]:
    """Return the peak resident memory of a fresh process that computes one equation, and of its imports alone, in bytes."""
    shown = repr(method) if isinstance(method, str) else "[Step(field=0), Step(field=1)]"
    program = MEMORY_PROGRAM.format(method=shown, order=order)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    trees, before, after = map(int, done.stdout.split())
    return {"trees": trees, "imports": before, "peak": after}


def kauri_coefficients(method: RungeKutta, order: int) -> dict[Tree, float]:
    """Return kauri's modified equation of the same tableau, keyed by our trees; kauri caches nothing between calls."""
    import kauri

    a, b = [[float(x) for x in row] for row in method.a], [float(x) for x in method.b]
    coefficient = kauri.RK(a, b).modified_equation_map()
    return {
        _ours(tree.list_repr): float(coefficient(tree)) for tree in kauri.trees_up_to_order(order) if tree.list_repr
    }


def _ours(shape: Any) -> Tree:
    """Return our tree for one of kauri's: a tuple of branches, with the root's colour at the end."""
    return Tree.of([_ours(child) for child in shape[:-1]])


def against_kauri(order: int, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the ratios of wall times for explicit Euler, order by order, each with the largest difference of a coefficient."""
    rows = []
    for p in range(5, order + 1):
        report(f"kauri, explicit Euler, order {p}")
        theirs_s, _, theirs = seconds(lambda p=p: kauri_coefficients(METHODS["euler"], p), repeats=1)
        ours_s, _, ours = seconds(lambda p=p: modified_equation("euler", p), repeats=5)
        worst = max(abs(float(ours[tree]) - value) for tree, value in theirs.items())
        assert len(theirs) == len(ours)
        rows.append(
            {
                "order": p,
                "trees": len(ours),
                "kauri_s": theirs_s,
                "ours_s": ours_s,
                "ratio": theirs_s / ours_s,
                "off": worst,
            }
        )
    return rows


def growth_per_order(order: int) -> list[dict[str, Any]]:
    """Return the seconds of each order from 6 up, with the factor from the order before and the cost of a tree."""
    rows: list[dict[str, Any]] = []
    for p in range(6, order + 1):
        median, spread, value = seconds(lambda p=p: modified_equation("euler", p), repeats=5 if p < 13 else 3)
        factor = median / rows[-1]["s"] if rows else None
        rows.append(
            {
                "order": p,
                "trees": len(value),
                "s": median,
                "spread_s": spread,
                "factor": factor,
                "us_a_tree": 1e6 * median / len(value),
            }
        )
    return rows


def compute(*, order: int, kauri_order: int, report: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Return all figures as plain numbers, ours to ``order``, kauri's to ``kauri_order`` (if 0, without kauri)."""
    limits = []
    for what, method, p, limit, memory_limit in LIMITS:
        if p > order:
            continue
        report(what)
        median, spread, value = seconds(lambda method=method, p=p: modified_equation(method, p))
        memory = peak_memory(method, p)
        assert all(isinstance(x, Fraction) for x in value.values())
        held = median < limit and (memory_limit is None or memory["peak"] < memory_limit * 1e9)
        limits.append(
            {
                "what": what,
                "trees": len(value),
                "s": median,
                "spread_s": spread,
                "limit_s": limit,
                "limit_gb": memory_limit,
            }
            | {"peak_gb": memory["peak"] / 1e9, "imports_gb": memory["imports"] / 1e9, "held": held}
        )
    report("cost per order")
    result: dict[str, Any] = {
        "limits": limits,
        "per_order": growth_per_order(order),
        "kauri": [],
        "kauri_version": None,
    }
    if kauri_order:
        import kauri

        result |= {"kauri_version": kauri.__version__, "kauri": against_kauri(kauri_order, report)}
    return result | {"python": platform.python_version(), "machine": platform.machine()}


def markdown(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = ["| what | trees | seconds | spread | limit | peak GB (imports) | held |", "|---|---|---|---|---|---|---|"]
    for row in result["limits"]:
        limit = f"{row['limit_s']:g} s" + (f", {row['limit_gb']:g} GB" if row["limit_gb"] else "")
        lines.append(
            f"| {row['what']} | {row['trees']:,} | {row['s']:.4f} | {row['spread_s']:.4f} | {limit} | "
            f"{row['peak_gb']:.2f} ({row['imports_gb']:.2f}) | {'yes' if row['held'] else 'NO'} |"
        )
    lines += ["", "| order | trees | seconds | spread | factor | µs a tree |", "|---|---|---|---|---|---|"]
    for row in result["per_order"]:
        factor = f"{row['factor']:.2f}" if row["factor"] else ""
        lines.append(
            f"| {row['order']} | {row['trees']:,} | {row['s']:.4f} | {row['spread_s']:.4f} | {factor} | "
            f"{row['us_a_tree']:.2f} |"
        )
    if result["kauri"]:
        lines += [
            "",
            f"| order | kauri {result['kauri_version']}, s (floats) | ours, s (exact) | ratio | largest difference |",
        ]
        lines.append("|---|---|---|---|---|")
        for row in result["kauri"]:
            lines.append(
                f"| {row['order']} | {row['kauri_s']:.3f} | {row['ours_s']:.5f} | {row['ratio']:,.0f} | "
                f"{row['off']:.1e} |"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON; 0 if every limit held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.symbolic", description=__doc__.splitlines()[0])
    parser.add_argument("--order", type=int, default=15, help="highest order of ours (default 15)")
    parser.add_argument(
        "--kauri-order", type=int, default=8, help="highest order of kauri's, 0 to leave it out (default 8)"
    )
    parser.add_argument("--smoke", action="store_true", help="small enough for a test: order 9, kauri to 5")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    order, kauri_order = arguments.order, arguments.kauri_order
    if arguments.smoke:
        order, kauri_order = min(order, 9), min(kauri_order, 5)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    stages = sum(p <= order for _, _, p, _, _ in LIMITS) + 1 + max(0, kauri_order - 4)
    with Progress(*columns, console=_stderr(), transient=True) as progress:
        task = progress.add_task("", total=stages, completed=-1)
        report = lambda what: progress.update(task, description=what, advance=1)
        result = compute(order=order, kauri_order=kauri_order, report=report)
    hand_over(result, markdown(result), arguments.json)
    return 0 if all(row["held"] for row in result["limits"]) else 1


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


if __name__ == "__main__":
    sys.exit(main())
