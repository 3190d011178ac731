"""Look-ahead in long runs: where flows from a short run's end, and from the states before it, forecast the lowest loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bea
from toy_models.when_to_grow.forecasts import forecast_growth
from toy_models.when_to_grow.law_rules import Choice
from toy_models.when_to_grow.long_runs import LongCurves, LongRuns, Params
from toy_models.when_to_grow.measure import FORECASTS

SAMPLES = 512  # of the training samples, whose flow is followed


class Looks:
    """The compiled looks ahead of a problem.

    Args:
      runs: of the problem.
      rate: of the small networks.
      settings: of ``bea.look_ahead``.
    """

    def __init__(self, runs: LongRuns, rate: float, settings: dict[str, Any] = FORECASTS["look_ahead"]) -> None:
        self.runs, self.rate = runs, rate
        prepared = runs.prepared
        self.samples = jax.tree.map(lambda a: a[: min(SAMPLES, len(a))], runs.train)
        self.loss = lambda params: runs.loss(params, self.samples)
        _, self.unravel = ravel_pytree(prepared.start(0))
        self.cost = {
            "grown": 0,
            "small": 0,
        }  # gradients of a look at growing now, and of one stretch of the small networks

        def now(sources: Params, steps: jax.Array) -> bea.LookAhead:
            ahead = bea.look_ahead(
                self.loss, prepared.grow(sources), step_size=rate, steps=steps, metric=runs.factors, **settings
            )
            self.cost["grown"] = ahead.gradients
            return ahead

        def later(sources: Params, stretches: jax.Array, left: jax.Array) -> jax.Array:
            found = forecast_growth(
                self.loss, prepared.grow, sources, step_size=rate, factors=runs.factors, small_steps=stretches,
                grown_steps=left, **settings,
            )  # fmt: skip
            self.cost["small"] = found.small_gradients // len(stretches)
            return found.losses

        self.now, self.later = jax.jit(now), jax.jit(later)

    def lowest(self, curves: LongCurves, run: int, share: float) -> tuple[Choice, dict[float, float]]:
        """Return the growth step of the lowest forecast, with its cost, and growth step -> forecast.

        Steps up to a share of the budget are looked at from the small networks' states there, later ones from the last.
        """
        budget, prepared = curves.budget, self.runs.prepared
        grid = sorted(curves.grown)
        before = [n1 for n1 in grid if n1 <= share * budget]
        after = [*(n1 for n1 in grid if n1 > share * budget), budget]
        of = lambda n1: self.unravel(jnp.asarray(curves.states[n1][run], prepared.dtype))
        found = {n1: float(self.now(of(n1), float(budget - n1)).loss) for n1 in before[:-1]}
        stretches = jnp.asarray(np.round(np.diff([before[-1], *after]) * self.runs.ratio), prepared.dtype)
        left = jnp.asarray([budget - n1 for n1 in (before[-1], *after)], prepared.dtype)
        losses = self.later(of(before[-1]), stretches, left)
        found |= {n1: float(loss) for n1, loss in zip((before[-1], *after), losses, strict=True)}
        gradients = len(grid) * self.cost["grown"] + len(after) * self.cost["small"] / self.runs.ratio
        known = {n1: loss for n1, loss in found.items() if np.isfinite(loss)}
        step = min(known, key=lambda n1: known[n1]) if known else budget
        return Choice(step, gradients * len(self.samples[0]) / self.runs.batch), found
