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

A bootstrap sees luck, not a wrong law: networks on a plateau fall later and faster than any of the three bends. Every fit is
therefore repeated on shorter runs and judged on the rest (``drift``), and the intervals of losses beyond the runs that were
fitted are widened by it, those of the best share by the answers of the shorter fits.

Nothing here knows networks: it sees curves alone.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Array = np.ndarray

CONFIDENCE = 0.95
STANDARD = 1.96  # standard deviations of a normal's interval of that confidence
WIDEST_SHARE = 0.3  # interval of the best share of a law that is to plan
LARGEST_ERROR = 0.1  # of the loss that a law foretells, if it is to plan
GAIN = (
    0.002  # of the loss by which growing at best has to be below another end to beat it: near the ends it is that end
)
GRID = 200  # shares of a budget among which the best one is searched

# per law: names of the parameters that are fitted, lowest and highest value, starts; losses D and steps are in units of the
# data: D is the part above the floor at the longest run of N steps, h the head start of n1 = N in units of N
Range = tuple[str, float, float, tuple[float, ...]]
_POWER: tuple[Range, ...] = (
    ("floor", 0.0, 0.999, (0.4, 0.8)),
    ("log_D", -9.0, 3.0, (-1.0,)),
    ("log_b", -4.0, 1.5, (-1.0,)),
)
_SMALL: tuple[Range, ...] = (
    ("extra", 0.0, 2.0, (0.01,)),
    ("log_Ds", -9.0, 3.0, (-1.0,)),
    ("log_bs", -4.0, 1.5, (-1.0,)),
)


def _named(curve: str, parameter: Range) -> Range:
    """Return the parameter of a power law under a name of its own."""
    name, low, high, starts = parameter
    return f"{curve}_{name}", low, high, starts


RANGES: dict[str, tuple[Range, ...]] = {
    "head_start": (*_POWER, ("log_h", -4.0, 4.0, (0.5,)), ("log_p", -2.3, 1.6, (0.0, 0.4))),
    "curves": (*_POWER, *_SMALL, ("k", 0.0, 3.0, (1.0,))),
    "two_stage": (
        *_POWER,
        ("a", -1.0, 4.0, (0.2,)),
        ("c", -2.0, 2.0, (0.0,)),
        *(_named("scratch", one) for one in _POWER),
        *(_named("small", one) for one in _POWER),
    ),
}
GROWTH_LAWS: tuple[str, ...] = tuple(RANGES)


class Interval(NamedTuple):
    """A number with its 95 % interval; of a loss, that of one run."""

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
      beats: shares of the draws and of the shorter fits in which growing between the ends is best and below
        (scratch, never); NaN where one is None.
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

    @property
    def holds(self) -> bool:
        """Whether the law may plan: it knows the loss of growing at best to 10 %, and the best share to 0.3 in all."""
        return self._error <= LARGEST_ERROR and self.share.high - self.share.low <= WIDEST_SHARE

    @property
    def why(self) -> str:
        """Part of a sentence on what ``holds`` rests on."""
        error, width = self._error, self.share.high - self.share.low
        known = f"to {error:.0%}" if math.isfinite(error) else "to no bound, since no shorter fit could be judged"
        return (
            f"it knows the loss of growing at best {known} ({LARGEST_ERROR:.0%} at most) and the best share of the budget to "
            f"{width:.2f} ({WIDEST_SHARE} at most)"
        )

    @property
    def pays(self) -> bool | None:
        """Whether growing at best ends below scratch and below never growing; None where the draws do not tell."""
        known = [share for share in self.beats if not math.isnan(share)]
        if not known:
            return None
        return True if min(known) >= CONFIDENCE else False if min(known) <= 1 - CONFIDENCE else None

    @property
    def _error(self) -> float:
        value, low, high = self.grow_best
        return max(1 - low / value, high / value - 1)


