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
      why: one sentence: what was chosen, within which cost.
      last_step: small steps that the whole budget pays for.
      fixed_step: where the best fixed fraction lies.
      can_pay_slopes: whether trials fit into the limit.
      forecasts: so far.
    """

    method: Method
    why: str
    last_step: int
    fixed_step: int
    can_pay_slopes: bool
    forecasts: tuple[Forecast, ...] = ()


@dataclasses.dataclass(frozen=True)
class OnlineDecision:
    """Grow now, or not yet.

    Attributes:
      step: now, or None: go on with the small networks (at the last step: not within this budget).
      method: which rule decided.
      value: what it looked at: the rise of the forecast loss above its lowest, or above the lowest of later growth (units
        of the loss), or how far the grown
        network's rate is ahead of the small ones' (log loss per FLOP); 0 for a fixed step.
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
    fixed_share: float = 0.2,
) -> OnlineState:
    """Choose the rule that tells most among those that can be paid.

    Args:
      last_step: small steps that the whole budget pays for.
      run_gradients: the whole budget, in gradients of the grown network.
      forecast_gradients: cost of one look ahead, the evaluation on fresh batches included, in the same unit.
      trial_gradients: cost of one trial that loses (one that wins is kept).
      looks: how often the rule is going to be asked.
      cost_limit: share of the budget that deciding may cost.
      fixed_share: where to grow when nothing can be paid, as a share of the budget: the benchmark's best.

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
    ahead, trials = (looks * cost / run_gradients for cost in (forecast_gradients, trial_gradients))
    pays_slopes = trials <= cost_limit
    limit = f"within the limit of {cost_limit:.1%} of the run"
    fixed_step = round(fixed_share * last_step)
    if ahead <= cost_limit:
        why = f"looking ahead {looks} times costs {ahead:.1%}, {limit}"
        return OnlineState("look_ahead", why, last_step, fixed_step, pays_slopes)
    dear = f"looking ahead {looks} times would cost {ahead:.1%}"
    if pays_slopes:
        why = f"{dear}; {looks} trials cost {trials:.1%} at most, {limit}"
        return OnlineState("slopes", why, last_step, fixed_step, True)
    why = f"{dear} and {looks} trials {trials:.1%}, neither {limit}"
    return OnlineState("fixed", why, last_step, fixed_step, False)


def online_growth_step(
    state: OnlineState,
    step: int,
    *,
    forecast: Forecast | None = None,
    rates: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[OnlineState, OnlineDecision]:
    """Tell the rule what was measured at this step; it says whether to grow now.

    * looking ahead: grow as soon as the forecast final loss of growing now is above the lowest so far, with several
      batches by more than a standard error of the paired difference; with forecasts of later growth, as soon as none of
      them is below that of growing now (by as much). A forecast whose loss on fresh batches is more than
      10 % (and two standard errors) above that of the batch it follows does not hold: the rule falls back.
    * slopes: grow as soon as the grown network's rate, measured after the transient of the event, passes the small ones'.
    * fixed: grow at the first step at or after the fixed fraction.

    Args:
      state: from ``start_online`` or the last call.
      step: the small step now.
      forecast: of growing now; wanted while the method is ``"look_ahead"``.
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
            state = _fall_back(state, misfit)
            if state.method == "slopes" and rates is None:
                return state, _wait(state, step, math.nan, math.nan, "a trial is wanted next")
        else:
            return _by_forecast(state, step, forecast)
    if state.method == "slopes":
        return state, _by_slopes(state, step, rates)
    if step >= state.fixed_step:
        reason = f"Grow at step {step}: the fixed fraction, since {state.why}."
        return state, OnlineDecision(step, "fixed", 0.0, math.nan, reason)
    return state, _wait(state, step, 0.0, math.nan, f"the fixed fraction is at step {state.fixed_step}")


