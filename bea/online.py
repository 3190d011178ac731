"""When to grow, decided while training, by trials of growth whose cost is limited.

The state is a value: ``online_growth_step`` takes it with the measured rates, and returns the next one. Nothing here
computes a gradient.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Method = Literal["trials", "fixed"]

# Standard errors by which a difference must exceed zero, if it is measured on several batches.
STANDS_OUT = 1.0
# The fixed share of the budget that did best on the tuning problems of docs/when_to_grow.md.
FIXED_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class OnlineState:
    """State of the rule between two decisions.

    Attributes:
      method: ``"trials"`` if the next decision needs the rates of a trial, ``"fixed"`` if it needs no measurement.
      why: reason of the method, with its cost, as part of a sentence.
      last_step: small steps that the whole budget pays for.
      next_decision: small step of the next decision; None if nothing is left to decide.
      fixed_step: small step at which the network grows without a trial; ``last_step`` means never.
      trials_left: lost trials that the limit still pays for.
      trials_lost: trials lost so far.
      trial_steps: small steps that the sources train during a trial.
      trial_cost: cost of a lost trial, as a share of the budget.
      grid: decisions fall on multiples of it, or on the last step.
    """

    method: Method
    why: str
    last_step: int
    next_decision: int | None
    fixed_step: int
    trials_left: int
    trials_lost: int
    trial_steps: int
    trial_cost: float
    grid: int


@dataclasses.dataclass(frozen=True)
class OnlineDecision:
    """The rule's decision whether to grow now.

    Attributes:
      step: the present small step if the network grows now; None if the small networks train on (at the last step: the
        network does not grow within this budget).
      method: the method that decided.
      value: the grown network's rate minus the small ones', in log loss per FLOP; 0 for a fixed step.
      standard_error: standard error of value, paired over batches; nan for a single batch.
      reason: one sentence with the numbers.
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
    trial_gradients: float,
    trial_steps: int | None = None,
    grid: int = 1,
    cost_limit: float = 0.05,
    fixed_share: float = FIXED_SHARE,
) -> OnlineState:
    """Return the state before the first step: trials if the limit pays for one and it fits, else a fixed step.

    Args:
      last_step: small steps that the whole budget pays for.
      run_gradients: the whole budget, in gradients of the grown network.
      trial_gradients: cost of one trial that is lost, in the same unit. A trial that wins is trained on, and costs nothing.
      trial_steps: small steps that the sources train during a trial; if None, as many as cost ``trial_gradients``.
      grid: decisions fall on multiples of it, or on the last step.
      cost_limit: share of the budget that all lost trials together may cost.
      fixed_share: share of the budget after which the first trial is, or growth without one.

    Raises:
      ValueError: a count is not a positive whole number, a cost is not positive and finite, or a share is not in [0, 1].

    Source: theory.md, section 6.
    """
    for name, number in (("run_gradients", run_gradients), ("trial_gradients", trial_gradients)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {number!r}, but a cost in gradients is positive and finite")
    for name, share in (("cost_limit", cost_limit), ("fixed_share", fixed_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share!r}, but a share of the budget lies between 0 and 1")
    cost = trial_gradients / run_gradients
    if trial_steps is None:
        trial_steps = max(1, math.ceil(cost * last_step))
    for name, count in (("last_step", last_step), ("trial_steps", trial_steps), ("grid", grid)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} is {count!r}, but has to be a positive whole number")
    # the factor keeps rounding from excluding a limit that is met exactly
    trials = int(cost_limit / cost * (1 + 1e-9))
    first = _on_grid(round(fixed_share * last_step), last_step, grid)
    limit = f"the limit of {cost_limit:.1%} of the run"
    why = f"a lost trial costs {cost:.1%}, {trials} at most, within {limit}"
    state = OnlineState("trials", why, last_step, first, first, trials, 0, trial_steps, cost, grid)
    if not trials:
        return dataclasses.replace(state, method="fixed", why=f"a lost trial would cost {cost:.1%}, above {limit}")
    if not _fits(state, first):
        return dataclasses.replace(state, method="fixed", why=f"no trial at step {first} fits into what is left")
    return state


def online_growth_step(
    state: OnlineState, step: int, *, rates: tuple[Sequence[float], Sequence[float]] | None = None
) -> tuple[OnlineState, OnlineDecision]:
    """Return whether to grow now, and the next state.

    * By trials: grow as soon as the grown network's rate, measured after the transient of the event, is positive and above
      the small ones', with several batches by more than a standard error of the paired difference. Else the next trial is
      at twice the step. If the limit pays for no further trial, the network grows at twice the step without one; if none
      fits into what is left of the budget, it does not grow.
    * Fixed: grow at the first step at or after the fixed one; at the last step, do not grow.

    Args:
      state: the state from ``start_online`` or the last call.
      step: the present small step. ``state.next_decision`` as a rule; other steps are decided in the same way.
      rates: decreases of log loss per FLOP, (small, grown), one of each for every batch or run, over the second half of a
        trial of about 4 % of the budget. Needed if the method is ``"trials"``.

    Raises:
      ValueError: step lies outside of the run, or the rates are missing, not finite, or not equally many.

    Source: theory.md, section 6.
    """
    if not 0 <= step <= state.last_step:
        raise ValueError(f"step is {step}, outside of the run of {state.last_step} small steps")
    if state.method == "trials":
        return _by_trial(state, step, rates)
    if state.fixed_step <= step < state.last_step:
        reason = f"Grow at step {step}: decided before, since {state.why}."
        return _decided(state), OnlineDecision(step, "fixed", 0.0, math.nan, reason)
    if step == state.last_step:
        state, sentence = _decided(state), "Not within this budget: no growth is planned"
    else:
        sentence = f"Not yet at step {step}: planned is {state.fixed_step}"
    return state, OnlineDecision(None, "fixed", 0.0, math.nan, f"{sentence} ({state.why}).")


def _by_trial(
    state: OnlineState, step: int, rates: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[OnlineState, OnlineDecision]:
    if rates is None:
        raise ValueError("the method is trials: pass rates=(small, grown), measured after the transient of a trial")
    small, grown = (np.asarray(r, float) for r in rates)
    if small.shape != grown.shape or small.ndim != 1 or not small.size or not np.isfinite([small, grown]).all():
        raise ValueError(f"rates are {small} and {grown}, but have to be two equally long rows of finite numbers")
    difference = grown - small
    ahead = float(difference.mean())
    error = float(difference.std(ddof=1) / math.sqrt(difference.size)) if difference.size > 1 else math.nan
    margin, shown = (0.0, "") if math.isnan(error) else (STANDS_OUT * error, f" ± {error:.1g}")
    if ahead > margin and grown.mean() > 0:
        reason = (
            f"Grow at step {step}: after the transient the grown network's loss falls faster per FLOP "
            f"({grown.mean():.3g} against {small.mean():.3g}, ahead by {ahead:.2g}{shown}); {state.why}. It sees the "
            "present slopes only."
        )
        return _decided(state), OnlineDecision(step, "trials", ahead, error, reason)
    if ahead <= 0:
        because = f"the small networks' loss falls faster per FLOP ({small.mean():.3g} against {grown.mean():.3g})"
    elif grown.mean() <= 0:
        because = f"the grown network's loss does not fall ({grown.mean():.3g} per FLOP)"
    else:
        because = (
            "the grown network's loss falls faster per FLOP by no more than the noise "
            f"({grown.mean():.3g} against {small.mean():.3g}, ahead by {ahead:.2g}{shown})"
        )
    after, following = _after_lost_trial(state, step, because)
    reason = f"Not yet at step {step}: {because}; {following}; {state.why}."
    return after, OnlineDecision(None, "trials", ahead, error, reason)


def _after_lost_trial(state: OnlineState, step: int, because: str) -> tuple[OnlineState, str]:
    """Return the state after a lost trial, and the next decision in words."""
    # the sources have trained to the trial's end
    following = _on_grid(max(2 * step, step + state.trial_steps), state.last_step, state.grid)
    state = dataclasses.replace(
        state, trials_left=state.trials_left - 1, trials_lost=state.trials_lost + 1, next_decision=following
    )
    if state.trials_left < 1:
        none, fixed = "no further trial can be paid", following
    elif not _fits(state, following):
        none, fixed = "no later trial fits into what is left", state.last_step
    else:
        return state, f"the next trial is at step {following}"
    why = f"{because} at step {step} and {none}; {state.why}"
    return dataclasses.replace(state, method="fixed", why=why, fixed_step=fixed, next_decision=fixed), none


def _fits(state: OnlineState, step: int) -> bool:
    """Return whether a trial at this step ends before the budget does, the trials lost so far paid."""
    left = 1 - step / state.last_step - state.trials_lost * state.trial_cost
    return step + state.trial_steps <= state.last_step and state.trial_cost <= left


def _on_grid(step: int, last_step: int, grid: int) -> int:
    """Return the first multiple of the grid at or after the step, the last step at most."""
    return min(-(-step // grid) * grid, last_step)


def _decided(state: OnlineState) -> OnlineState:
    return dataclasses.replace(state, next_decision=None)
