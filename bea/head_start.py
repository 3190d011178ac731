r"""The head start of a small network over the large one from scratch: its length, when to grow for it, whether it is kept.

Lengths are FLOPs in steps of the large network. With the curves :math:`\ell_s` of the small network and :math:`\ell` from
scratch, each averaged over its runs and made to fall (isotonic regression, since evaluations are noisy),

.. math:: T(\ell_s(n_1)) = \ell^{-1}(\ell_s(n_1)), \qquad \text{lead}(n_1) = T(\ell_s(n_1)) - n_1

If a grown network goes on as one from scratch at its loss, growing after :math:`n_1` ends at
:math:`\ell(B + \text{lead}(n_1))`: the best step is where the lead is largest, whatever the budget B, and no grown run is
needed to know it. There the small network's loss falls as much per FLOP as that of the large one at the same loss.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from bea.growth_law import Interval, interval_of

Curve = Float[np.ndarray, "_ 2"]  # (length, loss), lengths ascending

LEAST = 6  # points of a curve
AT_THE_END = 0.95  # a lead that is largest after this share of what is known still rises


@dataclasses.dataclass(frozen=True)
class HeadStart:
    """Where a small network leads the one from scratch by most.

    Attributes:
      step: the n1 of the largest lead, with the interval over draws of the runs; 0 where it never leads.
      lead: the lead there, in steps that growing saves.
      known: the n1 up to which the curves tell the lead: beyond it scratch did not come to the small network's loss.
      rising: whether the lead was largest at the end of what is known. The best step is then that one or a later one.
      grown, scratch, never: losses at the budget of growing there, of the large network from scratch and of the small one
        alone; NaN where the curves do not reach. Of growing, if the whole head start is kept.
    """

    step: Interval
    lead: Interval
    known: float
    rising: bool
    grown: Interval
    scratch: Interval
    never: Interval


def falling_mean(runs: Sequence[Curve]) -> Curve:
    """Return the mean curve of some runs on their common range, made to fall by isotonic regression.

    Raises:
      ValueError: a run has fewer than 6 points, is not finite, does not ascend in length or does not fall; or the runs have
        no range in common.
    """
    if not len(runs):
        raise ValueError("there is no run; give the curve of at least one")
    curves = [np.asarray(run, float) for run in runs]
    for curve in curves:
        if curve.ndim != 2 or curve.shape[1:] != (2,) or len(curve) < LEAST:
            raise ValueError(
                f"a curve has {len(curve)} points, but needs {LEAST} (length, loss) at least; evaluate more often"
            )
        if not np.isfinite(curve).all() or (np.diff(curve[:, 0]) <= 0).any() or (curve[:, 1] <= 0).any():
            raise ValueError(
                "a curve is not finite, its losses are not positive or its lengths do not ascend; leave it out"
            )
        half = len(curve) // 2
        if not curve[-half:, 1].mean() < curve[:half, 1].mean():
            raise ValueError(
                "a curve does not fall: its later half is no lower than its earlier one; train longer, or at a lower rate"
            )
    low, high = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    grid = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    grid = grid[(grid >= low) & (grid <= high)]
    if len(grid) < LEAST:
        raise ValueError("the curves have no range of lengths in common; give runs of one plan")
    mean = np.mean([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)
    return np.stack([grid, isotonic_regression(mean, increasing=False).x], axis=1)


def steps_to(curve: Curve, losses: Any) -> np.ndarray:
    """Return the lengths after which a falling curve first has the losses; NaN below its lowest, its first length above."""
    first = np.concatenate([[True], np.diff(curve[:, 1]) < 0])
    return np.asarray(np.interp(-np.asarray(losses, float), -curve[first, 1], curve[first, 0], right=math.nan))


def head_starts(grown: Curve, scratch: Curve) -> Curve:
    r"""Return (n2, head start) along a grown network's curve: :math:`T(L(n_1, n_2)) - n_2`, constant if it is kept.

    Args:
      grown: (n2, loss) since the growth, n2 = 0 first; smoothed by the caller if it is to be.
      scratch: a falling curve, of ``falling_mean``.
    """
    return np.stack([grown[:, 0], steps_to(scratch, grown[:, 1]) - grown[:, 0]], axis=1)


def kept_share(
    grown: Sequence[Curve],
    scratch: Sequence[Curve],
    *,
    since: float,
    until: float,
    draws: int = 200,
    seed: int = 0,
) -> Interval:
    r"""Return the share of its head start that a grown network has between two numbers of steps after the growth.

    .. math:: \frac{T(L(n_1, n_2)) - n_2}{T(L(n_1, 0))}, \qquad since \le n_2 \le until

    averaged over the steps, of the mean curves, which are made to fall (after the event for itself, where the loss may rise).

    Args:
      grown: (n2, loss) of each run grown at one n1, n2 = 0 first.
      scratch: a curve a run.
      since, until: large steps after the growth.
      draws: of the bootstrap over runs of both; with one run of each the interval is empty of meaning.
      seed: of its random numbers.

    Returns:
      the share; NaN where scratch did not come to the losses.

    Raises:
      ValueError: a curve is not one (``falling_mean``), or does not begin with its growth.
    """
    if any(len(run) == 0 or run[0][0] != 0 for run in grown):
        raise ValueError("the curve of a grown network has to begin at the growth, with n2 = 0; evaluate there")

    def share(runs: Sequence[Curve], references: Sequence[Curve]) -> float:
        reference = falling_mean(references)
        first = float(np.mean([run[0][1] for run in runs]))
        starts = head_starts(falling_mean([np.asarray(run, float)[1:] for run in runs]), reference)
        within = starts[(since <= starts[:, 0]) & (starts[:, 0] <= until), 1]
        within = within[np.isfinite(within)]
        return float(within.mean() / steps_to(reference, first)) if len(within) else math.nan

    random = np.random.default_rng(seed)
    draw = lambda runs: [runs[i] for i in random.integers(0, len(runs), len(runs))]
    samples = np.array([share(draw(grown), draw(scratch)) for _ in range(draws)])
    return interval_of(share(grown, scratch), samples[np.isfinite(samples)])


def head_start_step(
    small: Sequence[Curve],
    scratch: Sequence[Curve],
    budget: float,
    *,
    kept: float = 1.0,
    draws: int = 200,
    seed: int = 0,
) -> HeadStart:
    """Return where to grow within a budget, from curves of the small network and from scratch alone.

    Args:
      small, scratch: a curve a run; lengths in large steps' FLOPs.
      budget: the whole, in the same unit.
      kept: the share of the head start that a grown network keeps; 1 if nothing is known.
      draws: of the bootstrap over runs; with one run of each the intervals are empty of meaning.
      seed: of its random numbers.

    Raises:
      ValueError: a curve is not one (``falling_mean``), the curves have no losses in common, or the budget or the share is
        not positive and finite.

    Source: theory.md, (6.3).
    """
    for name, value in (("budget", budget), ("kept share", kept)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the {name} is {value!r}, but has to be positive and finite")
    means = falling_mean(small), falling_mean(scratch)
    found = _rule(*means, budget, kept)
    if found is None:
        raise ValueError("the curves have no losses in common; train the large network from scratch for longer")
    random = np.random.default_rng(seed)
    draw = lambda runs: falling_mean([runs[i] for i in random.integers(0, len(runs), len(runs))])
    drawn = [_rule(draw(small), draw(scratch), budget, kept) for _ in range(draws)]
    interval = lambda field: _interval([getattr(one, field) for one in (found, *drawn) if one is not None])
    numbers = {field: interval(field) for field in ("step", "lead", "grown", "scratch", "never")}
    return HeadStart(**numbers, known=found.known, rising=found.rising)


class _Rule(NamedTuple):
    """The numbers of ``HeadStart`` without intervals."""

    step: float
    lead: float
    grown: float
    scratch: float
    never: float
    known: float
    rising: bool


def _interval(values: Sequence[float]) -> Interval:
    """Return the first of some values with the quantiles of those of the others that are known."""
    rest = np.asarray(values[1:], float)
    return interval_of(values[0], rest[np.isfinite(rest)])


def _rule(small: Curve, scratch: Curve, budget: float, kept: float) -> _Rule | None:
    """Return what the rule says of two falling curves; None if they have no losses in common."""
    begin = max(small[0, 0], 1e-9)
    n1 = np.linspace(begin, min(budget, small[-1, 0]), 401)
    leads = kept * steps_to(scratch, np.interp(n1, *small.T)) - n1
    known = np.flatnonzero(np.isfinite(leads))
    if not len(known):
        return None
    n1, leads = n1[known], leads[known]
    best = int(leads.argmax())
    step, lead = (float(n1[best]), float(leads[best])) if leads[best] > 0 else (0.0, 0.0)
    at = lambda curve, length: float(np.interp(length, curve[:, 0], curve[:, 1], left=math.nan, right=math.nan))
    rising = bool(best >= AT_THE_END * (len(n1) - 1) and n1[-1] < budget * (1 - 1e-9))
    return _Rule(step, lead, at(scratch, budget + lead), at(scratch, budget), at(small, budget), float(n1[-1]), rising)
