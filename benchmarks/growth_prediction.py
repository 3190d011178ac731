r"""When to grow: the measured optimum on a grid of growth steps, against every rule, at equal FLOPs.

``python -m benchmarks.growth_prediction --problems 0:40 --runs 8 --folder runs/growth`` measures held-out problems (each is
written as soon as it is done, so that a stopped run resumes at the next problem), applies every rule to them and prints
Markdown; ``--json FILE`` writes the tables' numbers. ``--tuning`` takes the problems that rules may be tuned on, ``--short``
those in which the large network is not worth its budget, ``--long`` those of 20,000 steps; ``--slopes`` adds the derivative of
the final loss at several step sizes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fusion_core.atomic import write_text
from fusion_core.provenance import provenance
from toy_models.when_to_grow import derivative, measure, problems, tables


def span(text: str) -> range:
    """Return the range that the text ``FIRST:LAST`` names, LAST excluded."""
    try:
        first, last = (int(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of problems: write FIRST:LAST, such as 0:40") from None
    if not 0 <= first < last:
        raise argparse.ArgumentTypeError(f"{text!r} is empty or negative: write FIRST:LAST with 0 <= FIRST < LAST")
    return range(first, last)


def record_of(folder: pathlib.Path, name: str, family: problems.Family, seed: int, arguments: Any, report: Any) -> dict:
    """Return the record of one problem, from its file or measured now."""
    path = folder / f"{name}-{seed}-{arguments.runs}-{arguments.truth_runs}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    counts = arguments.runs, arguments.truth_runs, arguments.costate_runs
    record = measure.measure_problem(problems.random_problem(family, seed), *counts, report)
    record["provenance"] = provenance()
    write_text(path, json.dumps(record) + "\n")
    return record


def main(argv: list[str] | None = None) -> int:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth_prediction", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--problems", type=span, default=range(40), metavar="FIRST:LAST", help="default 0:40")
    parser.add_argument("--runs", type=int, default=8, help="initialisations with rules, at least 2 (default 8)")
    parser.add_argument("--truth-runs", type=int, default=64, help="initialisations for the truth (default 64)")
    parser.add_argument("--costate-runs", type=int, default=4, help="runs with the switching function (default 4)")
    parser.add_argument(
        "--folder", default="runs/growth_prediction", help="folder of the records, one file for each problem"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tuning", action="store_true", help="problems that rules may be tuned on")
    kind.add_argument("--short", action="store_true", help="problems too short for growth to pay: 60 to 200 steps")
    kind.add_argument("--long", action="store_true", help="problems of 20,000 steps")
    kind.add_argument("--smoke", action="store_true", help="tiny problems, for the tests")
    parser.add_argument("--slopes", action="store_true", help="the derivative of the final loss against its prediction")
    parser.add_argument("--json", metavar="FILE", help="write the tables' numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    if arguments.runs < 2:
        parser.error("--runs is below 2: a standard error needs two initialisations")
    arguments.costate_runs = min(arguments.costate_runs, arguments.runs)
    arguments.truth_runs = max(arguments.truth_runs, arguments.runs)
    name = next((n for n in ("tuning", "short", "long", "smoke") if getattr(arguments, n)), "held-out")
    family = {"short": problems.SHORT, "long": problems.LONG, "smoke": problems.SMOKE}.get(name, problems.STANDARD)
    first = problems.TUNING if name in ("tuning", "smoke") else problems.HELD_OUT
    folder = pathlib.Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(arguments.problems))
        for index in arguments.problems:
            report = lambda what, index=index: progress.update(task, description=f"problem {index}: {what}")
            records.append(record_of(folder, name, family, first + index, arguments, report))
            progress.advance(task)
    result: dict[str, Any] = {"family": name} | tables.compute(records)
    if arguments.slopes:
        result["slopes"] = derivative.compute()
    result["provenance"] = provenance()
    if arguments.json == "-":
        print(json.dumps(result, indent=1))
    else:
        print(tables.markdown(result))
        if arguments.json:
            write_text(pathlib.Path(arguments.json), json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
