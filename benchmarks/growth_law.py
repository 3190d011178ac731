"""Laws of growth put to the test on the committed records: fitted to short runs of T5s, judged at the whole budget.

    python -m benchmarks.growth_law                some minutes; prints Markdown
    python -m benchmarks.growth_law --write        renews the tables in docs/when_to_grow.md
    python -m benchmarks.growth_law --json FILE    the numbers too ("-": only them, to standard output)

Nothing is trained: the curves are those of ``paper_figures/experiments`` (``growth_step``, ``scratch_float32``,
``after_growth_early``, ``after_growth_late``, ``t5_medium``; ``growth_long`` and ``growth_half`` where they are there). Lengths
are FLOPs in steps of the large network.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

import bea
from benchmarks.growth_law_tables import tables
from benchmarks.output import hand_over
from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.schedule import RunCurves, fit_law, run_curves
from paper_figures.experiments import laws
from paper_figures.experiments.laws import SCRATCH, SMALL, Judged, judged
from paper_figures.experiments.record import load_record

DOC = pathlib.Path(__file__).parent.parent / "docs" / "when_to_grow.md"
BEGIN, END = "<!-- begin {}: python -m benchmarks.growth_law --write -->", "<!-- end -->"
# record -> longest runs of the fits, and of those whose regret is measured; of others these shares of the budget
SHARES = (0.25, 0.5, 0.75, 1.0)
FITTED: dict[str, tuple[float, ...]] = {
    "growth_step": (1000.0, 1500.0, 2000.0, 3000.0, 4000.0),
    "growth_long": (1000.0, 2500.0, 4000.0),
}
REGRET: dict[str, tuple[float, ...]] = {"growth_step": (1000.0, 2000.0, 3000.0), "growth_long": (1000.0, 2500.0)}
WINDOWS = (
    (50.0, 250.0),
    (400.0, 600.0),
    (900.0, 1100.0),
    (1400.0, 1600.0),
    (1900.0, 2100.0),
    (3800.0, 4200.0),
    (5800.0, 6200.0),
)
# (record, arms, what they are)
KEPT: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "growth_step",
        ("late_80", "late_200", "late_400", "late_600", "late_1000", "late_1400", "late_2000"),
        "noise 0.3",
    ),
    ("growth_step", ("early_200", "early_600", "early_1000"), "noise 0.5, rates kept, new state fresh"),
    (
        "after_growth_early",
        ("noise_0", "noise_0p1", "noise_0p3", "velocity_fuse", "noise_1"),
        "noise of the name, else 0.5",
    ),
    ("after_growth_early", ("keep_fuse", "keep_fresh_new", "relax_fuse"), "noise 0.5, rates of the name"),
    ("t5_medium", ("self",), "noise 0.3"),
    ("t5_medium", ("two_zero",), "two sources"),
    ("after_growth_late", ("noise_0", "velocity_fuse", "keep_fuse"), "noise of the name, else 0.5"),
    ("growth_long", ("late_1000", "late_2000", "late_3500", "late_5000"), "noise 0.3"),
)
OWN_SCRATCH = ("growth_long",)  # records that are longer than scratch_float32
# growth step -> arms grown there from a small network in one run
MEASURED: dict[float, tuple[tuple[str, str], ...]] = {
    595.0: tuple(("after_growth_early", name) for name in ("noise_0p3", "velocity_fuse", "keep_fuse", "relax_fuse")),
    1398.0: (("t5_medium", "self"), ("after_growth_late", "velocity_fuse"), ("after_growth_late", "noise_0")),
}


def curves_of(record: str, grown: Sequence[str] = (), *, small: str = "") -> RunCurves:
    """Return curves of a record's arms, with scratch (and ``SMALL``) from the record that has it."""
    reference = load_record("scratch_float32").seeds
    seeds = load_record(record).seeds
    having = {seed: nodes for seed, nodes in seeds.items() if all(name in nodes for name in grown)}
    found = {seed: {**reference[seed], **having[seed]} for seed in having}
    return run_curves(found, scratch=[SCRATCH], small=[small] if small else [], grown=grown)


