"""The rule of forecasts: when to grow, decided while training by looking ahead, or by ``bea``'s trials if that costs too much.

It grows networks on full batches of a few hundred samples well. A forecast follows one batch, so that it does not hold over
runs that go on seeing other data; runs of ``fusion_core`` therefore decide by trials alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import bea

# Looks are at least this share of the run apart: closer, nothing has changed.
CLOSEST = 1 / 32
LOOKS = 16


class Forecast(NamedTuple):
    """Forecast final losses at one step.

    Attributes:
      now: final loss of growing now.
      later: final losses of growing at later steps, as pairs (step, loss). With them the rule sees past a rise that a later
        fall makes good; without, it takes the first minimum.
      outside: why the forecast is outside of the flows' domain (``bea.Domain.reason``); empty if it may plan.
    """

    now: float
    later: tuple[tuple[int, float], ...] = ()
    outside: str = ""


@dataclasses.dataclass(frozen=True)
class ForecastRule:
    """State of the rule: ``decide`` returns the next one.

    Attributes:
      trials: ``bea``'s rule, which decides if no look can be paid, or a forecast is not finite or outside of its domain.
      why: what the limit pays for, as part of a sentence.
      looks: looks that the limit still pays for; with none left, ``settled`` or ``trials`` decides.
      next_decision: small step of the next decision; None if nothing is left to decide.
      settled: small step at which the network grows after the last look; None if that is not settled.
      lowest: (loss, step) of the lowest forecast of growing at once.
      step: small step at which to grow; None if it is not decided, or never.
      reason: reason of the last decision, one sentence with the numbers.
    """

    trials: bea.OnlineState
    why: str
    looks: int
    next_decision: int | None
    settled: int | None = None
    lowest: tuple[float, int] | None = None
    step: int | None = None
    reason: str = ""

    @classmethod
    def start(
        cls,
        last_step: int,
        *,
        run_gradients: float,
        forecast_gradients: float,
        trial_gradients: float,
        looks: int = LOOKS,
        cost_limit: float = 0.05,
    ) -> ForecastRule:
        """Return the rule before the first step.

        Args:
          last_step, run_gradients, trial_gradients, cost_limit: as ``bea.start_online`` takes them.
          forecast_gradients: cost of one look, in gradients of the grown network.
          looks: the most looks, whatever the limit pays for.
        """
        trials = bea.start_online(
            last_step, run_gradients=run_gradients, trial_gradients=trial_gradients, cost_limit=cost_limit
        )
        cost = forecast_gradients / run_gradients
        paid = min(looks, int(cost_limit / cost * (1 + 1e-9)))
        if not paid:
            return cls(trials, f"one look ahead would cost {cost:.1%}; {trials.why}", 0, trials.next_decision)
        why = f"one look ahead costs {cost:.2%}, {paid} at most, within the limit of {cost_limit:.1%} of the run"
        return cls(trials, why, paid, 0)

    @property
    def method(self) -> str:
        """What the next decision rests on: ``"look_ahead"``, ``"settled"``, ``"trials"`` or ``"fixed"``."""
        if self.looks:
            return "look_ahead"
        return self.trials.method if self.settled is None else "settled"

    def decide(
        self,
        step: int,
        *,
        forecast: Forecast | None = None,
        rates: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> ForecastRule:
        """Return the rule after its decision at a step.

        With forecasts of later growth, grow as soon as none of them is below that of growing now; else the next look is
        half-way to the lowest. Without, grow as soon as the forecast of growing now is above the lowest so far; else the
        next look is at twice the step. If no further look can be paid, the last look decides. A forecast outside of its
        domain plans nothing: trials decide, and the reason names the law that may be asked.

        Args:
          step: the present small step.
          forecast: needed while the method is ``"look_ahead"``.
          rates: rates of a trial (``bea.online_growth_step``), needed while the method is ``"trials"``; used too if the
            forecast is not finite.

        Raises:
          ValueError: what the method needs is missing.
        """
        if self.method == "look_ahead":
            if forecast is None:
                raise ValueError("the method is look_ahead: pass forecast=Forecast(now, later)")
            if not all(map(math.isfinite, (forecast.now, *(loss for _, loss in forecast.later)))):
                return self._without_forecasts(step, rates, f"the forecast at step {step} is not finite")
            if forecast.outside:
                return self._without_forecasts(
                    step, rates, forecast.outside[0].lower() + forecast.outside[1:].rstrip(".")
                )
            return self._by_later(step, forecast) if forecast.later else self._by_first_minimum(step, forecast.now)
        if self.settled is None:
            return self._by_trials(step, rates)
        if self.settled <= step < self.trials.last_step:
            return self._grow(step, f"Grow at step {step}: decided before, since {self.why}.")
        return self._wait(step, self.settled, f"it grows at step {self.settled}")

    def _without_forecasts(self, step: int, rates: Any, why: str) -> ForecastRule:
        following = max(step, self.trials.next_decision or step)
        rule = dataclasses.replace(self, looks=0, why=why, next_decision=following)
        if rule.method == "trials" and rates is None:
            return dataclasses.replace(
                rule, reason=f"Not yet at step {step}: {why}; a trial at step {following} decides."
            )
        return rule._by_trials(step, rates)

    def _by_trials(self, step: int, rates: Any) -> ForecastRule:
        trials, decision = bea.online_growth_step(self.trials, step, rates=rates)
        return dataclasses.replace(
            self, trials=trials, next_decision=trials.next_decision, step=decision.step, reason=decision.reason
        )

    def _by_first_minimum(self, step: int, now: float) -> ForecastRule:
        lowest, where = self.lowest or (now, step)
        if now > lowest:
            return self._grow(
                step,
                f"Grow at step {step}: the forecast final loss has stopped falling, {now:.4g} now after {lowest:.4g} at step "
                f"{where} (rise {now - lowest:.2g}); {self.why}.",
            )
        kept = dataclasses.replace(self, looks=self.looks - 1, lowest=(now, step))
        because = f"the forecast final loss, {now:.4g}, still falls"
        if kept.looks:
            return kept._wait(step, 2 * step or 1, because)
        return kept._settle(step, max(kept.trials.fixed_step, step + 1), because)

    def _by_later(self, step: int, forecast: Forecast) -> ForecastRule:
        best, loss = min(forecast.later, key=lambda later: later[1])
        worse = forecast.now - loss
        if worse <= 0:
            return self._grow(
                step,
                f"Grow at step {step}: the forecast final loss, {forecast.now:.4g}, is not lower for any later growth looked "
                f"at (the lowest, at step {best}, is off by {-worse:.2g}); {self.why}.",
            )
        where = "never growing" if best == self.trials.last_step else f"growing at step {best}"
        because = f"the forecast final loss, {forecast.now:.4g}, is lower by {worse:.2g} for {where}"
        kept = dataclasses.replace(self, looks=self.looks - 1)
        if kept.looks:
            nearest = step + max(1, int(CLOSEST * self.trials.last_step))
            return kept._wait(step, max((step + best) // 2, nearest), because)
        return kept._settle(step, best, because)

    def _settle(self, step: int, settled: int, because: str) -> ForecastRule:
        why = f"{because} at step {step} and no further look can be paid"
        return dataclasses.replace(self, settled=settled, why=why)._wait(step, settled, because)

    def _grow(self, step: int, reason: str) -> ForecastRule:
        return dataclasses.replace(self, step=step, next_decision=None, reason=reason)

    def _wait(self, step: int, following: int, because: str) -> ForecastRule:
        last = self.trials.last_step
        when = "Not within this budget" if step == last else f"Not yet at step {step}"
        following_step = None if step == last else min(following, last)
        return dataclasses.replace(self, next_decision=following_step, reason=f"{when}: {because} ({self.why}).")
