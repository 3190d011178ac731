"""Rules for when to grow, each from the records of a problem alone: run → index into the grid of growth steps.

The last index is never: not within this budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import bea

FIXED = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
Rule = Callable[[dict[str, Any]], list[int]]


def fixed(share: float) -> Rule:
    """Grow at this share of the budget."""
    return lambda record: [record["shares"].index(share)] * len(record["final"])


def lowest(name: str) -> Rule:
    """Where the forecast is lowest, known at the end of the small run."""
    return lambda record: [int(np.nanargmin(row)) for row in record[name]]


def lowest_of_mean(record: dict[str, Any]) -> list[int]:
    """One step for all runs, where the geometric mean of their forecasts is lowest."""
    return [int(np.log(record["look_ahead"]).mean(axis=0).argmin())] * len(record["final"])


def online(record: dict[str, Any]) -> list[int]:
    """``bea.online_growth_step`` by forecasts, its cost not charged: the run grows where it says so, a look late."""
    found = []
    for row in record["look_ahead"]:
        state = bea.start_online(
            record["small_steps"][-1],
            run_gradients=1.0,
            forecast_gradients=1e-9,
            trial_gradients=1e-9,
        )
        chosen = len(row) - 1
        for i, (step, loss) in enumerate(zip(record["small_steps"][:-1], row, strict=False)):
            # should a forecast break, the rule falls back to trials and asks for one
            rates = _window(record, len(found), i, 2, 3)
            forecast = bea.Forecast(step, (loss,))
            state, decision = bea.online_growth_step(state, step, forecast=forecast, rates=rates)
            if decision.step is not None:
                chosen = i
                break
        found.append(chosen)
    return found


def _window(record: dict[str, Any], run: int, at: int, first: int, last: int) -> tuple[list[float], list[float]]:
    """Decrease of log loss per share of the budget, small and grown, between two times after a growth step."""
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
    """Index of the first true entry of each row but the last column; the last index where there is none."""
    met = met.copy()
    met[:, -1] = True
    return [int(i) for i in met.argmax(axis=1)]


RULES: dict[str, Rule] = {
    "look-ahead (lowest forecast)": lowest("look_ahead"),
    "look-ahead (lowest mean forecast of all runs)": lowest_of_mean,
    "online (forecast stops falling)": online,
    "look-ahead with Gauss-Newton": lowest("gauss_newton"),
    "frozen kernel": lowest("frozen"),
    "slopes after the transient (2 to 4 %)": slopes(2, 3),
    "slopes at the event (0 to 1 %, after Shen et al.)": slopes(0, 1),
    "greedy (one step)": greedy,
} | {f"fixed at {share:.0%}": fixed(share) for share in FIXED}
