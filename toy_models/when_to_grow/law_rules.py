"""Rules for when to grow in long runs, from short curves; each with what it costs, and the regret of following it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import bea
from toy_models.when_to_grow.long_runs import LongCurves

FITTED = (0.1, 0.25)  # shares of the budget to which rules see runs: judged at 10 and at 4 times that
FIXED = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.65)
GROWN = (0.1, 0.2, 0.5)  # shares of the short runs at which those of the laws are grown, in the least
TRIALS = "trials at 30 %"
NEVER = "never"
WINDOW = 5  # evaluations over which a final loss is averaged, as a geometric mean
TRIAL = (0.02, 0.04)  # shares of the budget after which the losses of a trial are measured
# rule -> (law, whether it is fitted to grown runs)
LAWS: dict[str, tuple[str, bool]] = {
    "head-start law": ("head_start", True),
    "law of curves": ("curves", True),
    "curves alone": ("curves", False),
    "two-stage law": ("two_stage", True),
}
HEAD_START = "head-start rule from curves"
SKIP = 0.1  # share of the short runs whose points laws are not fitted to


class Choice(NamedTuple):
    """A rule's answer.

    Attributes:
      step: growth step in large steps' FLOPs; the budget is never.
      cost: large steps that the rule spent on runs that are not trained on, of which nothing is left for training.
      holds: whether the law says of itself that it may plan; None of a rule that does not say.
      loss: forecast loss at the end; NaN of a rule that forecasts none.
    """

    step: float
    cost: float = 0.0
    holds: bool | None = None
    loss: float = math.nan


def final_log(curves: LongCurves, runs: Sequence[int], step: float, budget: float) -> np.ndarray:
    """Return the log losses at the end of a budget of growing at a step: between two growth steps, interpolated."""
    rows, every = list(runs), curves.times[1]
    if budget < every:
        return np.full(len(rows), np.nan)

    def end(losses: np.ndarray, length: float) -> np.ndarray:
        at = round(length / every)
        return np.log(losses[rows, max(0, at + 1 - WINDOW) : at + 1]).mean(axis=1)

    def grown(n1: float) -> np.ndarray:
        return end(curves.small, budget) if n1 >= budget else end(curves.grown[n1], budget - n1)

    steps = [n1 for n1 in sorted(curves.grown) if n1 < budget]
    if step >= budget:
        return end(curves.small, budget)
    above = next((n1 for n1 in steps if n1 >= step), budget)
    below = max(n1 for n1 in steps if n1 <= step)
    if above == below:
        return grown(below)
    part = (step - below) / (above - below)
    return (1 - part) * grown(below) + part * grown(above)


def seen(losses: np.ndarray, curves: LongCurves, runs: Sequence[int], length: float) -> list[np.ndarray]:
    """Return the (length, loss) of some runs up to a length, the start left out, of which no logarithm is known."""
    end = round(length / curves.times[1]) + 1
    return [np.stack([curves.times, losses[run]], axis=1)[1:end] for run in runs]


def points(curves: LongCurves, runs: Sequence[int], length: float, grown: Sequence[float]) -> tuple[np.ndarray, ...]:
    """Return the n1, n2, loss and run that a law is fitted to: of runs to a length, the grown ones of these growth steps.

    The first ``SKIP`` of the length is left out: the fall from the random start is no power law.
    """
    parts = [(0.0, True, curves.scratch, length), (0.0, False, curves.small, length)]
    parts += [(n1, True, curves.grown[n1], length - n1) for n1 in grown]
    rows, number = [], 0
    for n1, large, losses, rest in parts:
        for whole in seen(losses, curves, runs, rest):
            curve = whole[n1 + whole[:, 0] >= SKIP * length]
            n2 = curve[:, 0] if large else np.zeros(len(curve))
            rows.append(np.stack([n1 + curve[:, 0] - n2, n2, curve[:, 1], np.full(len(curve), number)], axis=1))
            number += 1
    n1, n2, loss, run = np.concatenate(rows).T
    return n1, n2, loss, run.astype(int)


def growths_of(curves: LongCurves, length: float) -> list[float]:
    """Return the growth steps that the short runs of a law are grown at: the nearest to ``GROWN``, three of them."""
    known = [n1 for n1 in curves.grown if 0 < n1 < length]
    return sorted({min(known, key=lambda n1: abs(n1 - share * length)) for share in GROWN})


def trials(curves: LongCurves, run: int, *, charged: bool) -> Choice:
    """Grow by ``bea.online_growth_step``: trials of 4 % of the budget from 30 % on, within 5 %."""
    last, budget = len(curves.times) - 1, curves.budget
    state = bea.start_online(last, run_gradients=budget, trial_gradients=TRIAL[-1] * budget)
    cost = lambda: state.trials_lost * TRIAL[-1] * budget * charged
    while (decision_at := state.next_decision) is not None:
        step, rates = decision_at / last * budget, None
        if state.method == "trials":
            ends = [step + share * budget for share in TRIAL]
            small = np.log(np.interp(ends, curves.times, curves.small[run]))
            large = [float(_after(curves, run, step, end - step)) for end in ends]
            rates = ([float(small[0] - small[1])], [large[0] - large[1]])
        state, decision = bea.online_growth_step(state, decision_at, rates=rates)
        if decision.step is not None:
            return Choice(step, cost())
    return Choice(budget, cost())


def _after(curves: LongCurves, run: int, step: float, length: float) -> float:
    """Return the log loss so long after growing at a step, between two growth steps interpolated."""
    steps = np.array(sorted(curves.grown))
    logs = [np.log(np.interp(length, curves.times, curves.grown[n1][run])) for n1 in steps]
    return float(np.interp(step, steps, logs))


def spent(length: float, grown: Sequence[float], step: float) -> float:
    """Return what short runs cost: scratch, the grown ones, and the small networks' steps beyond the growth step."""
    return length + sum(length - n1 for n1 in grown) + max(0.0, length - step)


