"""Where a curve of the loss has left its plateau: from there on a power law with a floor can bend around it."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bea.head_start import Curve

WINDOW = 0.35  # points that far around in log length have a part in the slope at one
LEAST = 5  # points of a slope
RISE = 1 / 3  # of the steepest slope: a later slope that is steeper by this much follows a plateau
STEEP = 0.9  # of the steepest slope after the plateau: where it is reached the plateau has ended
SPAN = 0.25  # log length that has to follow


def slopes(curve: Curve) -> Float[np.ndarray, " points"]:
    r"""Return the slopes :math:`-d \log \ell / d \log n` by least squares in a window; NaN where it has too few points."""
    x, y = np.log(np.asarray(curve, float)).T
    found = np.full(len(x), np.nan)
    for i, at in enumerate(x):
        near = np.abs(x - at) <= WINDOW
        if near.sum() >= LEAST and np.ptp(x[near]) > WINDOW / 2:
            found[i] = -np.polyfit(x[near] - at, y[near], 1)[0]
    return found


def plateau_end(runs: Sequence[Curve]) -> tuple[float, float]:
    r"""Return the length and the loss at which the mean curve of some runs has left its plateau; (0, inf) without one.

    Of a power law :math:`E + A n^{-b}` with E ≥ 0 the slope in logarithms never steepens with n. Where a curve's does, by more
    than a third of its steepest slope, it has stood on a plateau. It has left it where the slope after the flattest place
    first is at 0.9 of the steepest one from there on.

    Args:
      runs: a curve a run; points of length 0 are left out.

    Raises:
      ValueError: less than a factor of 1.28 in length follows: the curve has not been seen to bend.
    """
    curves = [np.asarray(run, float)[np.asarray(run)[:, 0] > 0] for run in runs]
    if not all(len(curve) for curve in curves) or not curves:
        return 0.0, math.inf
    low, high = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    grid = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    grid = grid[(grid >= low) & (grid <= high)]
    if not len(grid):
        return 0.0, math.inf
    mean = np.stack([grid, np.mean([np.interp(grid, *curve.T) for curve in curves], axis=0)], axis=1)
    steep = slopes(mean)
    mean, steep = mean[np.isfinite(steep)], steep[np.isfinite(steep)]
    if not len(steep):
        return 0.0, math.inf
    rises = np.maximum.accumulate(steep[::-1])[::-1] - steep
    flattest = int(rises.argmax())
    if rises[flattest] <= RISE * steep.max():
        return 0.0, math.inf
    after = steep[flattest:]
    end = flattest + int(np.argmax(after >= STEEP * after.max()))
    length, loss = mean[end]
    if math.log(high / length) < SPAN:
        raise ValueError(
            f"it leaves its plateau at {length:,.0f} steps or later and is known to {high:,.0f}; train it to "
            f"{math.exp(SPAN) * length:,.0f} at least"
        )
    return float(length), float(loss)
