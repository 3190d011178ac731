"""Whether a toy's head start is kept, and what noise and rates do to it, in runs of 20,000 steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import bea
from toy_models.when_to_grow.law_rules import final_log, points
from toy_models.when_to_grow.long_runs import FAMILY, SMOKE_FAMILY, TUNING_SEED, LongCurves, LongRuns, Recipe

PROBLEMS = (1,)  # of the tuning family; those of odd numbers are self-fusions, which have noise
GROWTHS = (2, 10, 35)  # in percent of the budget
RUNS, FITTED_RUNS, DRAWS = 8, 4, 20
AS_IT_IS = "the problem's noise, velocity factors"
WINDOWS = ((0.01, 0.03), (0.09, 0.11), (0.24, 0.26), (0.49, 0.51))  # shares of the budget after the growth
RECIPES: Mapping[str, Recipe] = {
    AS_IT_IS: Recipe(),
    "the problem's noise, rates kept": Recipe(keep_rates=True),
    "noise 0": Recipe(noise=0.0),
    "noise 0.3": Recipe(noise=0.3),
    "noise 1": Recipe(noise=1.0),
    "noise 2": Recipe(noise=2.0),
}


def measure(report: Callable[[str], None], smoke: bool = False) -> list[dict[str, Any]]:
    """Train each problem with each recipe but its own, and return what is kept.

    Scratch has the rates that the grown network has, so that with kept rates it is another one.
    """
    rows = []
    family, growths, count = (SMOKE_FAMILY, GROWTHS, 3) if smoke else (FAMILY, GROWTHS, RUNS)
    for index in PROBLEMS[: 1 if smoke else None]:
        rate = None
        for name, recipe in list(RECIPES.items())[1 : 2 if smoke else None]:
            report(f"head start: problem {index}, {name}")
            runs = LongRuns(family, TUNING_SEED + index, points=100 if smoke else 200, recipe=recipe)
            rate = runs.tuned_rate() if rate is None else rate
            curves = runs.curves(count, rate, growths)
            facts = {"problem": TUNING_SEED + index, "operator": runs.problem.operator, "recipe": name}
            rows.append({**facts, "noise": runs.problem.noise, **kept_and_law(curves)})
    return rows


def kept_and_law(curves: LongCurves) -> dict[str, Any]:
    """Return the kept shares at each growth step, the parameters of the laws, and the final losses over scratch's."""
    ends = np.stack([final_log(curves, range(len(curves.small)), n1, curves.budget) for n1 in curves.grown])
    runs = np.flatnonzero(np.isfinite(ends).all(axis=0)).tolist()
    if len(runs) < FITTED_RUNS and len(runs) < len(curves.small):
        why = f"{len(curves.small) - len(runs)} of {len(curves.small)} runs diverged"
        return {"kept": {}, "laws": {"head_start": why, "curves": why}, "budget": curves.budget}
    of = lambda losses: [np.stack([curves.times, losses[run]], axis=1) for run in runs]
    scratch = [curve[1:] for curve in of(curves.scratch)]
    alone = LongCurves(curves.times, curves.scratch, curves.scratch, {}, {})
    reference = final_log(alone, runs, math.inf, curves.budget).mean()
    kept: dict[str, Any] = {}
    for n1, losses in curves.grown.items():
        if round(100 * n1 / curves.budget) not in GROWTHS:
            continue
        grown = [curve[np.isfinite(curve[:, 1])] for curve in of(losses)]
        first = float(np.mean([curve[0, 1] for curve in grown]))
        age = float(bea.steps_to(bea.falling_mean(scratch), first))
        shares = [
            list(bea.kept_share(grown, scratch, since=a * curves.budget, until=b * curves.budget, draws=DRAWS))
            for a, b in WINDOWS
        ]
        end = float(np.exp(final_log(curves, runs, n1, curves.budget).mean() - reference))
        kept[f"{n1 / curves.budget:.2g}"] = {"age": age / curves.budget, "kept": shares, "final": end}
    laws: dict[str, Any] = {}
    steps = [n1 for n1 in sorted(curves.grown) if 0 < n1 / curves.budget <= 0.5]
    for kind in ("head_start", "curves"):
        try:
            law = bea.fit_growth_law(kind, *points(curves, runs[:FITTED_RUNS], curves.budget, steps), draws=0)
            laws[kind] = law.parameters() | {"scatter": law.scatter}
        except ValueError as error:
            laws[kind] = str(error)
    return {"kept": kept, "laws": laws, "budget": curves.budget}


def _interval(values: Sequence[float], form: str = ".2f") -> str:
    value, low, high = values
    return "–" if not math.isfinite(value) else f"{value:{form}} ({low:{form}} to {high:{form}})"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables as Markdown."""
    windows = " | ".join(f"{(a + b) / 2:.0%} after" for a, b in WINDOWS)
    lines = [
        "Share of the head start that is kept so much of the budget after the growth, with 95 % intervals over runs:",
        "",
    ]
    lines += [f"| problem | recipe | grown at | scratch has its loss at | {windows} | final loss over scratch's |"]
    lines += ["|---" * (5 + len(WINDOWS)) + "|"]
    for row in rows:
        for share, found in row["kept"].items():
            kept = " | ".join(_interval(values) for values in found["kept"])
            lines.append(
                f"| {row['problem']}, {row['operator']} | {row['recipe']} | {float(share):.0%} | {found['age']:.1%} | {kept} | "
                f"{found['final']:.3f} |"
            )
    lines += [
        "",
        f"Laws fitted to {FITTED_RUNS} whole runs of each growth step; h is s n₁^p over n₁ at 10 % of the budget:",
        "",
    ]
    heads = ("problem", "recipe", "s", "p", "h", "scatter", "k of the law of curves", "its scatter")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        law, curves = row["laws"]["head_start"], row["laws"]["curves"]
        first = f"| {row['problem']}, {row['operator']} | {row['recipe']} | "
        if isinstance(law, str) or isinstance(curves, str):
            lines.append(f"{first}refused: {law if isinstance(law, str) else curves} {'| ' * 5}|")
            continue
        lead = law["s"] * (0.1 * row["budget"]) ** (law["p"] - 1)
        lines.append(
            f"{first}{law['s']:.3g} | {law['p']:.2f} | {lead:.2f} | {law['scatter']:.0%} | {curves['k']:.2f} | "
            f"{curves['scatter']:.0%} |"
        )
    return "\n".join(lines)
