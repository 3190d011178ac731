"""When to grow, decided while training, within a limit of what the decision itself may cost.

The state is a value: it goes in with what was measured now, and comes out with it. Nothing here computes a gradient;
the caller measures what ``OnlineState.method`` asks for and says what that costs.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Method = Literal["look_ahead", "slopes", "fixed"]

# How far above the loss of the batch that the forecast follows its loss on other batches may be, as a share.
HOLDS = 0.1
# Standard errors that a difference has to stand out by, where there are several batches.
STANDS_OUT = 1.0
# Looks are a share 1 / CLOSEST of the run apart at least.
CLOSEST = 32
# The fixed fraction of the budget that did best on the growth benchmark's tuning problems.
FIXED_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What ``look_ahead`` says of growing at one step.

    Attributes:
      step: the small step.
      fresh: forecast final losses on batches other than the one the flow follows, always the same ones in the same order;
        with full-batch training the one loss of all data.
      followed: the forecast final loss of the batch that the flow follows; None with full-batch training.
      later: the same forecasts of growing at later steps, from here: the small phase is followed ahead too. With them the
        rule sees past a rise that a later fall makes good; without, it takes the first.
    """

    step: int
    fresh: tuple[float, ...]
    followed: float | None = None
    later: tuple[tuple[int, tuple[float, ...]], ...] = ()


@dataclasses.dataclass(frozen=True)
class OnlineState:
    """What the rule knows so far.

    Attributes:
      method: what it wants to be told next: a ``Forecast`` (``"look_ahead"``), rates after the transient of a trial
        (``"slopes"``), or nothing (``"fixed"``).
      why: what was chosen, within which cost, as part of a sentence.
      last_step: small steps that the whole budget pays for.
      next_look: the small step at which to ask next; asking earlier is answered, and costs as much.
      looks: how often it may still be asked within the limit, by this method.
      trials: how many lost trials the limit pays for, should forecasts not hold.
      fixed_step: where it grows without being told anything; last_step is never.
      forecasts: so far.
    """

    method: Method
    why: str
    last_step: int
    next_look: int
    looks: int
    trials: int
    fixed_step: int
    forecasts: tuple[Forecast, ...] = ()


@dataclasses.dataclass(frozen=True)
class OnlineDecision:
    """Grow now, or not yet.

    Attributes:
      step: now, or None: go on with the small networks (at the last step: not within this budget).
      method: which rule decided.
      value: what it looked at: the rise of the forecast loss above its lowest, or above the lowest of later growth (units
        of the loss), or how far the grown network's rate is ahead of the small ones' (log loss per FLOP); 0 for a fixed step.
      standard_error: of value, paired over batches; nan where there is one value only.
      reason: one sentence with the numbers, and where they are out of their domain.
    """

    step: int | None
    method: Method
    value: float
    standard_error: float
    reason: str


