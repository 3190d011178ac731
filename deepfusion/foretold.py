"""What laws of growth foretell of a plan, in words and as JSON."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from deepfusion.tables import print_table
from fusion_core.errors import InputError
from fusion_core.runs import Plan, PlanForecast, Resolved, plan_forecast, text_of
from fusion_core.schedule import SavedLaw


@dataclasses.dataclass(frozen=True)
class Foretold:
    """What one law says.

    Attributes:
      file: of the law.
      said: what it says.
      now: small steps that each source has been given so far; None if that was not said.
    """

    file: pathlib.Path
    said: PlanForecast
    now: int | None

    @property
    def rows(self) -> list[tuple[str, float | None, Any]]:
        """(what, small steps before the growth, loss with its interval)."""
        said, case, forecast = self.said, self.said.case, self.said.forecast
        steps = lambda flops: flops / case.small_flops
        rows = [("grown as planned", steps(flops), loss) for flops, loss in said.planned]
        rows.append(("grown now", self.now or 0, forecast.grow_now))
        rows.append(("grown at best", steps(said.best_flops), forecast.grow_best))
        ends = (("the small one alone", forecast.never), ("from scratch", forecast.scratch))
        return rows + [(what, None, loss) for what, loss in ends if loss is not None]

    @property
    def json(self) -> dict[str, Any]:
        """The same as JSON values; a bound that is not known is None."""
        said, forecast = self.said, self.said.forecast
        bounds = lambda loss: [value if value not in (0.0, float("inf")) else None for value in loss]
        rows = [{"what": what, "small_steps": steps, "loss": bounds(loss)} for what, steps, loss in self.rows]
        return {
            "file": str(self.file), "law": said.law.law.kind, "budget_flops": said.case.budget, "stretch": forecast.stretch,
            "losses": rows, "best_share": list(forecast.share), "pays": forecast.pays, "may_plan": forecast.holds,
            "why": forecast.why, "recipe": dict(said.law.facts.growth), "growths": list(said.case.growths),
        }  # fmt: skip


def foretold(plan: Plan, nodes: Sequence[Resolved], laws: Sequence[pathlib.Path], now: int | None) -> list[Foretold]:
    """Return what each law says of the plan; without one, the law of the plan's rule, if it has one.

    Raises:
      InputError: a law cannot be read or is of other settings, or steps so far are given without a law.
    """
    files = list(laws) or ([] if plan.rule is None else [pathlib.Path(plan.rule.law)])
    if not files:
        if now is not None:
            raise InputError("--now is for --law; give a law, or leave it out")
        return []
    read = [(file, SavedLaw.load(file)) for file in files]
    text = text_of(plan)
    return [Foretold(file, plan_forecast(plan, nodes, law, text, now or 0), now) for file, law in read]


def lines(found: Sequence[Foretold]) -> list[str]:
    """Print a table for each law; return the sentences that follow."""
    sentences: list[str] = []
    for one in found:
        said, forecast = one.said, one.said.forecast
        cells = [
            (what, "" if steps is None else f"{steps:,.0f}", f"{loss.value:.3f}", _bounds(loss))
            for what, steps, loss in one.rows
        ]
        title = (
            f"{one.file.name}: loss at the budget of {forecast.budget:,.0f} large steps, {forecast.stretch:.1f} times the "
            "longest run of the fit"
        )
        print()
        print_table(
            ("network", "small steps", "loss", "95 % interval"), cells, title=title, text=("network", "95 % interval")
        )
        share = forecast.share
        pays = {
            True: "Growing pays: at best it ends below both others.",
            False: "Growing does not pay within this budget: take the lowest of the others.",
            None: "Whether growing pays is not known.",
        }[forecast.pays]
        plans = "may plan" if forecast.holds else "may NOT plan"
        sentences += [
            f"Best step: {share.value:.0%} of the budget ({share.low:.0%} to {share.high:.0%}). {pays}",
            f"The law of {said.law.law.kind} {plans}: {forecast.why}.",
            said.law.recipe,
        ]
    if len(found) > 1:
        best = min(found, key=lambda one: one.said.forecast.grow_best.value)
        sentences.append(
            f"Recipe and step together: lowest by {best.file.name}, grown after "
            f"{best.said.best_flops / best.said.case.small_flops:,.0f} small steps."
        )
    return sentences


def _bounds(loss: Any) -> str:
    return "not known" if loss.high == float("inf") else f"{loss.low:.3f} to {loss.high:.3f}"
