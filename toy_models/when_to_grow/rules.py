"""Rules for when to grow, each from the records of a problem alone: run → index into the grid of growth steps.

The last index is never: not within this budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from toy_models.when_to_grow.forecast_rule import Forecast, ForecastRule

FIXED = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
Rule = Callable[[dict[str, Any]], list[int]]


def fixed(share: float) -> Rule:
    """Grow at this share of the budget."""
    return lambda record: [record["shares"].index(share)] * len(record["look_ahead"])


def lowest(name: str) -> Rule:
    """Grow where the forecast is lowest, known at the end of the small run."""
    return lambda record: [int(np.nanargmin(row)) for row in record[name]]


def lowest_of_mean(record: dict[str, Any]) -> list[int]:
    """Grow all runs at the step where the geometric mean of their forecasts is lowest."""
    return [int(np.log(record["look_ahead"]).mean(axis=0).argmin())] * len(record["look_ahead"])


def first_minimum(record: dict[str, Any]) -> list[int]:
    """Follow ``ForecastRule`` without later growth, at every step of the grid: one look after the first minimum."""
    return [_follow(record, run) for run in range(len(record["look_ahead"]))]


def _follow(record: dict[str, Any], run: int) -> int:
    count = len(record["shares"])
    rule = ForecastRule.start(
        record["small_steps"][-1], run_gradients=1e9, forecast_gradients=1.0, trial_gradients=1.0, looks=count
    )
    for i, step in enumerate(record["small_steps"][:-1]):
        if i and step == record["small_steps"][i - 1]:
            continue  # the grid of a short run names a step twice
        forecast = Forecast(record["look_ahead"][run][i])
        # the rates are used from a forecast on that is not finite
        rule = rule.decide(step, forecast=forecast, rates=_window(record, run, i, 2, 3))
        if rule.step is not None:
            return i
    return count - 1


def _window(record: dict[str, Any], run: int, at: int, first: int, last: int) -> tuple[list[float], list[float]]:
    """Return the decrease of log loss per share of the budget, small and grown, between two times after a growth step."""
    fall = lambda name: [record[name][run][at][first] - record[name][run][at][last]]
    return fall("small_log"), fall("trial_log")


def slopes(first: int, last: int) -> Rule:
    """Grow as soon as the grown network's slope, between two of ``WINDOW``'s times after the event, passes the small's."""

    def rule(record: dict[str, Any]) -> list[int]:
        ahead = (
            np.asarray(record["trial_log"])[..., [first, last]] - np.asarray(record["small_log"])[..., [first, last]]
        )
        return _first(ahead[..., 0] - ahead[..., 1] > 0)

    return rule


def greedy(record: dict[str, Any]) -> list[int]:
    """Grow as soon as one grown step lowers the grown loss more per FLOP than one step of the small ones."""
    rates = np.asarray(record["greedy"])
    return _first((rates[..., 1] >= rates[..., 0]) & (rates[..., 1] > 0))


def _first(met: np.ndarray) -> list[int]:
    """Return the index of the first true entry of each row but the last column, or the last index."""
    met = met.copy()
    met[:, -1] = True
    return [int(i) for i in met.argmax(axis=1)]


# Runs that followed the rule off the grid, by the records' names.
FOLLOWED = {
    "forecast rule": "followed_full",
    "forecast rule, short looks": "followed_short",
}

# The same within its limit of cost, which its budget pays (problems of ``measure.CHARGED`` steps or more).
CHARGED_RULES = {
    "forecast rule, charged": "charged_full",
    "forecast rule, short looks, charged": "charged_short",
}

RULES: dict[str, Rule] = {
    "look-ahead (lowest forecast)": lowest("look_ahead"),
    "look-ahead (lowest mean forecast of all runs)": lowest_of_mean,
    "forecast rule without later growth (first minimum)": first_minimum,
    "look-ahead with Gauss-Newton": lowest("gauss_newton"),
    "frozen kernel": lowest("frozen"),
    "slopes after the transient (2 to 4 %)": slopes(2, 3),
    "slopes at the event (0 to 1 %, after Shen et al.)": slopes(0, 1),
    "greedy (one step)": greedy,
    "never": fixed(1.0),
} | {f"fixed at {share:.0%}": fixed(share) for share in FIXED}
