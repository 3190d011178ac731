"""Runs that follow the rule of forecasts: not on the grid, but to where the rule says, and from there to the end."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bea
from toy_models.when_to_grow.forecast_rule import Forecast, ForecastRule
from toy_models.when_to_grow.forecasts import forecast_growth
from toy_models.when_to_grow.problems import Params, PreparedProblem

# Later growth that is looked at from a growth step, as shares of the budget that is left; 1 is never.
LATER = (0.1, 0.25, 0.5, 0.75, 1.0)
# Shares of the budget after which the losses of a trial are measured.
TRIAL = (0.02, 0.04)


class Follower:
    """What runs of one problem share: the compiled look, and its cost ``look_gradients`` in gradients of the grown network."""

    def __init__(self, prepared: PreparedProblem, rate: float, settings: dict[str, Any]) -> None:
        self.prepared, self.rate = prepared, rate
        cost = {}

        def look(small: tuple[Params, ...], stretches: jax.Array, left: jax.Array) -> tuple[jax.Array, ...]:
            found = forecast_growth(
                prepared.loss,
                prepared.grow,
                small,
                step_size=rate,
                factors=prepared.factors,
                small_steps=stretches,
                grown_steps=left,
                **settings,
            )
            small_cost = prepared.costs[0] / prepared.problem.sources / prepared.costs[1]
            cost["look"] = found.grown_gradients + found.small_gradients * small_cost
            return found.losses, found.sharpness, found.uncertainty

        shapes = (jnp.zeros(count, prepared.dtype) for count in (len(LATER), len(LATER) + 1))
        self._look = jax.jit(look).lower(prepared.start(0), *shapes).compile()
        self.look_gradients = cost["look"]

    def run(self, run: int, charge: bool = False) -> dict[str, Any]:
        """Train one run, and return its record.

        Args:
          run: number of the initialisation.
          charge: whether the rule's cost is limited, and paid by the rest of the budget, and looks outside of the flows' domain
            plan nothing; else looks are free, and plan.
        """
        prepared, rate, last = self.prepared, self.rate, self.prepared.small_steps(1.0)
        trial = TRIAL[-1] * prepared.problem.steps
        rule = ForecastRule.start(
            last,
            run_gradients=float(prepared.problem.steps) if charge else 1e9,
            forecast_gradients=self.look_gradients,
            trial_gradients=trial,
        )
        sources, step, looks, method = prepared.start(run), 0, 0, rule.method
        while (there := rule.next_decision) is not None:
            sources = tuple(prepared.advance(p, there - step, rate, prepared.ones) for p in sources)
            step = there
            if step == last:
                break
            method = rule.method
            if method == "look_ahead":
                looks += 1
                rule = rule.decide(step, forecast=self.forecast(sources, step, check=charge))
            else:
                rule = rule.decide(step, rates=self._trial(sources) if method == "trials" else None)
        spent = looks * self.look_gradients + rule.trials.trials_lost * trial
        left = max(0, round((1 - step / last) * prepared.problem.steps - (spent if charge else 0.0)))
        end = prepared.advance(prepared.grow(sources), left, rate, prepared.factors)
        return {
            "step": step,
            "share": step / last,
            "final": float(prepared.loss(end)),
            "method": method,
            "looks": looks,
            "lost_trials": rule.trials.trials_lost,
            "gradients": spent,
            "reason": rule.reason,
        }

    def forecast(self, sources: tuple[Params, ...], step: int, check: bool = False) -> Forecast:
        """Return the forecasts of growing now and later, the sources standing at a step; checked for their domain or not."""
        last, steps = self.prepared.small_steps(1.0), self.prepared.problem.steps
        later = sorted({step + max(1, round(part * (last - step))) for part in LATER})
        later += [last] * (len(LATER) - len(later))
        left = np.round([(1 - at / last) * steps for at in (step, *later)])
        stretches = np.diff([step, *later])
        lengths = (jnp.asarray(a, self.prepared.dtype) for a in (stretches, left))
        losses, sharpness, uncertainty = self._look(sources, *lengths)
        domain = bea.domain_of(float(sharpness), 0.0, float(uncertainty))
        now, *rest = map(float, losses)
        return Forecast(now, tuple(zip(later, rest, strict=True)), "" if domain.holds or not check else domain.reason)

    def _trial(self, sources: tuple[Params, ...]) -> tuple[list[float], list[float]]:
        """Return the decrease of log loss of both over the second half of a trial, at equal FLOPs."""
        prepared, grown, logs = self.prepared, self.prepared.grow(sources), []
        for share in TRIAL:
            steps = max(1, round(share * prepared.problem.steps))
            end = prepared.advance(grown, steps, self.rate, prepared.factors)
            small = [prepared.advance(p, prepared.small_steps(share), self.rate, prepared.ones) for p in sources]
            logs.append((np.mean([np.log(float(prepared.loss(p))) for p in small]), np.log(float(prepared.loss(end)))))
        (small_half, grown_half), (small_end, grown_end) = logs
        return [float(small_half - small_end)], [float(grown_half - grown_end)]
