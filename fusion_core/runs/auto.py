"""The online rule at the wheel: sources are trained, and growing is tried, until it has decided when to grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusion_core.schedule.trials import OnlineGrowth, Trial


def follow_rule(
    growth: OnlineGrowth,
    *,
    train_sources: Callable[[int], Any],
    source_losses: Callable[[Trial, int], Sequence[Sequence[float]]],
    try_growing: Callable[[Trial], np.ndarray],
    told: Callable[[OnlineGrowth], None],
) -> OnlineGrowth:
    """Asks the rule, and does what it wants to know, until it has decided. Can be cut off anywhere and called again.

    Args:
      growth: the rule's state.
      train_sources: trains all sources to a step; no work where they have been there.
      source_losses: at a step of a trial, each source's losses on the trial's fresh batches, [sources][batches].
      try_growing: the grown network's losses at a trial's half and end, [2, batches].
      told: is given every new state of the rule, to be saved.
    """
    while (look := growth.next_look) is not None:
        trial = growth.trial
        if trial is None:
            train_sources(look)
            growth = growth.ask(look)
        else:
            train_sources(trial.small_end)
            small = np.asarray([source_losses(trial, at) for at in (trial.small_half, trial.small_end)])
            growth = growth.ask(look, small=small, grown=try_growing(trial))
        told(growth)
    return growth


def stops_of(growth: OnlineGrowth) -> set[int]:
    """Steps of the sources whose states the rule wants, has wanted, or has decided on."""
    wanted: set[int] = set()
    for trial in (*map(growth.trial_at, growth.trials), growth.trial):
        if trial is not None:
            wanted |= {trial.step, trial.small_half, trial.small_end}
    return wanted | {step for step in (growth.next_look, growth.step) if step is not None}