def by_law(
    kind: str, with_grown: bool, share: float, curves: LongCurves, runs: Sequence[int], draws: int = 0
) -> dict[str, Choice | str]:
    """Return where a law fitted to short curves says to grow, within what the fit leaves of the budget and within all of it.

    Returns:
      ``"charged"`` and ``"free"`` -> the choice, or the error of the fit.
    """
    length = share * curves.budget
    grown = growths_of(curves, length) if with_grown else []
    try:
        law = bea.fit_growth_law(kind, *points(curves, runs, length, grown), draws=draws)
    except ValueError as error:
        return dict.fromkeys(("charged", "free"), str(error))
    found: dict[str, Choice | str] = {}
    for how, paid in (("charged", spent(length, grown, length)), ("free", 0.0)):
        budget = curves.budget - paid
        if budget <= length:  # nothing is left to plan
            found[how] = Choice(length, paid)
            continue
        said = law.forecast(budget)
        step = said.share.value * budget
        found[how] = Choice(step, spent(length, grown, step) if paid else 0.0, said.holds, said.grow_best.value)
    return found


def by_head_start(share: float, curves: LongCurves, runs: Sequence[int]) -> dict[str, Choice | str]:
    """Grow where ``bea.head_start_step`` finds the largest lead on short curves, or at their end if it still rises there."""
    length = share * curves.budget
    small, scratch = (seen(losses, curves, runs, length) for losses in (curves.small, curves.scratch))
    try:
        said = bea.head_start_step(small, scratch, curves.budget, draws=0)
    except ValueError as error:
        return dict.fromkeys(("charged", "free"), str(error))
    step = length if said.rising else said.step.value
    return {"charged": Choice(step, spent(length, [], step)), "free": Choice(step)}


def answers(curves: LongCurves, run: int) -> dict[str, dict[str, Choice | str]]:
    """Return rule -> the choice for a run: ``"charged"``, within the budget that the rule leaves, and ``"free"``."""
    found: dict[str, dict[str, Choice | str]] = {}
    for how in ("charged", "free"):
        found[how] = {f"fixed at {share:.0%}": Choice(share * curves.budget) for share in FIXED}
        found[how] |= {NEVER: Choice(curves.budget), TRIALS: trials(curves, run, charged=how == "charged")}
    for share in FITTED:
        rules = {name: by_law(*law, share, curves, [run]) for name, law in LAWS.items()}
        rules[HEAD_START] = by_head_start(share, curves, [run])
        for name, choices in rules.items():
            for how, choice in choices.items():
                found[how][at(name, share)] = choice
    return found


def beforehand(curves: LongCurves, others: Sequence[int], draws: int) -> dict[str, Choice | str]:
    """Return rule -> the one choice for all runs of a law fitted to others, whose cost is not charged."""
    return {
        at(f"{name}, fitted beforehand", share): by_law(*law, share, curves, others, draws)["free"]
        for share in FITTED
        for name, law in LAWS.items()
    }


def at(name: str, share: float) -> str:
    """Return a rule's name with what it was fitted to."""
    return f"{name} ({1 / share:.0f} times)"