def start_online(
    last_step: int,
    *,
    run_gradients: float,
    forecast_gradients: float,
    trial_gradients: float,
    looks: int = 16,
    cost_limit: float = 0.05,
    fixed_share: float = FIXED_SHARE,
) -> OnlineState:
    """Choose the rule that tells most among those that can be paid: forecasts, else trials, else a fixed fraction.

    Args:
      last_step: small steps that the whole budget pays for.
      run_gradients: the whole budget, in gradients of the grown network.
      forecast_gradients: cost of one look (all its forecasts, and their evaluation on fresh batches), in the same unit.
      trial_gradients: cost of one trial that loses (one that wins is kept).
      looks: the rule is not asked more often than this, whatever can be paid.
      cost_limit: share of the budget that deciding may cost.
      fixed_share: where to grow when nothing can be paid, as a share of the budget; trials begin there.

    Raises:
      ValueError: a number is not positive and finite, or a share is not between 0 and 1.
    """
    for name, count in (("last_step", last_step), ("looks", looks)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} is {count!r}, but has to be a positive whole number")
    numbers = {"run_gradients": run_gradients, "forecast_gradients": forecast_gradients}
    for name, number in (numbers | {"trial_gradients": trial_gradients}).items():
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {number!r}, but a cost in gradients is positive and finite")
    for name, share in (("cost_limit", cost_limit), ("fixed_share", fixed_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share!r}, but a share of the budget lies between 0 and 1")
    ahead, trial = (cost / run_gradients for cost in (forecast_gradients, trial_gradients))
    # a hair above, so that a limit that is met exactly is met
    forecasts, trials = (min(looks, int(cost_limit / share * (1 + 1e-9))) for share in (ahead, trial))
    fixed = round(fixed_share * last_step)
    limit = f"within the limit of {cost_limit:.1%} of the run"
    if forecasts:
        why = f"one look ahead costs {ahead:.2%}, {forecasts} at most, {limit}"
        return OnlineState("look_ahead", why, last_step, 0, forecasts, trials, fixed)
    dear = f"one look ahead would cost {ahead:.1%}"
    if trials:
        why = f"{dear}; a lost trial costs {trial:.1%}, {trials} at most, {limit}"
        return OnlineState("slopes", why, last_step, fixed, trials, trials, fixed)
    why = f"{dear} and one trial {trial:.1%}, neither {limit}"
    return OnlineState("fixed", why, last_step, fixed, 0, 0, fixed)


def online_growth_step(
    state: OnlineState,
    step: int,
    *,
    forecast: Forecast | None = None,
    rates: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[OnlineState, OnlineDecision]:
    """Tell the rule what was measured at this step; it says whether to grow now, and in the state when to ask again.

    * looking ahead: with forecasts of later growth, grow as soon as none of them is below that of growing now, with
      several batches by more than a standard error of the paired difference; else the next look is half-way to the
      lowest. Without, grow as soon as the forecast of growing now is above the lowest so far (by as much). When no further
      look can be paid, the last plan stands. A forecast whose loss on fresh batches is more than 10 % (and two standard
      errors) above that of the batch it follows does not hold: the rule falls back to trials.
    * slopes: grow as soon as the grown network's rate, measured after the transient of the event, passes the small
      ones'; else the next trial is at twice the step. When no further trial can be paid, it grows at twice the step.
    * fixed: grow at the first step at or after the fixed one; the last step is never.

    Args:
      state: from ``start_online`` or the last call.
      step: the small step now.
      forecast: of growing now (and later); wanted while the method is ``"look_ahead"``.
      rates: decrease of log loss per FLOP, (small, grown), one of each a batch or run: over the second half of a trial run
        of about 4 % of the budget. Wanted while the method is ``"slopes"``.

    Returns:
      The next state and an ``OnlineDecision``.

    Raises:
      ValueError: step lies outside of the run or not after the last forecast, what the method wants is missing, not finite
        or of another number of batches.

    Source: theory.md, section 6.
    """
    if not 0 <= step <= state.last_step:
        raise ValueError(f"step is {step}, outside of the run of {state.last_step} small steps")
    if state.method == "look_ahead":
        if forecast is None:
            raise ValueError("the method is look_ahead: pass forecast=Forecast(step, fresh, followed)")
        _check_forecast(state, step, forecast)
        if (misfit := _misfit(forecast)) is not None:
            state = _fall_back(state, step, misfit)
            if state.method == "slopes" and rates is None:
                return state, _wait(state, step, math.nan, math.nan, f"a trial is wanted at step {state.next_look}")
        else:
            kept = dataclasses.replace(state, forecasts=(*state.forecasts, forecast), looks=state.looks - 1)
            return (_by_plan if forecast.later else _by_forecast)(kept, state.forecasts, step, forecast)
    if state.method == "slopes":
        return _by_slopes(state, step, rates)
    if step >= state.fixed_step and step < state.last_step:
        reason = f"Grow at step {step}: decided before, since {state.why}."
        return state, OnlineDecision(step, "fixed", 0.0, math.nan, reason)
    never = state.fixed_step == state.last_step
    return state, _wait(
        state, step, 0.0, math.nan, "no growth is planned" if never else f"planned is {state.fixed_step}"
    )


Told = tuple[OnlineState, OnlineDecision]


def _by_forecast(state: OnlineState, before: Sequence[Forecast], step: int, forecast: Forecast) -> Told:
    lowest = min(before, key=lambda f: np.mean(f.fresh), default=forecast)
    rise, error = _paired(np.asarray(forecast.fresh) - np.asarray(lowest.fresh))
    if rise > _margin(error):
        reason = (
            f"Grow at step {step}: the forecast final loss has stopped falling, {np.mean(forecast.fresh):.4g} now after "
            f"{np.mean(lowest.fresh):.4g} at step {lowest.step} (rise {rise:.2g}{_plus_minus(error)}); {state.why}."
        )
        return state, OnlineDecision(step, "look_ahead", rise, error, reason)
    because = f"the forecast final loss, {np.mean(forecast.fresh):.4g}, still falls"
    state = dataclasses.replace(state, next_look=min(step + max(1, step), state.last_step))
    if not state.looks:
        planned = max(state.fixed_step, step + 1)
        why = f"{because} at step {step} and no further look can be paid"
        state = dataclasses.replace(state, method="fixed", why=why, fixed_step=planned, next_look=planned)
    return state, _wait(state, step, rise, error, because)


def _by_plan(state: OnlineState, before: Sequence[Forecast], step: int, forecast: Forecast) -> Told:
    best, fresh = min(forecast.later, key=lambda later: np.mean(later[1]))
    worse, error = _paired(np.asarray(forecast.fresh) - np.asarray(fresh))
    now = float(np.mean(forecast.fresh))
    if worse > _margin(error):
        where = "never growing" if best == state.last_step else f"growing at step {best}"
        because = f"the forecast final loss, {now:.4g}, is lower by {worse:.2g} for {where}"
        state = dataclasses.replace(state, next_look=_next_look(state, step, best))
        if not state.looks:
            why = f"{because} at step {step} and no further look can be paid"
            state = dataclasses.replace(state, method="fixed", why=why, fixed_step=best, next_look=best)
        return state, _wait(state, step, worse, error, because)
    reason = (
        f"Grow at step {step}: the forecast final loss, {now:.4g}, is not lower for any later growth looked at (the lowest, "
        f"at step {best}, is off by {-worse:.2g}{_plus_minus(error)}); {state.why}."
    )
    return state, OnlineDecision(step, "look_ahead", worse, error, reason)


def _next_look(state: OnlineState, step: int, best: int) -> int:
    """Half-way, and at least a 32nd of the run from here: closer, nothing has changed."""
    return min(max((step + best) // 2, step + max(1, state.last_step // CLOSEST)), state.last_step)


def _by_slopes(state: OnlineState, step: int, rates: tuple[Sequence[float], Sequence[float]] | None) -> Told:
    if rates is None:
        raise ValueError("the method is slopes: pass rates=(small, grown), measured after the transient of a trial")
    small, grown = (np.asarray(r, float) for r in rates)
    if small.shape != grown.shape or small.ndim != 1 or not small.size or not np.isfinite([small, grown]).all():
        raise ValueError(f"rates are {small} and {grown}, but have to be two equally long rows of finite numbers")
    ahead, error = _paired(grown - small)
    if ahead > _margin(error) and grown.mean() > 0:
        reason = (
            f"Grow at step {step}: after the transient the grown network's loss falls faster per FLOP "
            f"({grown.mean():.3g} against {small.mean():.3g}, ahead by {ahead:.2g}{_plus_minus(error)}); {state.why}. It sees "
            "the present slopes only."
        )
        return state, OnlineDecision(step, "slopes", ahead, error, reason)
    if ahead <= 0:
        because = f"the small networks' loss falls faster per FLOP ({small.mean():.3g} against {grown.mean():.3g})"
    elif grown.mean() <= 0:
        because = f"the grown network's loss does not fall ({grown.mean():.3g} per FLOP)"
    else:
        because = (
            "the grown network's loss falls faster per FLOP by no more than the noise "
            f"({grown.mean():.3g} against {small.mean():.3g}, ahead by {ahead:.2g}{_plus_minus(error)})"
        )
    twice = min(step + max(1, step), state.last_step)
    state = dataclasses.replace(state, looks=state.looks - 1, next_look=twice)
    if state.looks < 1:
        why = f"{because} at step {step} and no further trial can be paid"
        state = dataclasses.replace(state, method="fixed", why=why, fixed_step=twice)
    return state, _wait(state, step, ahead, error, because)


def _wait(state: OnlineState, step: int, value: float, error: float, because: str) -> OnlineDecision:
    when = "Not within this budget" if step == state.last_step else f"Not yet at step {step}"
    return OnlineDecision(None, state.method, value, error, f"{when}: {because} ({state.why}).")


def _fall_back(state: OnlineState, step: int, misfit: str) -> OnlineState:
    method: Method = "slopes" if state.trials else "fixed"
    rest = "trials decide" if state.trials else "no trial can be paid, so the fixed fraction decides"
    return dataclasses.replace(
        state, method=method, why=f"{misfit}; {rest}", looks=state.trials, next_look=max(step, state.fixed_step)
    )


def _misfit(forecast: Forecast) -> str | None:
    """Why a forecast does not hold, or None."""
    mean, error = _paired(np.asarray(forecast.fresh))
    if not math.isfinite(mean):
        return f"the forecast at step {forecast.step} is not finite"
    if forecast.followed is None:
        return None
    above = mean - forecast.followed
    if above > max(HOLDS * abs(forecast.followed), 2 * (0.0 if math.isnan(error) else error)):
        return (
            f"the forecast at step {forecast.step} does not hold on fresh batches ({mean:.4g}{_plus_minus(error)} against "
            f"{forecast.followed:.4g} on the batch that it follows)"
        )
    return None


def _margin(error: float) -> float:
    return 0.0 if math.isnan(error) else STANDS_OUT * error


def _check_forecast(state: OnlineState, step: int, forecast: Forecast) -> None:
    if forecast.step != step or (state.forecasts and step <= state.forecasts[-1].step):
        raise ValueError(f"the forecast is of step {forecast.step}, but now is step {step}, after the ones before")
    if not forecast.fresh or (state.forecasts and len(forecast.fresh) != len(state.forecasts[-1].fresh)):
        raise ValueError(
            f"the forecast has {len(forecast.fresh)} losses; pass as many as before and one at least, of the same batches"
        )

    for later, fresh in forecast.later:
        if not step < later <= state.last_step or len(fresh) != len(forecast.fresh):
            raise ValueError(
                f"a later forecast is of step {later} with {len(fresh)} losses, but now is step {step} with "
                f"{len(forecast.fresh)} (last step {state.last_step}): pass later steps and the same batches"
            )


def _paired(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error (nan for one value)."""
    error = float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan
    return float(values.mean()), error


def _plus_minus(error: float) -> str:
    return "" if math.isnan(error) else f" ± {error:.1g}"
