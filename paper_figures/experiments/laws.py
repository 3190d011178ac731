"""Laws of growth against the records: curves of their arms, what short curves foretell, what growing came to.

Lengths are FLOPs in steps of the large network. A record is judged at its budget, on the recipe of which it has the most arms;
where it has no scratch or no small network of its own, those of ``scratch_float32`` are taken if they are the same networks.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import bea
from fusion_core.errors import InputError
from fusion_core.runs import LawCase, law_cases, resolve
from fusion_core.runs.plan_file import read_plan
from fusion_core.schedule import LawFacts, RunCurves, fit_law, run_curves
from paper_figures.experiments.record import load_record, path_of
from paper_figures.experiments.statistics import estimate

REFERENCE, SCRATCH, SMALL = "scratch_float32", "scratch_0p02_width", "small"
JUDGED = ("growth_step", "growth_half", "growth_long")  # records; those that are not there are left out
LAST = 150.0  # steps over whose evaluations a final loss is averaged: one evaluation is 0.02 off
FIXED = (0.0, 0.02, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.65, 1.0)
LAWS = (*bea.GROWTH_LAWS, "curves alone")
RULE = "head-start rule"
TRIALS = 0.3  # of the budget: where the online rule has its first trial, for rules that do not plan
ENOUGH = 5  # grown arms that a seed needs to be among the judges, if any seed has so many
SURE = "curves alone where they may plan, else 30 %"
FEW = ("head_start", "curves", "curves alone")  # of the laws: two_stage takes minutes a fit
SEEN = (0.1, 0.2, 0.5)  # of the short runs: where those of a law that takes grown ones are grown


@dataclasses.dataclass(frozen=True)
class Judged:
    """A record with what laws of its short runs are judged by.

    Attributes:
      name: of the record.
      facts: what its laws hold for.
      curves: of all seeds; of each grown arm, seed after seed.
      seeds: number of those with the most arms of the recipe; the others are left out.
      never: (length, loss) of the small network with the whole budget, of each seed; may be empty.
      budget: in large steps.
      widths: of the small and the large network.
    """

    name: str
    facts: LawFacts
    curves: RunCurves
    seeds: int
    never: tuple[np.ndarray, ...]
    budget: float
    widths: tuple[int, int]

    def of_seed(self, seed: int) -> RunCurves:
        """Return the curves of one seed."""
        one = lambda runs: tuple(runs[seed : seed + 1])
        curves = self.curves
        return RunCurves(curves.unit, one(curves.scratch), one(curves.small), curves.grown[seed :: self.seeds])

    def losses(self, budget: float) -> dict[float, np.ndarray]:
        """Return n1 -> losses of each seed at a budget; n1 = 0 is scratch, the budget the small network alone."""
        ends: dict[float, list[float]] = {0.0: [end_of(curve, budget) for curve in self.curves.scratch]}
        for n1, curve in self.curves.grown:
            if n1 < budget <= (n1 + curve[-1, 0]) / 0.98:
                ends.setdefault(round(n1), []).append(end_of(curve, budget - n1))
        ends[budget] = [end_of(curve, budget) for curve in self.never]
        known = {n1: np.array(losses) for n1, losses in sorted(ends.items())}
        return {n1: losses for n1, losses in known.items() if len(losses) == self.seeds and np.isfinite(losses).all()}

    def losses_at(self, n1: float, budget: float) -> np.ndarray:
        """Return each seed's loss of growing at a step, interpolated between those that were measured."""
        known = self.losses(budget)
        if not known:
            return np.full(self.seeds, math.nan)
        return np.array([np.interp(n1, list(known), losses) for losses in np.array(list(known.values())).T])

    def loss_at(self, n1: float, budget: float) -> float:
        """Return the mean loss of growing at a step over seeds, see ``losses_at``."""
        return float(self.losses_at(n1, budget).mean())

    def best(self) -> tuple[float, float]:
        """Return the growth step with the lowest mean loss at the budget, and that loss."""
        known = {n1: float(losses.mean()) for n1, losses in self.losses(self.budget).items()}
        return min(known.items(), key=lambda pair: pair[1])