def _by_forecast(state: OnlineState, step: int, forecast: Forecast) -> tuple[OnlineState, OnlineDecision]:
    if forecast.later:
        return dataclasses.replace(state, forecasts=(*state.forecasts, forecast)), _by_plan(state, step, forecast)
    lowest = min(state.forecasts, key=lambda f: np.mean(f.fresh), default=forecast)
    rise, error = _paired(np.asarray(forecast.fresh) - np.asarray(lowest.fresh))
    state = dataclasses.replace(state, forecasts=(*state.forecasts, forecast))
    margin = 0.0 if math.isnan(error) else STANDS_OUT * error
    if rise > margin:
        reason = (
            f"Grow at step {step}: the forecast final loss has stopped falling, {np.mean(forecast.fresh):.4g} now after "
            f"{np.mean(lowest.fresh):.4g} at step {lowest.step} (rise {rise:.2g}{_plus_minus(error)}); {state.why}."
        )
        return state, OnlineDecision(step, "look_ahead", rise, error, reason)
    return state, _wait(
        state, step, rise, error, f"the forecast final loss, {np.mean(forecast.fresh):.4g}, still falls"
    )


def _by_plan(state: OnlineState, step: int, forecast: Forecast) -> OnlineDecision:
    best, fresh = min(forecast.later, key=lambda later: np.mean(later[1]))
    worse, error = _paired(np.asarray(forecast.fresh) - np.asarray(fresh))
    now = float(np.mean(forecast.fresh))
    if worse > (0.0 if math.isnan(error) else STANDS_OUT * error):
        return _wait(
            state,
            step,
            worse,
            error,
            f"the forecast final loss, {now:.4g}, is lower by {worse:.2g} for growing at step {best}",
        )
    reason = (
        f"Grow at step {step}: the forecast final loss, {now:.4g}, is not lower for any later growth looked at (the lowest, "
        f"at step {best}, is off by {-worse:.2g}{_plus_minus(error)}); {state.why}."
    )
    return OnlineDecision(step, "look_ahead", worse, error, reason)


def _by_slopes(state: OnlineState, step: int, rates: tuple[Sequence[float], Sequence[float]] | None) -> OnlineDecision:
    if rates is None:
        raise ValueError("the method is slopes: pass rates=(small, grown), measured after the transient of a trial")
    small, grown = (np.asarray(r, float) for r in rates)
    if small.shape != grown.shape or small.ndim != 1 or not small.size or not np.isfinite([small, grown]).all():
        raise ValueError(f"rates are {small} and {grown}, but have to be two equally long rows of finite numbers")
    ahead, error = _paired(grown - small)
    if ahead > (0.0 if math.isnan(error) else STANDS_OUT * error) and grown.mean() > 0:
        reason = (
            f"Grow at step {step}: after the transient the grown network's loss falls faster per FLOP "
            f"({grown.mean():.3g} against {small.mean():.3g}, ahead by {ahead:.2g}{_plus_minus(error)}); {state.why}. It sees "
            "the present slopes only."
        )
        return OnlineDecision(step, "slopes", ahead, error, reason)
    return _wait(state, step, ahead, error, "the small networks' loss falls faster per FLOP")


def _wait(state: OnlineState, step: int, value: float, error: float, because: str) -> OnlineDecision:
    when = "Not within this budget" if step == state.last_step else f"Not yet at step {step}"
    return OnlineDecision(None, state.method, value, error, f"{when}: {because} ({state.why}).")


def _fall_back(state: OnlineState, misfit: str) -> OnlineState:
    method: Method = "slopes" if state.can_pay_slopes else "fixed"
    rest = "trials decide" if state.can_pay_slopes else "no trial can be paid, so the fixed fraction decides"
    return dataclasses.replace(state, method=method, why=f"{misfit}; {rest}")


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


def _check_forecast(state: OnlineState, step: int, forecast: Forecast) -> None:
    if forecast.step != step or (state.forecasts and step <= state.forecasts[-1].step):
        raise ValueError(f"the forecast is of step {forecast.step}, but now is step {step}, after the ones before")
    if not forecast.fresh or (state.forecasts and len(forecast.fresh) != len(state.forecasts[-1].fresh)):
        raise ValueError(
            f"the forecast has {len(forecast.fresh)} losses; pass as many as before and one at least, of the same batches"
        )

    for later, fresh in forecast.later:
        if later <= step or len(fresh) != len(forecast.fresh):
            raise ValueError(
                f"a later forecast is of step {later} with {len(fresh)} losses, but now is step {step} with "
                f"{len(forecast.fresh)}: pass later steps and the same batches"
            )


def _paired(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error (nan for one value)."""
    error = float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan
    return float(values.mean()), error


def _plus_minus(error: float) -> str:
    return "" if math.isnan(error) else f" ± {error:.1g}"
