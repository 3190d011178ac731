r"""Losses at a budget and savings against the tuned scratch network, paired over seeds.

Curves are those of ``fusion_core.runs.compare``: validation loss against FLOPs with the sources paid, from the random start or
the last growth on, linear between evaluations. Evaluations are noisy and have plateaus, so every loss here is a running
minimum, of all arms alike: the loss of an arm A *at* F FLOPs is

.. math:: \ell_A(F) = \min_{f \le F} \text{curve}_A(f), \qquad C_A(\ell) = \min \{ F : \ell_A(F) \le \ell \}

its cost to *reach* a loss. With S the tuned scratch network (``tuned``), the saving of A at the budget B is

.. math:: 1 - \frac{C_A(\ell_S(B)) - c}{B}

* *paid*: c = 0, all sources are paid;
* *given*: c = the FLOPs of all nodes before the last growth;
* *side by side*: of sources that do not depend on each other the longest branch counts alone, as on several machines;
* *wall*, *wall side by side*: the same in seconds at each node's median pace, over those of S at B.

Seeds leave a plateau at different times, so that such savings scatter. ``saving_of_means`` is therefore given beside them: the
same of the curves that are averaged over seeds, with an interval by the jackknife over seeds.

An arm that does not reach the loss in the whole of its curve saves at most what its last point gives: that number stands in
the saving's place, and ``reached`` is false. An estimate over seeds of which some did not reach is therefore a mean of upper
bounds, without an interval, and says in how many seeds the loss was reached. Nothing is dropped. A saving is negative where
the loss is reached after the budget. An arm that is grown after the budget has no loss and no saving there.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from fusion_core.errors import InputError
from fusion_core.runs.compare import Arm, Nodes, arm_of, arms_of, seconds_of

SCRATCH = "scratch"  # how the names of the arms begin among which the tuned one is
SLACK = 0.02  # share of a budget by which an arm may end before it: budgets are whole numbers of dispatches
CONFIDENCE = 0.95
KINDS = ("paid", "given", "side_by_side", "wall", "wall_side_by_side")


@dataclasses.dataclass(frozen=True)
class Path:
    """An arm in one seed.

    Attributes:
      arm: its curve and its sources' costs.
      longest: FLOPs and seconds of the longest branch of its sources.
      devices: on which it trained, as far as they are known; seconds of different ones are not compared.
    """

    arm: Arm
    longest: tuple[float, float]
    devices: frozenset[str] = frozenset()

    @property
    def end(self) -> float:
        """FLOPs at its last evaluation, sources paid."""
        return self.arm.points[-1][0]

    def loss_at(self, flops: float) -> float | None:
        """Return the lowest loss up to these FLOPs; None if the curve begins later, or ends before 98 % of them."""
        points = self.arm.points
        if flops < points[0][0] or self.end < (1 - SLACK) * flops:
            return None
        lowest = points[0][2]
        for before, point in itertools.pairwise(points):
            if point[0] > flops:
                along = (flops - before[0]) / (point[0] - before[0])
                return min(lowest, before[2] + along * (point[2] - before[2]))
            lowest = min(lowest, point[2])
        return lowest

    def seconds_at(self, flops: float) -> float:
        """Return the seconds, sources included, when these FLOPs are spent."""
        points = self.arm.points
        for before, point in itertools.pairwise(points):
            if point[0] >= flops > before[0]:
                return before[1] + (flops - before[0]) / (point[0] - before[0]) * (point[1] - before[1])
        return points[0][1] if flops <= points[0][0] else points[-1][1]


Arms = Mapping[str, Mapping[str, Path]]  # name -> seed -> path


@dataclasses.dataclass(frozen=True)
class Saving:
    """What an arm saves in one seed, as shares of the budget; upper bounds if the loss is not reached, NaN if not known."""

    reached: bool
    paid: float
    given: float
    side_by_side: float
    wall: float
    wall_side_by_side: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number over seeds.

    Attributes:
      values: one a seed.
      reached: seeds in which the number is known and no bound.
      mean: of all; an upper bound if not all are reached.
      standard_error: None for fewer than two seeds.
      interval: Student's, 95 %; None for fewer than two seeds, or if not all are reached.
    """

    values: tuple[float, ...]
    reached: int
    mean: float
    standard_error: float | None
    interval: tuple[float, float] | None

    @property
    def complete(self) -> bool:
        """Whether no value is a bound."""
        return self.reached == len(self.values)


