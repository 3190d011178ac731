"""The rule by which runs decide when to grow: trials of growing, while the sources train."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import bea
from fusion_core.checked import checked
from fusion_core.errors import InputError
from fusion_core.schedule.decision import GrowthDecision, Params, rate_sentence
from fusion_core.sealed import read_sealed, write_sealed


class Trial(NamedTuple):
    """Steps of a trial of growing; the losses of both sides are measured at ``*_half`` and ``*_end``.

    The sources train on for the trial's FLOPs, as they would anyway; the grown network starts at ``step``, fused from them.
    """

    step: int
    small_half: int
    small_end: int
    grown_half: int
    grown_end: int


@dataclasses.dataclass(frozen=True)
class TrialRule:
    """State of the rule in a run: that of ``bea.online_growth_step``, with what a trial is and costs here.

    A value: ``decide`` returns the next one. ``follow_rule`` trains what it needs, and can be interrupted anywhere. The
    grown network of a trial that wins is trained on; one that loses costs ``trial_cost`` of the budget, and ``lost_flops``
    is to be taken off what is left after growing. Source: theory.md, section 6.

    Attributes:
      state: state of ``bea``'s rule.
      sources: number of sources.
      small_flops: FLOPs of a training step of one source.
      grown_flops: FLOPs of a training step of the grown network.
      total_flops: the budget.
      trial_steps: steps of the grown network in a trial.
      decisions: all decisions so far.
      trials: small steps at which there were trials.
      before: a sentence on the rule that was asked before this one; may be empty.
      by_other: whether another rule has decided (``settled``).
    """

    state: bea.OnlineState
    sources: int
    small_flops: float
    grown_flops: float
    total_flops: float
    trial_steps: int
    decisions: tuple[bea.OnlineDecision, ...] = ()
    trials: tuple[int, ...] = ()
    before: str = ""
    by_other: bool = False

    @classmethod
    def start(
        cls,
        *,
        sources: int,
        small_flops: float,
        grown_flops: float,
        total_flops: float,
        batches: int,
        dispatch: int = 1,
        trial_share: float = 0.04,
        cost_limit: float = 0.05,
    ) -> TrialRule:
        """Return the rule before the first step.

        Args:
          sources, small_flops, grown_flops, total_flops: see the class.
          batches: fresh batches that the losses of a trial are measured on, at least 2.
          dispatch: steps per dispatch; all steps are multiples of it.
          trial_share: share of the budget for the grown network of a trial; rounded to two dispatches, at least one for
            each half.
          cost_limit: share of the budget that lost trials may cost.

        Raises:
          InputError: a count is too small, FLOPs are not positive and finite, the budget pays for no dispatch, or
            trial_share is not between 0 and 1.
          ValueError: cost_limit is not between 0 and 1.
        """
        for name, count, least in (("sources", sources, 1), ("batches", batches, 2), ("dispatch", dispatch, 1)):
            if count < least:
                raise InputError(f"{name} is {count}; it must be at least {least}")
        for name, flops in (("small", small_flops), ("grown", grown_flops), ("total", total_flops)):
            if not (math.isfinite(flops) and flops > 0):
                raise InputError(f"{name}_flops is {flops}; FLOPs are positive and finite")
        if not 0 < trial_share < 1:
            raise InputError(f"the trial's share of the budget is {trial_share}; it must lie between 0 and 1")
        small = sources * small_flops
        last_step = int(total_flops / small) // dispatch * dispatch
        if last_step < 1:
            raise InputError(f"a budget of {total_flops:.3g} FLOPs pays for no dispatch of {dispatch} small steps")
        run_gradients = total_flops / grown_flops
        half = max(1, round(trial_share * run_gradients / (2 * dispatch))) * dispatch
        small_half = max(1, round(half * grown_flops / small / dispatch)) * dispatch
        # both networks at both times, forward only, which is a third of a gradient
        evaluation = 2 * batches * (1 + small / grown_flops) / 3
        state = bea.start_online(
            last_step,
            run_gradients=run_gradients,
            trial_gradients=2 * half + evaluation,
            trial_steps=2 * small_half,
            grid=dispatch,
            cost_limit=cost_limit,
        )
        return cls(state, sources, small_flops, grown_flops, total_flops, trial_steps=2 * half)

    @property
    def next_decision(self) -> int | None:
        """The small step of the next decision; None if nothing is left to decide."""
        return self.state.next_decision

    @property
    def trial(self) -> Trial | None:
        """The trial that the next decision needs; None if it needs none."""
        step = self.next_decision
        return None if step is None or self.state.method == "fixed" else self.trial_at(step)

    def trial_at(self, step: int) -> Trial:
        """Return the trial of growing at this step."""
        small = self.state.trial_steps
        return Trial(step, step + small // 2, step + small, step + self.trial_steps // 2, step + self.trial_steps)

    @property
    def step(self) -> int | None:
        """The small step at which to grow; None if it is not decided, or (with ``next_decision`` None) never."""
        return self.decisions[-1].step if self.decisions else None

    @property
    def kept(self) -> Trial | None:
        """The trial that won: the grown network is trained on from its end."""
        return self.trial_at(self.step) if self.step is not None and self.step in self.trials else None

    @property
    def lost_trials(self) -> tuple[int, ...]:
        """Small steps at which trials were lost."""
        return tuple(step for step in self.trials if step != self.step)

    @property
    def lost_flops(self) -> float:
        """FLOPs of the lost trials, their evaluations included."""
        return len(self.lost_trials) * self.state.trial_cost * self.total_flops

    @property
    def reason(self) -> str:
        """The reason of the last decision, or, before any, what the limit pays for."""
        reason = self.decisions[-1].reason if self.decisions else f"Nothing is decided yet: {self.state.why}."
        return f"{self.before} {reason}".lstrip()

    def settled(self, step: int | None, reason: str) -> TrialRule:
        """Return the rule with the decision of another one in the place of its own: no trials."""
        decision = bea.OnlineDecision(step, "fixed", 0.0, math.nan, reason)
        return dataclasses.replace(
            self, state=dataclasses.replace(self.state, next_decision=None), decisions=(decision,), by_other=True
        )

    def decide(
        self,
        step: int,
        *,
        small: Float[np.ndarray, "2 sources batches"] | None = None,
        grown: Float[np.ndarray, "2 batches"] | None = None,
    ) -> TrialRule:
        r"""Return the rule after the decision at a step, which is ``decisions[-1]``.

        The rates it compares are, for each batch, ``(log L(half) − log L(end)) / FLOPs`` over the second half of the trial,
        the sources' log losses averaged.

        Args:
          step: ``next_decision``.
          small, grown: mean losses on fresh batches, first at the trial's half, then at its end; the same batches for all,
            neither those of any update nor of the validation that judges the run. None if ``trial`` is None.

        Raises:
          InputError: it is not the next step, or the losses are missing, not needed, of other shapes, or not positive and
            finite.
        """
        if step != self.next_decision:
            raise InputError(f"the rule decides at step {self.next_decision} next, not at {step}")
        trial = self.trial
        if trial is None:
            if small is not None or grown is not None:
                raise InputError(f"at step {step} the rule needs no losses")
            state, decision = bea.online_growth_step(self.state, step)
        else:
            if small is None or grown is None:
                raise InputError(f"at step {step} the rule needs the losses of a trial")
            state, decision = bea.online_growth_step(self.state, step, rates=self._rates(trial, small, grown))
        return dataclasses.replace(
            self,
            state=state,
            decisions=(*self.decisions, decision),
            trials=self.trials if trial is None else (*self.trials, step),
        )

    def decision(self, learning_rate: float, factors: Params) -> GrowthDecision:
        """Return what is decided; the rates after growth are the sources' times the factors of ``rate_factors``."""
        reason = self.reason if self.step is None else f"{self.reason} {rate_sentence(learning_rate, factors)}"
        return GrowthDecision.of("online", self.step, reason, learning_rate, factors)

    def save(self, path: pathlib.Path) -> None:
        """Write the rule as JSON."""
        fields = dataclasses.asdict(self)
        for decision in fields["decisions"]:  # JSON has no nan
            decision |= {k: None for k, v in decision.items() if isinstance(v, float) and math.isnan(v)}
        write_sealed(path, fields)

    @classmethod
    def load(cls, path: pathlib.Path) -> TrialRule:
        """Read a rule.

        Raises:
          InputError: the file is missing, or holds something else.
        """
        try:
            fields = read_sealed(path, "start a new run")
            numbers = [
                {k: math.nan if v is None and k != "step" else v for k, v in d.items()} for d in fields["decisions"]
            ]
            return checked(cls, fields | {"decisions": numbers})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is no state of the rule of trials ({error}); start a new run") from None

    def _rates(self, trial: Trial, small: np.ndarray, grown: np.ndarray) -> tuple[list[float], list[float]]:
        if small.shape[1:2] != (self.sources,) or small.shape[::2] != grown.shape or len(grown) != 2:
            raise InputError(
                f"losses have shapes {small.shape} and {grown.shape}, but should have (2, {self.sources}, batches) and "
                "(2, batches)"
            )
        if not all(np.isfinite(a).all() and (a > 0).all() for a in (small, grown)):
            raise InputError(f"a loss of the trial at step {trial.step} is not positive and finite")
        logs = np.log(small).mean(axis=1), np.log(grown)
        flops = (
            (trial.small_end - trial.small_half) * self.sources * self.small_flops,
            (trial.grown_end - trial.grown_half) * self.grown_flops,
        )
        before, after = ([float(v) for v in (log[0] - log[1]) / f] for log, f in zip(logs, flops, strict=True))
        return before, after