def end_of(curve: np.ndarray, at: float) -> float:
    """Return the mean loss of the last evaluations up to a length; NaN if the curve does not come to it."""
    within = (curve[:, 0] >= at - LAST) & (curve[:, 0] <= at + 1)
    return float(curve[within, 1].mean()) if within.any() and curve[-1, 0] >= 0.98 * at - 1 else math.nan


def judged(name: str, recipe: str = "") -> Judged | None:
    """Return a record to judge laws by, with the arms that all its seeds have; None if it is not there.

    Args:
      name: of the record.
      recipe: beginning of the names of its arms; if empty, the recipe with the most arms.
    """
    if not path_of(name, "json").exists():
        return None
    record, reference = load_record(name), load_record(REFERENCE)
    plan, known = read_plan(path_of(name, "toml")), read_plan(path_of(REFERENCE, "toml"))
    cases = [case for case in law_cases(plan, resolve(plan)) if all(arm.startswith(recipe) for arm in case.grown)]
    case = max(cases, key=lambda one: len(one.grown))
    arms = {seed: sum(arm in nodes for arm in case.grown) for seed, nodes in record.seeds.items()}
    enough = min(ENOUGH, max(arms.values()))
    having = {seed: nodes for seed, nodes in record.seeds.items() if arms[seed] >= enough}
    there = lambda names: tuple(node for node in names if all(node in nodes for nodes in having.values()))
    case = dataclasses.replace(case, grown=there(case.grown), small=there(case.small), scratch=there(case.scratch))
    model = lambda name: json.loads(json.dumps(dataclasses.asdict(getattr(known.node(name), "model"))))  # noqa: B009
    alike = (model(SCRATCH), model(SMALL)) == (case.facts.large, case.facts.small)
    same = alike and having.keys() <= reference.seeds.keys()
    seeds = {seed: ({**reference.seeds[seed]} if same else {}) | nodes for seed, nodes in having.items()}
    scratch = case.scratch or ((SCRATCH,) if same else ())
    curves = run_curves(seeds, scratch=scratch[:1], small=case.small[:1], grown=case.grown)
    whole = (
        run_curves(seeds, scratch=scratch[:1], small=(SMALL,)).small
        if same and not _long(curves, case)
        else curves.small
    )
    budget = (case.budget or 0.0) / curves.unit
    widths = (case.facts.small["d_model"], case.facts.large["d_model"])
    return Judged(name, dataclasses.replace(case.facts, text=record.text), curves, len(seeds), whole, budget, widths)