def has(record: str, name: str) -> bool:
    """Return whether a record has a node, in some seed."""
    return any(name in nodes for nodes in load_record(record).seeds.values())


def kept_shares(draws: int) -> list[dict[str, Any]]:
    """Return which share of its head start each arm keeps, in windows of steps after the growth."""
    rows = []
    for record, names, what in KEPT:
        for name in names:
            if not has(record, name):
                continue
            curves = curves_of(record, (name,))
            runs = [curve for _, curve in curves.grown]
            reference = record if record in OWN_SCRATCH else "scratch_float32"
            scratch = [curve[1:] for curve in curves_of(reference).scratch]
            n1 = curves.grown[0][0]
            first = float(np.mean([run[0, 1] for run in runs]))
            age = float(bea.steps_to(bea.falling_mean(scratch), first))
            shares = [bea.kept_share(runs, scratch, since=a, until=b, draws=draws) for a, b in WINDOWS]
            row = {"record": record, "arm": name, "what": what, "n1": n1, "seeds": len(runs), "age": age}
            rows.append(row | {"kept": shares, "windows": WINDOWS})
    return rows


def fitted(found: Judged) -> tuple[float, ...]:
    """Return the lengths of the runs to which laws are fitted."""
    return FITTED.get(found.name) or tuple(share * found.budget for share in SHARES)


def laws_of(found: Judged, draws: int) -> list[dict[str, Any]]:
    """Return what each law, fitted to runs of each length, says of a record's budget, against what was measured."""
    rows = []
    for longest in fitted(found):
        # the plateaus are left in once, to see what they do
        for kind, plateau in [*((law, False) for law in laws.LAWS), ("curves alone", True)]:
            row: dict[str, Any] = {"law": kind, "longest": longest, "plateau": plateau}
            try:
                few = min(draws, 8) if kind == "two_stage" else draws  # a fit of twelve parameters takes long
                rows.append(row | laws.foretold(found, kind, longest, few, plateau))
            except InputError as error:
                rows.append(row | {"refused": str(error)})
    return rows


def one_run(draws: int) -> dict[str, Any]:
    """Return what the law of curves says of the small network in one run, and the losses of arms grown from it."""
    found, facts, rows = curves_of("scratch_float32", small=SMALL), _growth_step().facts, []
    budget = _growth_step().budget
    for longest in FITTED["growth_step"]:
        row: dict[str, Any] = {"longest": longest}
        try:
            saved = fit_law("curves", found, facts, longest=longest, draws=draws)
        except InputError as error:
            rows.append(row | {"refused": str(error)})
            continue
        said = saved.law.forecast(budget)
        drift = saved.law.drift if math.isfinite(saved.law.drift) else None
        foretold = {n1: saved.law.predict(n1, budget - n1).value for n1 in MEASURED}
        rows.append(row | {"drift": drift, "share": said.share, "holds": said.holds, "foretold": foretold})
    ends = lambda record, name: [laws.end_of(run, budget - n1) for n1, run in curves_of(record, (name,)).grown]
    measured = {n1: [loss for arm in arms if has(*arm) for loss in ends(*arm)] for n1, arms in MEASURED.items()}
    return {"budget": budget, "rows": rows, "measured": measured}


def _growth_step() -> Judged:
    found = judged("growth_step")
    assert found is not None  # the record is committed
    return found