def follow_rule(
    rule: TrialRule,
    *,
    train_sources: Callable[[int], Any],
    source_losses: Callable[[Trial, int], Sequence[Sequence[float]]],
    grown_losses: Callable[[Trial], np.ndarray],
    save: Callable[[TrialRule], None],
) -> TrialRule:
    """Train the sources and the rule's trials until it has decided. Can be interrupted anywhere and called again.

    Args:
      rule: as it was saved last.
      train_sources: train all sources to a step; do nothing if they have been there.
      source_losses: return each source's losses on the trial's fresh batches at a step of it, [sources][batches].
      grown_losses: train the grown network of a trial; return its losses at the trial's half and end, [2, batches].
      save: keep the rule, after every decision.
    """
    while (step := rule.next_decision) is not None:
        trial = rule.trial
        if trial is None:
            train_sources(step)
            rule = rule.decide(step)
        else:
            train_sources(trial.small_end)
            small = np.asarray([source_losses(trial, at) for at in (trial.small_half, trial.small_end)])
            rule = rule.decide(step, small=small, grown=grown_losses(trial))
        save(rule)
    return rule


def stops_of(rule: TrialRule) -> set[int]:
    """Return the steps at which the sources' states are needed: for trials, the next decision, or the growth."""
    stops = {step for step in (rule.next_decision, rule.step) if step is not None}
    for trial in (*map(rule.trial_at, rule.trials), rule.trial):
        if trial is not None:
            stops |= {trial.step, trial.small_half, trial.small_end}
    return stops
