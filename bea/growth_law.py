r"""Laws of the loss after growth, fitted to short runs, and what they forecast at a budget.

All lengths are FLOPs in steps of the large network: :math:`n_1` was spent on the small one, :math:`n_2` after the growth;
:math:`n_1 = 0` is the large network from scratch, :math:`n_2 = 0` the small one alone. Three laws:

* ``"head_start"``: a grown network goes on as one from scratch that is :math:`s n_1^p` steps old,

  .. math:: L(n_1, n_2) = E + A (n_2 + s n_1^p)^{-b}

* ``"curves"``: its age is the share k of the steps that scratch takes to the small network's loss, so that no grown run is
  needed (then k = 1). With equal floors it is the law above, with :math:`p = b_s / b` and :math:`s = (A / A_s)^{1/b}`,

  .. math:: L(n_1, n_2) = \ell(n_2 + k\,\ell^{-1}(\ell_s(n_1))), \quad \ell(n) = E + A n^{-b}, \quad
            \ell_s(n) = E_s + A_s n^{-b_s}, \quad E_s \ge E

* ``"two_stage"``: :math:`L(n_1, n_2) = E + A n_1^{-a} n_2^{-b + c \log n_1}` (Liew & Kato 2025, arXiv 2510.06548), with
  power laws of their own for scratch and for the small network.

Nothing here knows networks: it sees curves alone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import least_squares

Kind = Literal["head_start", "curves", "two_stage"]
Array = np.ndarray

SOFT = 0.01  # scale of the soft L1 loss, in log loss: beyond it a point counts by its distance, not its square
CONFIDENCE = 0.95
SPARE = 3  # points more than parameters
GRID = 200  # shares of a budget among which the best one is searched

# per law: names of the parameters that are fitted, lowest and highest value, starts; losses D and steps are in units of the
# data: D is the part above the floor at the longest run of N steps, h the head start of n1 = N in units of N
_Range = tuple[str, float, float, tuple[float, ...]]
_POWER: tuple[_Range, ...] = (("floor", 0.0, 0.999, (0.4, 0.8)), ("log_D", -9.0, 3.0, (-1.0,)), ("log_b", -4.0, 1.5, (-1.0,)))
_SMALL: tuple[_Range, ...] = (
    ("extra", 0.0, 2.0, (0.01,)),
    ("log_Ds", -9.0, 3.0, (-1.0,)),
    ("log_bs", -4.0, 1.5, (-1.0,)),
)
_RANGES: dict[Kind, tuple[_Range, ...]] = {
    "head_start": (*_POWER, ("log_h", -4.0, 4.0, (0.5,)), ("log_p", -2.3, 1.6, (0.0, 0.4))),
    "curves": (*_POWER, *_SMALL, ("k", 0.0, 3.0, (1.0,))),
    "two_stage": (
        *_POWER,
        ("a", -1.0, 4.0, (0.2,)),
        ("c", -2.0, 2.0, (0.0,)),
        *((f"scratch_{name}", *rest) for name, *rest in _POWER),  # type: ignore[misc]
        *((f"small_{name}", *rest) for name, *rest in _POWER),  # type: ignore[misc]
    ),
}
KINDS: tuple[Kind, ...] = tuple(_RANGES)


class Interval(NamedTuple):
    """A number with its 95 % interval over the bootstrap's draws."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class GrowthForecast:
    """What a law says of a budget; all lengths in large steps' FLOPs.

    Attributes:
      budget, now: the budget, and what the small network has been given so far.
      scratch, never: losses of the large network from scratch and of the small one with the whole budget; None if the law
        was fitted without such a curve.
      grow_now, grow_best: losses of growing now, and at the best step from now on.
      share: the best step as a share of the budget; each draw has its own.
      beats: shares of the draws in which growing at best ends below (scratch, never); NaN where one is None.
      stretch: the budget over the longest run of the fit.
    """

    budget: float
    now: float
    scratch: Interval | None
    never: Interval | None
    grow_now: Interval
    grow_best: Interval
    share: Interval
    beats: tuple[float, float]
    stretch: float