def paths_of(nodes: Nodes) -> dict[str, Path]:
    """Return the arms of one seed that were evaluated."""

    def longest(name: str) -> tuple[float, float]:
        node = nodes[name]
        before = [longest(source) for source in dict.fromkeys(node["inputs"])]
        flops, seconds = (max((b[i] for b in before), default=0.0) for i in (0, 1))
        return flops + float(node.get("flops", 0.0)), seconds + seconds_of(node)

    found = {}
    for name, last in arms_of(nodes).items():
        arm = arm_of(nodes, last)
        if arm.points:
            before = [longest(source) for source in dict.fromkeys(nodes[arm.chain[0]]["inputs"])]
            most = max((b[0] for b in before), default=0.0), max((b[1] for b in before), default=0.0)
            devices = (
                nodes[node].get("device") for node in (*arm.sources, *arm.chain) if nodes[node]["kind"] == "train"
            )
            found[name] = Path(arm, most, frozenset(filter(None, devices)))
    return found


def arms_over_seeds(seeds: Mapping[str, Nodes]) -> dict[str, dict[str, Path]]:
    """Return all arms, in the plan's order, each with its path in every seed."""
    found: dict[str, dict[str, Path]] = {}
    for seed, nodes in seeds.items():
        for name, path in paths_of(nodes).items():
            found.setdefault(name, {})[seed] = path
    return found


def tuned(arms: Arms, budget: float) -> str:
    """Return the scratch arm with the lowest mean loss at a budget: of every learning rate, with and without width factors.

    Arms with the most seeds are compared alone, so that a sweep in one seed does not beat a mean of three by luck. The choice
    is by the same seeds that it is then compared on, which favours scratch.

    Raises:
      InputError: no arm from scratch trains to the budget.
    """
    means: dict[str, float] = {}
    for name, seeds in arms.items():
        losses = [path.loss_at(budget) for path in seeds.values()] if name.startswith(SCRATCH) else []
        if losses and None not in losses:
            means[name] = statistics.fmean(loss for loss in losses if loss is not None)
    if not means:
        raise InputError(
            f"no arm whose name begins with {SCRATCH!r} trains to {budget:.3g} FLOPs; there are {', '.join(arms)}"
        )
    most = max(len(arms[name]) for name in means)
    return min((name for name in means if len(arms[name]) == most), key=lambda name: means[name])


def saving(path: Path, scratch: Path, budget: float) -> Saving | None:
    """Return what an arm saves against the scratch network of the same seed; the module has the equation.

    Returns:
      None if the arm is grown after the budget, or trains to less than the budget without reaching the loss.

    Raises:
      InputError: the scratch network does not train to the budget.
    """
    loss = scratch.loss_at(budget)
    if loss is None:
        raise InputError(f"the network from scratch trains to {scratch.end:.3g} FLOPs, less than {budget:.3g}")
    arm = path.arm
    found = arm.reach(loss)
    if arm.before[0] >= budget or (found is None and path.end < (1 - SLACK) * budget):
        return None
    flops, seconds = found or arm.points[-1][:2]
    one_device = len(path.devices | scratch.devices) <= 1
    whole = scratch.seconds_at(budget) if one_device else 0.0
    share = lambda cost, unit: 1 - cost / unit if unit > 0 else math.nan
    return Saving(
        reached=found is not None,
        paid=share(flops, budget),
        given=share(flops - arm.before[0], budget),
        side_by_side=share(flops - arm.before[0] + path.longest[0], budget),
        wall=share(seconds, whole),
        wall_side_by_side=share(seconds - arm.before[1] + path.longest[1], whole),
    )


