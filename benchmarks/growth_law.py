"""Laws of growth put to the test on the committed records: fitted to short runs of T5s, judged at 4,000 large steps.

    python -m benchmarks.growth_law                some minutes; prints Markdown
    python -m benchmarks.growth_law --write        renews the tables in docs/when_to_grow.md
    python -m benchmarks.growth_law --json FILE    the numbers too ("-": only them, to standard output)

Nothing is trained: the curves are those of ``paper_figures/experiments`` (``growth_step``, ``scratch_rates``,
``after_growth_early``, ``after_growth_late``, ``t5_medium``). Lengths are FLOPs in steps of the large network.
"""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import bea
from benchmarks.output import hand_over
from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.schedule import LawFacts, RunCurves, SavedLaw, fit_law, run_curves
from paper_figures.experiments.record import load_record

DOC = pathlib.Path(__file__).parent.parent / "docs" / "when_to_grow.md"
BEGIN, END = "<!-- begin: python -m benchmarks.growth_law --write -->", "<!-- end -->"
BUDGET = 4000.0
FITTED = (1000.0, 1500.0, 2000.0, 3000.0)  # longest runs of the fits
PLATEAU = 3.25  # a loss below the plateau on which these networks stand at first
WINDOWS = ((50.0, 250.0), (400.0, 600.0), (900.0, 1100.0), (1400.0, 1600.0), (1900.0, 2100.0))
LAST = 150.0  # steps over whose evaluations a final loss is averaged: one evaluation is 0.02 off
SCRATCH, SMALL, CHAIN = "scratch_0p02_width", "small", "s_2600"  # nodes; the chain is growth_step's own small network
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
)
# growth step -> arms grown there from a small network in one run
MEASURED: dict[float, tuple[tuple[str, str], ...]] = {
    595.0: tuple(("after_growth_early", name) for name in ("noise_0p3", "velocity_fuse", "keep_fuse", "relax_fuse")),
    1398.0: (("t5_medium", "self"), ("after_growth_late", "velocity_fuse"), ("after_growth_late", "noise_0")),
}


def curves_of(record: str, grown: Sequence[str] = (), *, small: str = "") -> RunCurves:
    """Return curves of a record's arms, with scratch (and ``SMALL``) from the record that has it."""
    reference = load_record("scratch_rates").seeds
    seeds = load_record(record).seeds
    having = {seed: nodes for seed, nodes in seeds.items() if all(name in nodes for name in grown)}
    return run_curves(
        {seed: {**reference[seed], **having[seed]} for seed in having}, scratch=SCRATCH, small=small, grown=grown
    )


def facts_of_record() -> LawFacts:
    """Return what the laws of the record ``growth_step`` hold for."""
    record = load_record("growth_step")
    settings = record.settings["defaults"]
    small, large = (
        record.settings["node"]["s_20"]["model"],
        load_record("scratch_rates").settings["node"][SCRATCH]["model"],
    )
    growth = {key: value for key, value in record.settings["node"]["f_late_1000"].items() if key != "sources"}
    plain = (settings[key] for key in ("optimizer", "schedule", "batch", "length"))
    return LawFacts(record.text, *plain, small, large, growth)


def kept_shares(draws: int) -> list[dict[str, Any]]:
    """Return which share of its head start each arm keeps, in windows of steps after the growth."""
    rows = []
    for record, names, what in KEPT:
        for name in names:
            curves = curves_of(record, (name,))
            runs = [curve for _, curve in curves.grown]
            scratch = [curve[1:] for curve in curves_of("scratch_rates").scratch]
            n1 = curves.grown[0][0]
            first = float(np.mean([run[0, 1] for run in runs]))
            age = float(bea.steps_to(bea.falling_mean(scratch), first))
            shares = [bea.kept_share(runs, scratch, since=a, until=b, draws=draws) for a, b in WINDOWS]
            rows.append(
                {"record": record, "arm": name, "what": what, "n1": n1, "seeds": len(runs), "age": age, "kept": shares}
            )
    return rows


def final_losses(curves: RunCurves, budget: float) -> dict[float, float]:
    """Return n1 -> mean loss over the last evaluations before the budget, of the runs that come to it."""
    found: dict[float, list[float]] = {}
    for n1, curve in curves.grown:
        if n1 < budget <= (n1 + curve[-1, 0]) / 0.98:
            found.setdefault(round(n1), []).append(_end(curve, budget - n1))
    return {n1: float(np.mean(losses)) for n1, losses in sorted(found.items())}


def _end(curve: np.ndarray, at: float) -> float:
    within = (curve[:, 0] >= at - LAST) & (curve[:, 0] <= at + 1)
    return float(curve[within, 1].mean())