@dataclasses.dataclass(frozen=True)
class GrowthLaw:
    """A fitted law: a value that can be saved.

    Attributes:
      kind: which law.
      unit: N, the steps of the longest run of the fit.
      level: unit of losses, the lowest loss of the fit.
      theta: fitted parameters, in the order of ``names``, in units of the data.
      draws: the same for each draw of the bootstrap, [draws, parameters].
      scatter: root mean square of the residuals in log loss.
      points, runs: how many of them were fitted.
      has: whether curves of (scratch, the small one, grown ones) were among them.
    """

    kind: Kind
    unit: float
    level: float
    theta: Float[Array, " parameters"]
    draws: Float[Array, "draws parameters"]
    scatter: float
    points: int
    runs: int
    has: tuple[bool, bool, bool]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of ``theta``."""
        return tuple(name for name, *_ in _RANGES[self.kind])

    def parameters(self, theta: Array | None = None) -> dict[str, float]:
        """Return the parameters of the module's equations, lengths in large steps; of a draw, if ``theta`` is one."""
        values = dict(zip(self.names, np.asarray(self.theta if theta is None else theta, float), strict=True))
        log, level = math.log(self.unit), self.level
        E, D, b = values["floor"] * level, math.exp(values["log_D"]) * level, math.exp(values["log_b"])
        if self.kind == "two_stage":
            c = values["c"]
            a, b = values["a"] + c * log, b + c * log
            return {"E": E, "A": D * math.exp((a + b - c * log) * log), "a": a, "b": b, "c": c}
        found = {"E": E, "A": D * math.exp(b * log), "b": b}
        if self.kind == "head_start":
            p = math.exp(values["log_p"])
            return {**found, "s": math.exp(values["log_h"] + (1 - p) * log), "p": p}
        bs = math.exp(values["log_bs"])
        small = {"E_s": E + values["extra"] * level, "A_s": math.exp(values["log_Ds"] + bs * log) * level, "b_s": bs}
        return {**found, **small, "k": values["k"]}

    def loss(self, n1: Any, n2: Any, theta: Array | None = None) -> Array:
        """Return L(n1, n2); of a draw, if ``theta`` is one. NaN where no curve of the fit tells it."""
        n1, n2 = np.broadcast_arrays(np.asarray(n1, float), np.asarray(n2, float))
        at = self.theta if theta is None else theta
        found = self.level * _loss(self.kind, at, n1 / self.unit, n2 / self.unit)
        if self.kind == "two_stage":
            found = np.where((n1 == 0) & ~self.has[0] | (n2 == 0) & ~self.has[1], np.nan, found)
        return found

    def predict(self, n1: float, n2: float) -> Interval:
        """Return L(n1, n2) with its interval."""
        return _interval(float(self.loss(n1, n2)), [float(self.loss(n1, n2, theta)) for theta in self.draws])

    def forecast(self, budget: float, now: float = 0.0) -> GrowthForecast:
        """Return what the law says of a budget.

        Args:
          budget: FLOPs of the whole, in large steps.
          now: those that the small network has been given so far. If 0, growing now is growing untrained sources.

        Raises:
          ValueError: the budget is not positive and finite, or now is not within it.
        """
        if not (math.isfinite(budget) and budget > 0):
            raise ValueError(f"the budget is {budget!r} large steps, but has to be positive and finite")
        if not 0 <= now < budget:
            raise ValueError(f"now is {now!r}, but the small network has between 0 and {budget:g} large steps' FLOPs")
        n1 = np.linspace(now, budget, GRID + 1)[1:-1]
        thetas = [self.theta, *self.draws]
        grown = np.array([self.loss(n1, budget - n1, theta) for theta in thetas])
        best = grown.argmin(axis=1)
        lowest = grown.min(axis=1)
        at_now = [float(self.loss(max(now, budget * 1e-6), budget - now, theta)) for theta in thetas]
        lowest = np.minimum(lowest, at_now)
        shares = np.where(lowest < grown.min(axis=1), now, n1[best]) / budget
        ends: list[Interval | None] = []
        beats = []
        for at, known in zip(((0.0, budget), (budget, 0.0)), self.known_ends, strict=True):
            values = np.array([float(self.loss(*at, theta)) for theta in thetas])
            ends.append(_interval(values[0], values[1:]) if known else None)
            beats.append(float((lowest < values)[1:].mean()) if known and len(values) > 1 else math.nan)
        interval = lambda values: _interval(float(values[0]), values[1:])
        return GrowthForecast(
            budget, now, *ends, interval(at_now), interval(lowest), interval(shares), (beats[0], beats[1]),
            budget / self.unit,
        )  # fmt: skip

    @property
    def known_ends(self) -> tuple[bool, bool]:
        """Whether the law says what (scratch, the small network alone) end with."""
        return self.has[:2]

    def to_json(self) -> dict[str, Any]:
        """Return the law as JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields, "theta": [float(f"{v:.10g}") for v in self.theta], "has": list(self.has),
            "draws": [[float(f"{v:.6g}") for v in draw] for draw in self.draws], "parameters": self.parameters(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "GrowthLaw":
        """Read what ``to_json`` returned.

        Raises:
          ValueError: a field is missing, or the parameters are not finite or not those of the law.
        """
        try:
            fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
            width = len(_RANGES[fields["kind"]])
            theta = np.asarray(fields["theta"], float)
            draws = np.asarray(fields["draws"], float).reshape(-1, width)
            if theta.shape != (width,) or not (np.isfinite(theta).all() and np.isfinite(draws).all()):
                raise ValueError(f"the law {fields['kind']} has {width} finite parameters")
            return cls(**{**fields, "theta": theta, "draws": draws, "has": tuple(map(bool, fields["has"]))})
        except (KeyError, TypeError) as error:
            raise ValueError(f"it has no field {error}") from None


def fit_growth_law(
    kind: Kind,
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
    """
    rows, labels = _checked(kind, n1, n2, loss, run)
    unit, level = float((rows[:, 0] + rows[:, 1]).max()), float(rows[:, 2].min())
    u1, u2, target = rows[:, 0] / unit, rows[:, 1] / unit, rows[:, 2] / level
    parts = [u1 == 0, u2 == 0, (u1 > 0) & (u2 > 0)]
    ranges = _RANGES[kind]
    low, high = (np.array([r[i] for r in ranges], float) for i in (1, 2))
    names = [name for name, *_ in ranges]
    if kind == "curves" and not parts[2].any():
        low[names.index("k")], high[names.index("k")] = 1 - 1e-9, 1 + 1e-9
    change: Callable[[Array], Array] = np.log if logarithmic else lambda values: values

    def fit(start: Array, which: Array) -> tuple[float, Array]:
        residual = lambda theta: change(_loss(kind, theta, u1[which], u2[which])) - change(target[which])
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
    scatter = float(np.sqrt(np.mean((np.log(_loss(kind, theta, u1, u2)) - np.log(target)) ** 2)))
    return GrowthLaw(
        kind, unit, level, theta, np.reshape(samples, (-1, len(theta))), scatter, len(rows), len(members),
        (bool(parts[0].any()), bool(parts[1].any()), bool(parts[2].any())),
    )  # fmt: skip


