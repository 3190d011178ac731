"""How many steps one training curve is behind another: what theory predicts of noise (``bea.Separation.steps_gained``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusion_core.errors import InputError

Curve = Sequence[Sequence[float]]  # (step, loss), by step
POINTS = 20


class Shift(NamedTuple):
    """By how much one curve is behind another.

    Attributes:
      losses: losses that both curves reach after their first point, falling, (points,).
      steps: steps that the first curve needs more than the second to reach each of them, (points,).
    """

    losses: np.ndarray
    steps: np.ndarray

    @property
    def median(self) -> float:
        """Median of the steps over the losses."""
        return float(np.median(self.steps))


def steps_to(curve: Curve, losses: np.ndarray) -> np.ndarray:
    """Return the steps at which a curve first is as low as each of the losses, linear between its points; NaN if never."""
    steps, values = np.asarray(curve, np.float64).T
    lowest = np.minimum.accumulate(values)
    new = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    return np.interp(-np.asarray(losses), -lowest[new], steps[new], left=steps[0], right=np.nan)


def curve_shift(behind: Curve, ahead: Curve, points: int = POINTS) -> Shift:
    """Return how many steps later the first curve reaches the losses that both reach.

    Args:
      behind, ahead: (step, loss) by step; both count steps from the same event.
      points: number of losses, equally spaced from the lower of the two first ones to the higher of the two lowest.

    Raises:
      InputError: the curves have no common range of losses, or fewer than two points.
    """
    curves = [np.asarray(curve, np.float64) for curve in (behind, ahead)]
    if any(curve.ndim != 2 or len(curve) < 2 for curve in curves):
        raise InputError("a curve has fewer than two points; a shift needs two (step, loss) pairs at least")
    top, bottom = min(curve[0, 1] for curve in curves), max(curve[:, 1].min() for curve in curves)
    if not bottom < top:
        raise InputError(f"the curves have no losses in common: one begins at {top:.4g}, one ends at {bottom:.4g}")
    losses = np.linspace(top, bottom, points + 1)[1:]
    return Shift(losses, steps_to(behind, losses) - steps_to(ahead, losses))


def measured_delays(seeds: Mapping[str, Mapping[str, Any]], behind: str, ahead: str) -> dict[str, Shift]:
    """Return the shift between two nodes of a record, for every seed that has both.

    Args:
      seeds: ``Record.seeds``.
      behind, ahead: names of two nodes that go on from growths at one step, such as ``noise_0p1`` and ``velocity_fuse``.
    """
    pairs = {
        seed: [nodes.get(name, {}).get("validation_loss") for name in (behind, ahead)] for seed, nodes in seeds.items()
    }
    return {seed: curve_shift(*pair) for seed, pair in pairs.items() if all(pair)}
