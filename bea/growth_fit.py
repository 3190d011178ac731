"""Laws of the loss after growth, fitted to curves by a robust least squares with a bootstrap; ``growth_law`` has the laws."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import least_squares

from bea.growth_law import GROWTH_LAWS, RANGES, Array, GrowthLaw, Range, scaled_loss

SOFT = 0.01  # scale of the soft L1 loss, in log loss: beyond it a point counts by its distance, not its square
SPARE = 3  # points more than parameters
AFTER = (0.5, 0.3)  # parts of the log length, from the first point on, that come after a shorter fit and judge it


def fit_growth_law(
    kind: str,
    n1: Sequence[float] | Array,
    n2: Sequence[float] | Array,
    loss: Sequence[float] | Array,
    run: Sequence[int] | Array,
    *,
    draws: int = 100,
    seed: int = 0,
    logarithmic: bool = True,
) -> GrowthLaw:
    r"""Fit a law by least squares with soft L1 losses; intervals by a bootstrap over whole runs.

    .. math:: \min_\theta \sum_i \rho((\log L_\theta(n_{1i}, n_{2i}) - \log \ell_i) / 0.01), \qquad
              \rho(r) = 2(\sqrt{1 + r^2} - 1)

    Points of one run (one curve of one seed) share their luck, so a draw takes or leaves them together; runs of scratch, of
    the small network and grown ones are drawn apart. With one run of each the draws are equal and the intervals empty of
    meaning: give several seeds.

    Args:
      kind: which law; ``"curves"`` alone needs no grown run.
      n1, n2, loss, run: of each point: lengths in large steps' FLOPs, validation loss, number of its run. The points before
        a plateau that the law cannot bend around are better left out. Points with n1 = n2 = 0 are left out here.
      draws: of the bootstrap.
      seed: of its random numbers.
      logarithmic: whether residuals are of log losses, or else of losses over the lowest one.

    Raises:
      ValueError: lengths or losses are not finite or have the wrong sign, the points are too few or of too few growth
        steps, or curves do not fall.

    Source: theory.md, (6.3).
    """
    rows, labels = _checked(kind, n1, n2, loss, run)
    unit, level = float((rows[:, 0] + rows[:, 1]).max()), float(rows[:, 2].min())
    u1, u2, target = rows[:, 0] / unit, rows[:, 1] / unit, rows[:, 2] / level
    parts = [u1 == 0, u2 == 0, (u1 > 0) & (u2 > 0)]
    ranges = RANGES[kind]
    low, high = (np.array([r[i] for r in ranges], float) for i in (1, 2))
    names = [name for name, *_ in ranges]
    if kind == "curves" and not parts[2].any():
        low[names.index("k")], high[names.index("k")] = 1 - 1e-9, 1 + 1e-9
    change: Callable[[Array], Array] = np.log if logarithmic else lambda values: values

    def fit(start: Array, which: Array) -> tuple[float, Array]:
        residual = lambda theta: change(scaled_loss(kind, theta, u1[which], u2[which])) - change(target[which])
        start = np.clip(start, low + 1e-10 * (high - low), high - 1e-10 * (high - low))
        done = least_squares(residual, start, bounds=(low, high), loss="soft_l1", f_scale=SOFT, max_nfev=400)
        return float(done.cost), done.x

    everything = np.arange(len(rows))
    theta = min((fit(start, everything) for start in _starts(ranges)), key=lambda pair: pair[0])[1]
    random = np.random.default_rng(seed)
    groups = [np.unique(labels[part]) for part in parts]
    members = {name: np.flatnonzero(labels == name) for name in np.unique(labels)}
    taken = lambda: [random.choice(group, len(group)) for group in groups if len(group)]
    samples = [fit(theta, np.concatenate([members[i] for drawn in taken() for i in drawn]))[1] for _ in range(draws)]
    shorter, errors = [], [math.nan]
    first = max(float((u1 + u2)[part].min()) for part in parts if part.any())
    for length in (first**share for share in AFTER):
        before = np.flatnonzero(u1 + u2 <= length)
        after = np.flatnonzero(u1 + u2 > (1 + length) / 2)
        if _reason(kind, rows[before]) is None and len(after):
            found = fit(theta, before)[1]
            error = np.log(scaled_loss(kind, found, u1[after], u2[after])) - np.log(target[after])
            shorter.append(found)
            errors.append(float(np.sqrt(np.mean(error**2))) / math.log2(float((u1 + u2)[after].mean()) / length))
    drift = float(np.nanmax(errors)) if shorter else math.nan
    scatter = float(np.sqrt(np.mean((np.log(scaled_loss(kind, theta, u1, u2)) - np.log(target)) ** 2)))
    return GrowthLaw(
        kind, unit, level, theta, np.reshape(samples, (-1, len(theta))), np.reshape(shorter, (-1, len(theta))), drift,
        scatter, len(rows), len(members),
        (bool(parts[0].any()), bool(parts[1].any()), bool(parts[2].any())),
    )  # fmt: skip


def _starts(ranges: Sequence[Range]) -> list[Array]:
    """Return the points that the fit starts from."""
    first = np.array([r[3][0] for r in ranges])
    starts = [first]
    for i, (*_, values) in enumerate(ranges):
        for other in values[1:]:
            starts += [np.where(np.arange(len(first)) == i, other, start) for start in starts]
    return starts[:8]


def _checked(
    kind: str, n1: Any, n2: Any, loss: Any, run: Any
) -> tuple[Float[Array, "points 3"], Int[Array, " points"]]:
    """Return the points (n1, n2, loss) that can be fitted, and their runs."""
    if kind not in RANGES:
        raise ValueError(f"there is no law {kind!r}; choose one of {', '.join(GROWTH_LAWS)}")
    columns = [np.asarray(column, float) for column in (n1, n2, loss)]
    labels = np.asarray(run)
    if any(column.shape != labels.shape or column.ndim != 1 for column in columns):
        raise ValueError("n1, n2, loss and run have to be rows of equal length")
    rows = np.stack(columns, axis=1) if labels.size else np.empty((0, 3))
    if not np.isfinite(rows).all() or (rows[:, :2] < 0).any() or (rows[:, 2] <= 0).any():
        raise ValueError("a length is negative, or a loss is not positive and finite; leave out runs that diverged")
    kept = rows[:, 0] + rows[:, 1] > 0
    rows, labels = rows[kept], labels[kept]
    scratch, small = rows[:, 0] == 0, rows[:, 1] == 0
    grown = ~scratch & ~small
    if reason := _reason(kind, rows):
        raise ValueError(reason)
    parts = {"scratch": scratch, "the small network": small, "grown networks": grown}
    for name, part in parts.items():
        fallen = [_falls(rows[part & (labels == one)]) for one in np.unique(labels[part])]
        if fallen and sum(fallen) <= len(fallen) / 2:
            raise ValueError(
                f"curves of {name} do not fall in {len(fallen) - sum(fallen)} of {len(fallen)} runs; train longer, or at "
                "a lower rate"
            )
    return rows, labels


def _reason(kind: str, rows: Float[Array, "points 3"]) -> str | None:
    """Return why the points are too few for a law; None if they are enough."""
    scratch, small = rows[:, 0] == 0, rows[:, 1] == 0
    grown = ~scratch & ~small
    steps = len(np.unique(rows[grown, 0]))
    if kind == "curves" and not (scratch.any() and small.any()):
        return "the law of curves needs a curve from scratch and one of the small network; train both"
    if kind != "curves" and steps < 3:
        return f"the law {kind} needs runs grown at 3 steps or more, there are {steps}; grow at more steps"
    needed = len(RANGES[kind]) - 3 * sum(kind == "two_stage" and not part.any() for part in (scratch, small)) + SPARE
    if len(rows) < needed:
        return f"the law {kind} needs {needed} points or more, there are {len(rows)}; evaluate more often"
    for name, part in (("scratch", scratch), ("the small network", small)):
        if 0 < part.sum() < 3 + SPARE:
            return f"there are {part.sum()} points of {name}, but a fit needs {3 + SPARE}; evaluate more often"
    return None


def _falls(points: Float[Array, "points 3"]) -> bool:
    """Return whether the later half of a run has a lower mean loss than the earlier one; a single point does."""
    losses = points[np.argsort(points[:, 0] + points[:, 1]), 2]
    half = len(losses) // 2
    return half == 0 or bool(losses[-half:].mean() < losses[:half].mean())