def _loss(kind: Kind, theta: Array, u1: Array, u2: Array) -> Array:
    """Return the loss over the level, lengths in units of the longest run."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        floor, D, b = theta[0], math.exp(theta[1]), math.exp(theta[2])
        if kind == "head_start":
            return floor + D * np.power(u2 + math.exp(theta[3]) * np.power(u1, math.exp(theta[4])), -b)
        if kind == "curves":
            # the small network's loss above the large one's floor, and the age at which the large one has it
            above = theta[3] + math.exp(theta[4]) * np.power(u1, -math.exp(theta[5]))
            age = np.power(above / D, -1 / b)
            return np.where(u2 == 0, floor + above, floor + D * np.power(u2 + theta[6] * age, -b))
        power = lambda at, u: theta[at] + math.exp(theta[at + 1]) * np.power(u, -math.exp(theta[at + 2]))
        log1, log2 = np.log(np.maximum(u1, 1e-300)), np.log(np.maximum(u2, 1e-300))
        grown = floor + D * np.exp(-theta[3] * log1 + (-b + theta[4] * log1) * log2)
        return np.where(u1 == 0, power(5, u2), np.where(u2 == 0, power(8, u1), grown))


def _starts(ranges: Sequence[_Range]) -> list[Array]:
    """Return the points that the fit starts from."""
    first = np.array([r[3][0] for r in ranges])
    starts = [first]
    for i, (*_, values) in enumerate(ranges):
        for other in values[1:]:
            starts += [np.where(np.arange(len(first)) == i, other, start) for start in starts]
    return starts[:8]


def _interval(value: float, samples: Any) -> Interval:
    """Return a value with the quantiles of its draws."""
    samples = np.asarray(samples, float)
    if not samples.size:
        return Interval(value, value, value)
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))


def _checked(
    kind: Kind, n1: Any, n2: Any, loss: Any, run: Any
) -> tuple[Float[Array, "points 3"], Int[Array, " points"]]:
    """Return the points (n1, n2, loss) that can be fitted, and their runs."""
    if kind not in _RANGES:
        raise ValueError(f"there is no law {kind!r}; choose one of {', '.join(KINDS)}")
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
    steps = len(np.unique(rows[grown, 0]))
    if kind == "curves" and not (scratch.any() and small.any()):
        raise ValueError("the law of curves needs a curve from scratch and one of the small network; train both")
    if kind != "curves" and steps < 3:
        raise ValueError(f"the law {kind} needs runs grown at 3 steps or more, there are {steps}; grow at more steps")
    needed = len(_RANGES[kind]) - 3 * sum(kind == "two_stage" and not part.any() for part in (scratch, small)) + SPARE
    if len(rows) < needed:
        raise ValueError(f"the law {kind} needs {needed} points or more, there are {len(rows)}; evaluate more often")
    parts = {"scratch": (scratch, 3), "the small network": (small, 3), "grown networks": (grown, 1)}
    for name, (part, least) in parts.items():
        if part.any() and part.sum() < least + SPARE:
            raise ValueError(
                f"there are {part.sum()} points of {name}, but a fit needs {least + SPARE}; evaluate more often"
            )
        fallen = [_falls(rows[part & (labels == one)]) for one in np.unique(labels[part])]
        if fallen and sum(fallen) <= len(fallen) / 2:
            raise ValueError(
                f"curves of {name} do not fall in {len(fallen) - sum(fallen)} of {len(fallen)} runs; train longer, or at "
                "a lower rate"
            )
    return rows, labels


def _falls(points: Float[Array, "points 3"]) -> bool:
    """Return whether the later half of a run has a lower mean loss than the earlier one; a single point does."""
    losses = points[np.argsort(points[:, 0] + points[:, 1]), 2]
    half = len(losses) // 2
    return half == 0 or bool(losses[-half:].mean() < losses[:half].mean())