def laws(draws: int) -> list[dict[str, Any]]:
    """Return what each law, fitted to runs of each length, says of the budget, against what was measured."""
    arms = tuple(name for name in load_record("growth_step").settings["node"] if re.fullmatch(r"late_\d+", name))
    chain, facts = curves_of("growth_step", arms, small=CHAIN), facts_of_record()
    truth, rows = final_losses(chain, BUDGET), []
    alone = RunCurves(chain.unit, chain.scratch, chain.small, ())
    for longest in (*FITTED, BUDGET):
        for below, kind in itertools.product((math.inf, PLATEAU), (*bea.GROWTH_LAWS, "curves alone")):
            row: dict[str, Any] = {"law": kind, "longest": longest, "past_plateau": below < math.inf}
            limits: dict[str, Any] = {"longest": longest, "below": below, "draws": draws}
            try:
                curves = alone if kind == "curves alone" else chain
                rows.append(row | judged(fit_law(kind.split()[0], curves, facts, **limits), facts, truth))
            except InputError as error:
                rows.append(row | {"refused": str(error)})
    return rows


def one_run(draws: int) -> dict[str, Any]:
    """Return what the law of curves says of the small network that was not delayed, and the losses of arms grown from it."""
    curves, facts, rows = curves_of("scratch_rates", small=SMALL), facts_of_record(), []
    for longest, below in itertools.product((*FITTED, BUDGET), (math.inf, PLATEAU)):
        row: dict[str, Any] = {"longest": longest, "past_plateau": below < math.inf}
        try:
            saved = fit_law("curves", curves, facts, longest=longest, below=below, draws=draws)
        except InputError as error:
            rows.append(row | {"refused": str(error)})
            continue
        said = saved.forecast(BUDGET * saved.unit, facts=facts)
        drift = saved.law.drift if math.isfinite(saved.law.drift) else None
        foretold = {n1: saved.law.predict(n1, BUDGET - n1).value for n1 in MEASURED}
        rows.append(row | {"drift": drift, "share": said.share, "holds": said.holds, "foretold": foretold})
    measured = {
        n1: [loss for record, name in arms for loss in final_losses(curves_of(record, (name,)), BUDGET).values()]
        for n1, arms in MEASURED.items()
    }
    return {"rows": rows, "measured": measured}


def judged(saved: SavedLaw, facts: LawFacts, truth: Mapping[float, float]) -> dict[str, Any]:
    """Return what a law says of the budget against the measured losses, n1 -> loss."""
    said, n1, losses = saved.forecast(BUDGET * saved.unit, facts=facts), np.array(list(truth)), list(truth.values())
    foretold = [saved.law.predict(float(one), BUDGET - float(one)) for one in n1]
    best = int(np.argmin([one.value for one in foretold]))
    inside = sum(one.low <= loss <= one.high for one, loss in zip(foretold, losses, strict=True))
    return {
        "points": saved.law.points, "drift": saved.law.drift if math.isfinite(saved.law.drift) else None,
        "errors": [math.log(one.value / loss) for one, loss in zip(foretold, losses, strict=True)],
        "inside": int(inside), "share": said.share, "holds": said.holds, "best": float(n1[best] / BUDGET),
        "regret": losses[best] / min(losses), "scratch": said.scratch, "never": said.never, "grow": said.grow_best,
        "parameters": saved.law.parameters(), "kept": kept_of(saved),
    }  # fmt: skip


def kept_of(saved: SavedLaw) -> bea.Interval | None:
    """Return the share k of the head start that a law of curves found to be kept; None for another law."""
    if "k" not in saved.law.names or not saved.law.has[2]:
        return None
    at = saved.law.names.index("k")
    low, high = np.quantile(saved.law.draws[:, at], [0.025, 0.975])
    return bea.Interval(float(saved.law.theta[at]), float(low), float(high))


def rule(draws: int) -> list[dict[str, Any]]:
    """Return where the head-start rule grows, from curves of each length of scratch and of either small network."""
    rows = []
    for what, record, node in (("one run", "scratch_rates", SMALL), ("growth_step's pieces", "growth_step", CHAIN)):
        curves = curves_of(record, small=node)
        for longest in (*FITTED, BUDGET):
            cut = lambda runs, end=longest: [run[(run[:, 0] > 0) & (run[:, 0] <= end + 1)] for run in runs]
            said = bea.head_start_step(cut(curves.small), cut(curves.scratch), BUDGET, draws=draws)
            numbers = {name: getattr(said, name) for name in ("step", "lead", "known", "rising")}
            rows.append({"small": what, "longest": longest, **numbers})
    return rows


def carried(budget: float) -> list[dict[str, Any]]:
    """Return the loss at a budget that the scratch curve and the loss at the growth foretell, against the measured one."""
    arms = tuple(name for name in load_record("growth_step").settings["node"] if re.fullmatch(r"late_\d+", name))
    curves = curves_of("growth_step", arms)
    scratch = bea.falling_mean([curve[1:] for curve in curves.scratch])
    rows = []
    for n1, measured in final_losses(curves, budget).items():
        runs = [curve for at, curve in curves.grown if round(at) == n1]
        age = float(bea.steps_to(scratch, np.mean([run[0, 1] for run in runs])))
        foretold = [float(np.interp(budget - LAST / 2 - n1 + k * age, *scratch.T, right=np.nan)) for k in (1.0, 0.9)]
        rows.append({"budget": budget, "n1": n1, "age": age, "foretold": foretold, "measured": measured})
    return rows