def mean_path(paths: Sequence[Path]) -> Path:
    """Return the path whose losses are the means over seeds, at the evaluations of the first, as far as all go."""
    first = paths[0].arm
    begin, end = max(path.arm.points[0][0] for path in paths), min(path.end for path in paths)
    points = []
    for flops, seconds, _ in first.points:
        at = min(max(flops, begin), end)
        if at >= (1 - SLACK) * flops and flops >= (1 - SLACK) * begin:  # seeds differ by a dispatch at most
            points.append((flops, seconds, statistics.fmean(_raw(path, at) for path in paths)))
    mean = lambda pairs: tuple(statistics.fmean(part) for part in zip(*pairs, strict=True))
    before, longest = mean([p.arm.before for p in paths]), mean([p.longest for p in paths])
    arm = dataclasses.replace(first, points=tuple(points), before=(before[0], before[1]))
    return Path(arm, (longest[0], longest[1]), frozenset().union(*(path.devices for path in paths)))


def _raw(path: Path, flops: float) -> float:
    """Return the curve itself, not its running minimum."""
    points = path.arm.points
    return float(np.interp(flops, [p[0] for p in points], [p[2] for p in points]))


def saving_of_means(
    paths: Sequence[Path], scratch: Sequence[Path], budget: float, kind: str = "paid"
) -> tuple[float, bool, tuple[float, float] | None] | None:
    """Return what an arm saves by the curves averaged over seeds, whether it reaches the loss, and the jackknife's interval.

    .. math:: s^2 = \\frac{n-1}{n} \\sum_i (\\theta_{(i)} - \\bar\\theta)^2, \\qquad \\theta \\pm t_{n-1} s

    with the saving θ₍ᵢ₎ without seed i. There is no interval for one seed, or if the loss is not reached without some seed.

    Args:
      paths, scratch: of the same seeds, in one order.
      budget: FLOPs.
      kind: of ``KINDS``.

    Returns:
      None where ``saving`` is None.
    """
    whole = saving(mean_path(paths), mean_path(scratch), budget)
    if whole is None:
        return None
    value, count = float(getattr(whole, kind)), len(paths)
    without = [[*range(i), *range(i + 1, count)] for i in range(count)] if count > 1 else []
    left = [saving(mean_path([paths[i] for i in k]), mean_path([scratch[i] for i in k]), budget) for k in without]
    if not left or not whole.reached or any(one is None or not one.reached for one in left):
        return value, whole.reached, None
    parts = [float(getattr(one, kind)) for one in left]
    error = math.sqrt((count - 1) / count * math.fsum((part - statistics.fmean(parts)) ** 2 for part in parts))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return value, True, (value - half, value + half)


def estimate(values: Sequence[float], reached: int | None = None) -> Estimate | None:
    """Return mean, standard error and Student's interval of a value a seed; None if there are no values.

    Args:
      values: one a seed; NaN where a seed has none, which makes the whole estimate None.
      reached: number of values that are no bounds; if None, all.
    """
    if not len(values) or any(math.isnan(value) for value in values):
        return None
    count = len(values)
    reached = count if reached is None else reached
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else None
    interval = None
    if error is not None and reached == count:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
        interval = (mean - half, mean + half)
    return Estimate(tuple(values), reached, mean, error, interval)


def lead(small: Path, scratch: Path) -> list[tuple[float, float]]:
    """Return the lead of the small network over the large one from scratch, at each evaluation.

    .. math:: C_{scratch}(\\ell_{small}(F)) - F

    Returns:
      (F, lead) in FLOPs, as far as the scratch network reaches the small one's losses.
    """
    found = []
    for flops, _, _ in small.arm.points:
        loss = small.loss_at(flops)
        reached = None if loss is None else scratch.arm.reach(loss)
        if reached is not None:
            found.append((flops, reached[0] - flops))
    return found


def head_start(small: Path, scratch: Path) -> float:
    """Return the FLOPs at which the head-start rule grows: where the small network's lead is largest; 0 if it never leads."""
    leads = lead(small, scratch)
    flops, largest = max(leads, key=lambda point: point[1], default=(0.0, 0.0))
    return flops if largest > 0 else 0.0