def rule(found: Judged, draws: int) -> list[dict[str, Any]]:
    """Return where the head-start rule grows, from curves of each length of scratch and of the small network."""
    rows = []
    one = curves_of("scratch_float32", small=SMALL)
    for what, small in (("one run", one.small), (f"that of {found.name}", found.curves.small)):
        for longest in FITTED[found.name]:
            cut = lambda runs, end=longest: [run[(run[:, 0] > 0) & (run[:, 0] <= end + 1)] for run in runs]
            said = bea.head_start_step(cut(small), cut(found.curves.scratch), found.budget, draws=draws)
            numbers = {name: getattr(said, name) for name in ("step", "lead", "known", "rising")}
            rows.append({"small": what, "longest": longest, **numbers})
    return rows


def carried(found: Judged, budget: float) -> list[dict[str, Any]]:
    """Return the loss at a budget that the scratch curve and the loss at the growth foretell, against the measured one."""
    scratch = bea.falling_mean([curve[1:] for curve in found.curves.scratch])
    rows = []
    for n1, measured in found.losses(budget).items():
        runs = [curve for at, curve in found.curves.grown if round(at) == n1]
        if runs:
            age = float(bea.steps_to(scratch, np.mean([run[0, 1] for run in runs])))
            at = [budget - laws.LAST / 2 - n1 + k * age for k in (1.0, 0.9)]
            foretold = [float(np.interp(one, *scratch.T, right=np.nan)) for one in at]
            rows.append(
                {"budget": budget, "n1": n1, "age": age, "foretold": foretold, "measured": float(measured.mean())}
            )
    return rows


def regret(found: Judged) -> dict[str, Any]:
    """Return the regret of every rule on a record, fitted to runs that are shorter than the budget."""
    lengths = [longest for longest in REGRET.get(found.name, fitted(found)) if longest < 0.99 * found.budget]
    return {"budget": found.budget, "seeds": found.seeds, "rows": laws.regrets(found, lengths)}


def transfer(records: Sequence[Judged]) -> list[dict[str, Any]]:
    """Return the best measured share of each record, and what growing at those of the others would have cost it."""
    best = {found.name: found.best()[0] / found.budget for found in records}
    rows = []
    for found in records:
        losses = {n1 / found.budget: float(loss.mean()) for n1, loss in found.losses(found.budget).items()}
        at = lambda share, one=found: one.loss_at(share * one.budget, one.budget)
        others = {name: at(share) / min(losses.values()) for name, share in best.items()}
        rows.append(
            {"record": found.name, "widths": found.widths, "budget": found.budget, "losses": losses, "regret": others}
        )
    return rows


def measured(draws: int) -> dict[str, Any]:
    """Return all numbers."""
    known = [found for name in laws.JUDGED if (found := judged(name)) is not None]
    records = [found for found in known if found.losses(found.budget)]
    step = _growth_step()
    return {
        "kept": kept_shares(draws),
        "laws": {one.name: {"budget": one.budget, "rows": laws_of(one, draws)} for one in records},
        "regret": {one.name: regret(one) for one in records},
        "one_run": one_run(draws),
        "rule": rule(step, draws),
        "carried": [row for part in (0.5, 0.75) for row in carried(step, part * step.budget)],
        "transfer": transfer(records),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200, help="of the bootstraps")
    parser.add_argument("--write", action="store_true", help=f"renew the tables in docs/{DOC.name}")
    parser.add_argument("--json", default="", help='file for the numbers; "-": only them, to standard output')
    parser.add_argument("--read", default="", metavar="FILE", help="make the tables of numbers that --json has written")
    options = parser.parse_args(arguments)
    found = (
        json.loads(pathlib.Path(options.read).read_text(encoding="utf-8")) if options.read else measured(options.draws)
    )
    blocks = tables(found)
    if options.write:
        text = DOC.read_text(encoding="utf-8")
        for name, block in blocks.items():
            begin = BEGIN.format(name)
            before, mark, rest = text.partition(begin)
            text = f"{before}{begin}\n{block}\n{END}{rest.partition(END)[2]}" if mark else text
        atomic.write_text(DOC, text)
    hand_over(found, "\n\n".join(blocks.values()), options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