def _long(curves: RunCurves, case: LawCase) -> bool:
    """Return whether the small network was trained for the whole budget."""
    return all(curve[-1, 0] >= 0.98 * (case.budget or 0.0) / curves.unit for curve in curves.small)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a rule does with short runs.

    Attributes:
      n1: where it grows; at 30 % of what is left, if it refuses to say.
      cost: large steps that are spent on runs that are not trained on.
      holds: whether it says that it may plan; False if it refuses.
      refused: whether it does.
    """

    n1: float
    cost: float
    holds: bool
    refused: bool = False


def choice(rule: str, curves: RunCurves, facts: LawFacts, longest: float, budget: float, charged: bool) -> Choice:
    """Return what a rule does within a budget on one seed's curves up to a length.

    Args:
      rule: one of ``LAWS``, ``RULE``, ``SURE``.
      curves: of one seed.
      facts: of them.
      longest: large steps up to which it sees runs.
      budget: of the run that it plans.
      charged: whether the short runs that are not trained on are paid from the budget: scratch, what of the small network comes
        after its growth, and the three grown runs of a law that takes some.
    """
    alone = rule in (RULE, SURE, "curves alone")
    near = {min((n1 for n1, _ in curves.grown), key=lambda n1: abs(n1 - share * longest)) for share in SEEN}
    seen = dataclasses.replace(curves, grown=tuple(run for run in curves.grown if run[0] in near and not alone))
    spent = longest + math.fsum(min(longest - n1, curve[-1, 0]) for n1, curve in seen.grown if n1 < longest)
    left = budget - spent * charged
    if left <= 0:
        return Choice(math.nan, spent, False)
    cut = lambda runs: [run[(run[:, 0] > 0) & (run[:, 0] <= longest + 1)] for run in runs]
    try:
        if rule == RULE:
            found = bea.head_start_step(cut(seen.small), cut(seen.scratch), left, draws=0)
            n1, holds = found.step.value, not found.rising
        else:
            kind = "curves" if alone else rule
            said = fit_law(kind, seen, facts, longest=longest, draws=0).law.forecast(left)
            n1, holds = said.share.value * left, said.holds
        one = Choice(min(n1, left), spent, holds)
    except (InputError, ValueError):
        one = Choice(TRIALS * left, spent, False, refused=True)
    if rule == SURE and not one.holds:
        one = dataclasses.replace(one, n1=TRIALS * left)
    return dataclasses.replace(one, cost=(spent + max(0.0, longest - one.n1)) * charged)


def regrets(found: Judged, fitted: Sequence[float]) -> list[dict[str, Any]]:
    """Return the regret of every rule on a record, its cost charged or not: final loss over that of the best measured step.

    A rule sees the curves of one seed and answers for it. Regrets are geometric means over the seeds, with Student's 95 %
    interval of their logarithms (``free_interval``, ``charged_interval``); the best step is one for all seeds.
    """
    best = found.losses_at(found.best()[0], found.budget)
    rows = []
    for longest in fitted:
        for rule in (*FEW, RULE, SURE):
            row: dict[str, Any] = {"rule": rule, "longest": longest}
            for key, charged in (("free", False), ("charged", True)):
                made = [
                    choice(rule, found.of_seed(seed), found.facts, longest, found.budget, charged)
                    for seed in range(found.seeds)
                ]
                ends = [found.losses_at(one.n1, found.budget - one.cost)[seed] for seed, one in enumerate(made)]
                row |= _geometric(key, np.array(ends) / best) | {
                    f"{key}_steps": [one.n1 for one in made], f"{key}_cost": float(np.mean([one.cost for one in made])),
                }  # fmt: skip
                if not charged:
                    row |= {"refused": sum(one.refused for one in made), "holds": sum(one.holds for one in made)}
            rows.append(row)
    for share in FIXED:
        ratios = found.losses_at(share * found.budget, found.budget) / best
        row = {"rule": f"fixed at {share:.0%}", "longest": None}
        rows.append(row | _geometric("free", ratios) | _geometric("charged", ratios))
    return rows


def _geometric(key: str, ratios: np.ndarray) -> dict[str, Any]:
    """Return the geometric mean of ratios over seeds and its interval; NaN and None where they are not known."""
    said = estimate(np.log(ratios).tolist())
    between = [math.exp(end) for end in said.interval] if said and said.interval else None
    return {key: math.exp(said.mean) if said else math.nan, f"{key}_interval": between}


def foretold(found: Judged, kind: str, longest: float, draws: int, plateau: bool = False) -> Mapping[str, Any]:
    """Return what a law of all seeds' runs up to a length says of a record's budget, against what was measured.

    Raises:
      InputError: no law can be fitted.
    """
    curves = dataclasses.replace(found.curves, grown=()) if kind == "curves alone" else found.curves
    saved = fit_law(kind.split()[0], curves, found.facts, longest=longest, draws=draws, plateau=plateau)
    law, budget = saved.law, found.budget
    said, losses = law.forecast(budget), {n1: v.mean() for n1, v in found.losses(budget).items() if 0 < n1 < budget}
    predicted = [law.predict(float(n1), budget - n1) for n1 in losses]
    errors = [math.log(one.value / loss) for one, loss in zip(predicted, losses.values(), strict=True)]
    inside = sum(one.low <= loss <= one.high for one, loss in zip(predicted, losses.values(), strict=True))
    return {
        "points": law.points, "drift": law.drift if math.isfinite(law.drift) else None, "errors": errors,
        "inside": int(inside), "share": said.share, "holds": said.holds, "pays": said.pays, "grow": said.grow_best,
        "scratch": said.scratch, "never": said.never, "kept": _kept(law), "fitted": dict(saved.points),
        "regret": found.loss_at(said.share.value * budget, budget) / found.best()[1],
    }  # fmt: skip


def _kept(law: bea.GrowthLaw) -> bea.Interval | None:
    """Return the share k of the head start that a law of curves found to be kept; None for another law."""
    if "k" not in law.names or not law.has[2]:
        return None
    at = law.names.index("k")
    low, high = np.quantile(law.draws[:, at], [0.025, 0.975]) if len(law.draws) else (math.nan, math.nan)
    return bea.Interval(float(law.theta[at]), float(low), float(high))