@dataclasses.dataclass(frozen=True)
class GrowthLaw:
    """A fitted law: a value that can be saved.

    Attributes:
      kind: which law.
      unit: N, the steps of the longest run of the fit.
      level: unit of losses, the lowest loss of the fit.
      theta: fitted parameters, in the order of ``names``, in units of the data.
      draws: the same for each draw of the bootstrap, [draws, parameters].
      shorter: parameters of the fits to shorter runs, [fits, parameters]; empty if those have too few points.
      drift: root mean square error, in log loss for each doubling of the length, with which the shorter fits foretold the
        rest; the larger one, NaN without them.
      scatter: root mean square of the residuals in log loss.
      points, runs: how many of them were fitted.
      has: whether curves of (scratch, the small one, grown ones) were among them.

    Source: theory.md, (6.3).
    """

    kind: str
    unit: float
    level: float
    theta: Float[Array, " parameters"]
    draws: Float[Array, "draws parameters"]
    shorter: Float[Array, "fits parameters"]
    drift: float
    scatter: float
    points: int
    runs: int
    has: tuple[bool, bool, bool]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of ``theta``."""
        return tuple(name for name, *_ in RANGES[self.kind])

    def parameters(self, theta: Array | None = None) -> dict[str, float]:
        """Return the parameters of the module's equations, lengths in large steps; of a draw, if ``theta`` is one."""
        values = dict(zip(self.names, np.asarray(self.theta if theta is None else theta, float), strict=True))
        values = {name: float(value) for name, value in values.items()}
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
        found = np.asarray(self.level * scaled_loss(self.kind, at, n1 / self.unit, n2 / self.unit))
        if self.kind == "two_stage":
            found = np.where((n1 == 0) & ~self.has[0] | (n2 == 0) & ~self.has[1], np.nan, found)
        return found

    def predict(self, n1: float, n2: float) -> Interval:
        """Return L(n1, n2) with its interval."""
        samples = [float(self.loss(n1, n2, theta)) for theta in self.draws]
        return self._widened(interval_of(float(self.loss(n1, n2)), samples), n1 + n2)

    def _widened(self, interval: Interval, length: float) -> Interval:
        """Return the interval of a loss after so many steps, scatter and drift added."""
        if not math.isfinite(interval.value):
            return interval
        doublings = max(0.0, math.log2(length / self.unit))
        if doublings and math.isnan(self.drift):
            return Interval(interval.value, 0.0, math.inf)
        error = STANDARD * math.hypot(self.scatter, self.drift * doublings if doublings else 0.0)
        below, above = math.log(interval.value / max(interval.low, 1e-300)), math.log(interval.high / interval.value)
        return Interval(
            interval.value, interval.value * math.exp(-math.hypot(below, error)),
            interval.value * math.exp(math.hypot(above, error)),
        )  # fmt: skip

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
        n1 = np.linspace(now, budget, GRID + 1)[:-1]
        n1[0] = max(now, 1e-6 * budget)
        thetas = [self.theta, *self.draws]
        grown = np.array([self.loss(n1, budget - n1, theta) for theta in thetas])
        shorter = np.array([self.loss(n1, budget - n1, theta) for theta in self.shorter]).reshape(-1, len(n1))
        losses = lambda values: self._widened(interval_of(float(values[0]), values[1:]), budget)
        best, lowest = n1[grown.argmin(axis=1)] / budget, grown.min(axis=1)
        share = interval_of(float(best[0]), best[1:])
        answers = [*share, *(n1[shorter.argmin(axis=1)] / budget).tolist()]
        where = np.concatenate([grown.argmin(axis=1), shorter.argmin(axis=1)])
        inside = (where > 0) & (where < GRID - 1)  # else the best growth is one of the ends
        ends: list[Interval | None] = []
        beats = []
        for at, known in zip(((0.0, budget), (budget, 0.0)), self.has[:2], strict=True):
            values = np.array([float(self.loss(*at, theta)) for theta in (*thetas, *self.shorter)])
            ends.append(losses(values[: len(thetas)]) if known else None)
            won = inside & (np.concatenate([lowest, shorter.min(axis=1)]) < values)
            beats.append(float(won[1:].mean()) if known and len(won) > 1 else math.nan)
        best_share = Interval(share.value, min(answers), max(answers))
        return GrowthForecast(
            budget, now, scratch=ends[0], never=ends[1], grow_now=losses(grown[:, 0]), grow_best=losses(lowest),
            share=best_share, beats=(beats[0], beats[1]), stretch=budget / self.unit,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the law as JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields, "theta": [float(f"{v:.10g}") for v in self.theta], "has": list(self.has),
            "draws": self.draws.round(6).tolist(), "shorter": self.shorter.round(6).tolist(),
            "drift": None if math.isnan(self.drift) else self.drift, "parameters": self.parameters(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "GrowthLaw":
        """Read what ``to_json`` returned.

        Raises:
          ValueError: a field is missing, or the parameters are not finite, not those of the law, or outside of its ranges.
        """
        try:
            fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
            if fields["kind"] not in RANGES:
                raise ValueError(f"there is no law {fields['kind']!r}; there are {', '.join(GROWTH_LAWS)}")
            width = len(RANGES[fields["kind"]])
            theta = np.asarray(fields["theta"], float)
            draws, shorter = (np.asarray(fields[name], float).reshape(-1, width) for name in ("draws", "shorter"))
            if theta.shape != (width,) or not all(np.isfinite(part).all() for part in (theta, draws, shorter)):
                raise ValueError(f"the law {fields['kind']} has {width} finite parameters")
            least, most = np.array([range_[1:3] for range_ in RANGES[fields["kind"]]], float).T
            for part in (theta, draws, shorter):
                if not ((part >= least - 1e-5) & (part <= most + 1e-5)).all():
                    raise ValueError(f"parameters of the law {fields['kind']} are outside of what is fitted")
            scales = {name: float(fields[name]) for name in ("unit", "level", "scatter")}
            if not (min(scales["unit"], scales["level"]) > 0 and 0 <= scales["scatter"] < 100):
                raise ValueError(f"its unit, level and scatter are {tuple(scales.values())}")
            return cls(**{
                **fields, **scales, "theta": theta, "draws": draws, "shorter": shorter, "has": tuple(map(bool, fields["has"])),
                "drift": math.nan if fields["drift"] is None else float(fields["drift"]),
            })  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(f"it has no field {error}") from None


def scaled_loss(kind: str, theta: Array, u1: Any, u2: Any) -> Any:
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


def interval_of(value: float, samples: Any) -> Interval:
    """Return a value with the quantiles of its draws."""
    samples = np.asarray(samples, float)
    if not samples.size:
        return Interval(value, value, value)
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, min(float(low), value), max(float(high), value))
