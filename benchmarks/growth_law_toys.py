"""Laws of growth put to the test on toys: runs of 20,000 steps, every rule seeing 2,000 or 5,000 of them, its cost charged.

    python -m benchmarks.growth_law_toys                       measures (some two hours of a core), prints Markdown
    python -m benchmarks.growth_law_toys --json FILE --write   writes the numbers, and renews the tables in docs/when_to_grow.md
    python -m benchmarks.growth_law_toys --smoke               tiny problems, for the tests

Curves are kept in ``--folder``, one file for each problem, so that a stopped run goes on and tables cost no training. The
problems for tuning rules and the held-out ones are said in ``toy_models/when_to_grow/long_runs.py``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.output import hand_over
from fusion_core import atomic
from fusion_core.provenance import provenance
from toy_models.when_to_grow import flow_failure, law_head_start, law_rules, law_tables
from toy_models.when_to_grow import long_runs as lr
from toy_models.when_to_grow.law_flows import Looks

DOC = pathlib.Path(__file__).parent.parent / "docs" / "when_to_grow.md"
MARKS = "<!-- begin: python -m benchmarks.growth_law_toys --write, {} -->", "<!-- end: {} -->"
FAMILIES: Mapping[str, tuple[lr.Family, int]] = {
    "tuning": (lr.FAMILY, lr.TUNING_SEED),
    "held-out": (lr.HELD_OUT_FAMILY, lr.HELD_OUT_SEED),
    "smoke": (lr.SMOKE_FAMILY, lr.TUNING_SEED),
}
SMOKE_GROWTHS = (0, 1, 2, 5, 10, 35, 100)


class Store:
    """Measured things of the folder: read if they are there, else measured and written."""

    def __init__(self, folder: pathlib.Path, report: Any) -> None:
        self.folder, self.report = folder, report
        folder.mkdir(parents=True, exist_ok=True)

    def numbers(self, name: str, measure: Any) -> Any:
        """Return numbers as JSON values."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            atomic.write_text(path, json.dumps(measure()) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def curves(self, name: str, runs: lr.LongRuns, rate: float, count: int, growths: Any) -> lr.LongCurves:
        """Return the curves of a problem."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            runs.curves(count, rate, growths, lambda what: self.report(f"{name}: {what}")).save(path)
        return lr.LongCurves.load(path)


def problem(store: Store, kind: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what is judged of one problem."""
    smoke = kind == "smoke"
    name = f"{kind}-{seed}-{options.runs}"
    runs = lr.LongRuns(FAMILIES[kind][0], seed, points=100 if smoke else 200)
    rate = store.numbers(name, lambda: {"rate": runs.tuned_rate()})["rate"]
    curves = store.curves(name, runs, rate, options.runs, SMOKE_GROWTHS if smoke else lr.GROWTHS)

    def measure() -> dict[str, Any]:
        store.report(f"{name}: rules")
        followed = [law_rules.answers(curves, run) for run in range(options.judged)]
        given = {how: {rule: [a[how][rule] for a in followed] for rule in followed[0][how]} for how in followed[0]}
        others = range(options.judged, min(options.runs, options.judged + 4))
        for rule, choice in law_rules.beforehand(curves, others, options.draws).items():
            given["free"][rule] = [choice] * options.judged
        store.report(f"{name}: looks ahead")
        looks = Looks(runs, rate)
        for share in law_rules.FITTED[: None if options.looked else 0]:
            found = [looks.lowest(curves, run, share) for run in range(options.looked)]
            rule = law_rules.at(law_tables.LOOK_AHEAD, share)
            given["free"][rule] = [choice._replace(cost=0.0) for choice, _ in found]
            given["charged"][rule] = [law_tables.payable(choice, curves.budget) for choice, _ in found]
        facts = {"seed": seed, "rate": rate, "operator": runs.problem.operator, "sizes": runs.problem.sizes}
        recipe = {"problem": seed, "operator": runs.problem.operator, "recipe": law_head_start.AS_IT_IS}
        return facts | law_tables.judge(curves, given) | {"kept": recipe | law_head_start.kept_and_law(curves)}

    return store.numbers(f"judged-{name}-{options.judged}-{options.looked}-{options.draws}", measure)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", type=int, default=8, metavar="N", help="problems that rules were tuned on")
    parser.add_argument("--held-out", type=int, default=4, metavar="N", help="problems that they were not")
    parser.add_argument("--runs", type=int, default=64, help="initialisations of the truth")
    parser.add_argument("--judged", type=int, default=4, help="initialisations in which rules are followed")
    parser.add_argument("--looked", type=int, default=2, help="those with looks ahead")
    parser.add_argument("--draws", type=int, default=10, help="of the bootstraps of laws fitted beforehand")
    parser.add_argument("--folder", default="runs/growth_law_toys", help="of the curves")
    parser.add_argument("--smoke", action="store_true", help="one tiny problem, for the tests")
    parser.add_argument("--write", action="store_true", help=f"renew the tables in docs/{DOC.name}")
    parser.add_argument("--json", default="", help='file for the numbers; "-": only them, to standard output')
    options = parser.parse_args(arguments)
    counts = {"tuning": options.tuning, "held-out": options.held_out}
    if options.smoke:
        counts, options.runs, options.judged, options.looked, options.draws = {"smoke": 1}, 4, 1, 0, 2
    todo = [(kind, FAMILIES[kind][1] + i) for kind, count in counts.items() for i in range(count)]
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    judged: dict[str, list[Any]] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(todo) + 2)
        report = lambda what: progress.update(task, description=what)
        store = Store(pathlib.Path(options.folder), report)
        for kind, seed in todo:
            judged.setdefault(kind, []).append(problem(store, kind, seed, options))
            progress.advance(task)
        kept = store.numbers(
            f"head_start{options.smoke * '-smoke'}", lambda: law_head_start.measure(report, options.smoke)
        )
        progress.advance(task)
        flows = store.numbers(f"flows{options.smoke * '-smoke'}", lambda: flow_failure.measure(report, options.smoke))
    result = {
        "regret": {kind: law_tables.compute(problems) for kind, problems in judged.items()},
        "problems": judged, "head_start": kept, "flows": flows, "provenance": provenance(),
    }  # fmt: skip
    tables = "\n\n".join(law_tables.markdown(found, kind, kind != "tuning") for kind, found in result["regret"].items())
    parts = {
        "rules": tables,
        "head start": law_head_start.markdown([p["kept"] for found in judged.values() for p in found] + kept),
        "flows": flow_failure.markdown(flows),
    }
    if options.write:
        write_tables(parts)
    hand_over(result, "\n\n".join(parts.values()), options.json)
    return 0


def write_tables(parts: Mapping[str, str]) -> None:
    """Renew the tables between their marks."""
    text = DOC.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = (mark.format(name) for mark in MARKS)
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{part}\n{end}{rest.partition(end)[2]}"
    atomic.write_text(DOC, text)


if __name__ == "__main__":
    sys.exit(main())