def tables(found: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    interval = lambda i, form=".2f": "–" if not np.isfinite(i[0]) else f"{i[0]:{form}} ({i[1]:{form}} to {i[2]:{form}})"
    lines = ["Share of the head start that is kept, with 95 % intervals over seeds (of one seed there is none):", ""]
    windows = " | ".join(f"{a:.0f} to {b:.0f} steps after" for a, b in WINDOWS)
    lines += [f"| record, arm | growth | grown at | scratch has its loss at | seeds | {windows} |", "|---" * 10 + "|"]
    for r in found["kept"]:
        kept = " | ".join(interval(i) if r["seeds"] > 1 else f"{i[0]:.2f}".replace("nan", "–") for i in r["kept"])
        lines.append(
            f"| {r['record']}, {r['arm']} | {r['what']} | {r['n1']:.0f} | {r['age']:.0f} | {r['seeds']} | {kept} |"
        )
    lines += ["", f"Laws fitted to runs of at most so many large steps, judged at {BUDGET:,.0f}:", ""]
    heads = ("law", "fitted to", "losses", "points", "drift a doubling", "error of the loss, mean (range)")
    heads += ("within the interval", "best step", "its loss over the best", "best share", "k", "may plan")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in found["laws"]:
        first = f"| {r['law']} | {r['longest']:,.0f} | {f'below {PLATEAU}' if r['past_plateau'] else 'all'} "
        if "refused" in r:
            lines.append(f"{first}| refused: {r['refused'].partition(': ')[2]} {'| ' * 8}|")
            continue
        e, drift = r["errors"], "not known" if r["drift"] is None else f"{r['drift']:.0%}"
        spread = f"{np.mean(e):+.1%} ({min(e):+.1%} to {max(e):+.1%}) | {r['inside']} of {len(e)}"
        plan, kept = "yes" if r["holds"] else "no", interval(r["kept"]) if r["kept"] else ""
        share = interval(r["share"], ".0%")
        lines.append(
            f"{first}| {r['points']} | {drift} | {spread} | {r['best']:.0%} | {r['regret']:.3f} | {share} | {kept} | {plan} |"
        )
    spans = {n1: f"{min(losses):.3f} to {max(losses):.3f}" for n1, losses in found["one_run"]["measured"].items()}
    heads = ("fitted to", "losses", "drift a doubling", "best share")
    heads += tuple(f"grown at {n1 / BUDGET:.0%} (measured {span})" for n1, span in spans.items())
    text = "The law of curves alone, of the small network in one run:"
    lines += ["", text, "", f"| {' | '.join((*heads, 'may plan'))} |", "|---" * (len(heads) + 1) + "|"]
    for r in found["one_run"]["rows"]:
        first = f"| {r['longest']:,.0f} | {f'below {PLATEAU}' if r['past_plateau'] else 'all'} "
        if "refused" in r:
            lines.append(f"{first}| refused: {r['refused'].partition(': ')[2]} | | | | |")
            continue
        drift, plan = "not known" if r["drift"] is None else f"{r['drift']:.0%}", "yes" if r["holds"] else "no"
        losses = " | ".join(f"{loss:.3f}" for loss in r["foretold"].values())
        lines.append(f"{first}| {drift} | {interval(r['share'], '.0%')} | {losses} | {plan} |")
    text = f"The head-start rule within {BUDGET:,.0f} steps, from curves of scratch and of the small network alone:"
    lines += ["", text, "", "| small network | curves to | grows at | lead | known up to | |", "|---" * 6 + "|"]
    for r in found["rule"]:
        step, lead, end = (
            interval(r["step"], ",.0f"),
            interval(r["lead"], ",.0f"),
            "still rising" if r["rising"] else "",
        )
        lines.append(f"| {r['small']} | {r['longest']:,.0f} | {step} | {lead} | {r['known']:,.0f} | {end} |")
    text = "Losses that the scratch curve and the loss at the growth foretell; k is the share of the head start that is kept:"
    lines += [
        "",
        text,
        "",
        "| budget | grown at | scratch has its loss at | k = 1 | k = 0.9 | measured |",
        "|---" * 6 + "|",
    ]
    for r in found["carried"]:
        one, less = (f"{v:.3f}".replace("nan", "–") for v in r["foretold"])
        lines.append(f"| {r['budget']:,.0f} | {r['n1']:.0f} | {r['age']:.0f} | {one} | {less} | {r['measured']:.3f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200, help="of the bootstraps")
    parser.add_argument("--write", action="store_true", help=f"renew the tables in docs/{DOC.name}")
    parser.add_argument("--json", default="", help='file for the numbers; "-": only them, to standard output')
    options = parser.parse_args(arguments)
    found = {
        "kept": kept_shares(options.draws),
        "laws": laws(options.draws),
        "one_run": one_run(options.draws),
        "rule": rule(options.draws),
        "carried": [row for budget in (2000.0, 3000.0) for row in carried(budget)],
    }
    text = tables(found)
    if options.write:
        before, _, rest = DOC.read_text(encoding="utf-8").partition(BEGIN)
        atomic.write_text(DOC, f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    hand_over(found, text, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
