r"""Effect of a growth event on the loss and on the velocity of the function, against theory's predictions.

``python -m benchmarks.growth_event`` swaps one step of the small phase and one of the grown network at several step sizes and
prints the powers of h of the differences in parameters and loss, for a network fused with itself and for two different ones;
then the jump of the function's velocity with and without the rate factors, for every optimizer and kind of array. The
networks are MLPs on teacher tasks, in float64.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import numpy as np

from benchmarks.output import hand_over
from fusion_core.provenance import provenance
from toy_models import growth_event

SIZES, SAMPLES, LARGEST, HALVINGS, COPIES = (4, 12, 12, 2), 64, 0.01, 5, (2, 3)


def compute(runs: int, smoke: bool = False) -> dict[str, Any]:
    """Return slopes and jumps over ``runs`` tasks with their networks."""
    sizes, halvings, copies = ((3, 4, 4, 2), 2, (2,)) if smoke else (SIZES, HALVINGS, COPIES)
    seeds, step_sizes = range(runs), [LARGEST / 2**k for k in range(halvings + 1)]
    gaps = growth_event.neutrality(sizes, SAMPLES, seeds, step_sizes)
    slopes = [
        {"difference": name, "expected": growth_event.GAPS[name], "mean": float(np.mean(found["slopes"]))}
        | {"least": min(found["slopes"]), "most": max(found["slopes"])}
        for name, found in gaps.items()
    ]
    jumps = []
    for row in growth_event.velocity_jumps(sizes, SAMPLES, seeds, copies):
        one = {name: row[name] for name in ("optimizer", "copies", "kind")}
        one |= {"factor": None if math.isnan(row["factor"]) else row["factor"]}
        one |= {name: float(np.median(row[name])) for name in ("predicted", "without")}
        off = np.abs(np.asarray(row["without"]) - row["predicted"]).max()
        jumps.append(one | {"worst_with": max(row["with"]), "worst_off": float(off)})
    return {"sizes": sizes, "runs": runs, "step_sizes": step_sizes, "slopes": slopes, "jumps": jumps}


def markdown(result: dict[str, Any]) -> str:
    """Return two tables as Markdown."""
    lines = [
        f"MLPs of widths {'-'.join(map(str, result['sizes']))}, {result['runs']} tasks.",
        "",
        "| one step of each phase, swapped | power of h, predicted | measured | least | most |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {s['difference']} | {s['expected']} | {s['mean']:.2f} | {s['least']:.2f} | {s['most']:.2f} |"
        for s in result["slopes"]
    ]
    lines += [
        "",
        "Jump of the function's velocity when k equal copies are fused, as a share of the velocity before:",
        "",
        "| optimizer | k | arrays | factor r | predicted without r, median | measured without r, median | off by at most | "
        "with r, at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for j in result["jumps"]:
        factor = "" if j["factor"] is None else f"{j['factor']:.3f}"
        lines.append(
            f"| {j['optimizer']} | {j['copies']} | {j['kind']} | {factor} | {j['predicted']:.3f} | {j['without']:.3f} | "
            f"{j['worst_off']:.0e} | {j['worst_with']:.0e} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth_event", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--runs", type=int, default=8, help="tasks with their networks (default 8)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test: tiny networks, 1 task, k = 2")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs is {arguments.runs}: at least one task is measured")
    result = compute(1 if arguments.smoke else arguments.runs, arguments.smoke)
    result["provenance"] = provenance()
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
