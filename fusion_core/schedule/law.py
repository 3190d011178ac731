"""Laws of the loss after growth, fitted to the curves of runs, saved with what they hold for, and asked about a budget.

A law is fitted to short runs once and read when a long one is planned. It holds for one text and tokenizer, optimizer,
schedule, batch, pair of networks and recipe of growth: these facts are saved with it and compared before it says anything.
It says how sure it is, and a rule reads that before it plans (``SavedLaw.plan``). ``bea.fit_growth_law`` has the laws,
``bea.head_start_step`` the rule that needs no grown run; docs/when_to_grow.md what of them holds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

import bea
from bea import GrowthForecast, Interval
from fusion_core import atomic
from fusion_core.checked import checked
from fusion_core.errors import InputError
from fusion_core.schedule.curves import SKIP, Plateaus, RunCurves
from fusion_core.text.json_files import LARGE, read_json

FORMAT = 2
REMEDY = (
    "train short runs with these settings, one from scratch, one of the small network and some grown, and fit a law to them "
    "(examples/plans/law.toml)"
)

# schedules whose rates depend on the budget, so that a curve serves one budget alone
UNTIL_THE_END = ("cosine",)
ROLES = {"small": "the small network", "scratch": "the network from scratch", "grown": "the grown network"}


@dataclasses.dataclass(frozen=True)
class LawFacts:
    """What a law holds for; JSON values.

    Attributes:
      text: sum of tokens and tokenizer; None if it is not known, which is then not compared.
      batch, length: sequences and tokens of a step.
      small, large: settings of the two networks.
      training: role (``"small"``, ``"scratch"``, ``"grown"``) -> its optimizer, schedule and what else trains it. A role
        that one side lacks is not compared.
      growth: settings of the growth: sources, off-diagonal blocks, noise, rates, optimizer state. Empty for a law without
        grown runs.
    """

    text: str | None
    batch: int
    length: int
    small: Mapping[str, Any]
    large: Mapping[str, Any]
    training: Mapping[str, Mapping[str, Any]]
    growth: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def difference(self, other: LawFacts) -> str | None:
        """Return the first thing in which others differ, with both values; None if there is none."""
        pairs: list[tuple[str, Any, Any]] = [
            ("text or tokenizer", self.text or other.text, other.text or self.text),
            ("batch", self.batch, other.batch), ("length", self.length, other.length),
            ("small network", self.small, other.small), ("large network", self.large, other.large),
        ]  # fmt: skip
        for role in self.training.keys() & other.training.keys():
            mine, theirs = self.training[role], other.training[role]
            pairs += [(f"{key} of {ROLES[role]}", mine.get(key), theirs.get(key)) for key in {**mine, **theirs}]
        pairs.append(("recipe of growth", self.growth, other.growth if self.growth else self.growth))
        return next((f"{what} ({_differing(mine, theirs)})" for what, mine, theirs in pairs if mine != theirs), None)


@dataclasses.dataclass(frozen=True)
class LawPlan:
    """What a rule does with a law's forecast.

    Attributes:
      step: small steps before the growth; None if there is none within the budget, or if the law does not plan.
      holds: whether the law plans; else another rule has to.
      reason: one or two sentences with the numbers that decided.
      forecast: of the law.
    """

    step: int | None
    holds: bool
    reason: str
    forecast: GrowthForecast


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True)
class _Law:
    """The types of what a file says of a ``bea.GrowthLaw``."""

    kind: str
    unit: _Positive
    level: _Positive
    theta: list[float]
    draws: list[list[float]]
    shorter: list[list[float]]
    drift: Annotated[float, Field(ge=0, lt=100)] | None
    scatter: Annotated[float, Field(ge=0)]
    points: Annotated[int, Field(ge=0)]
    runs: Annotated[int, Field(ge=0)]
    has: tuple[bool, bool, bool]
    parameters: dict[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class SavedLaw:
    """A fitted law with what it holds for.

    Attributes:
      law: see ``bea.GrowthLaw``.
      facts: what it holds for.
      unit: FLOPs of a step of the large network.
      points: which points were fitted: ``longest`` and ``skip`` of ``RunCurves.points``, and the losses below which the
        ``large`` and the ``small`` network had left their plateaus; None where that is no limit.
    """

    law: bea.GrowthLaw
    facts: LawFacts
    unit: float
    points: Mapping[str, float | None]

    @property
    def recipe(self) -> str:
        """A sentence on the recipe of growth that the law is of."""
        if not self.facts.growth:
            return (
                "No grown run was fitted: growing is taken to keep the whole head start of the small network, whatever the "
                "recipe."
            )
        return (
            f"The law is of one recipe of growth ({_shown(self.facts.growth)}): another one has losses and a best step of "
            "its own."
        )

    def check(self, facts: LawFacts) -> None:
        """Raise InputError, which names the first difference, unless the law holds for these facts."""
        if (difference := self.facts.difference(facts)) is not None:
            raise InputError(f"the law was fitted on another {difference}; {REMEDY}")

    def forecast(self, budget_flops: float, now_flops: float = 0.0, *, facts: LawFacts) -> GrowthForecast:
        """Return what the law says of a budget in FLOPs; lengths of the answer are in steps of the large network.

        Raises:
          InputError: the law is of other facts, or the budget is not positive and finite, or now is not within it.
        """
        self.check(facts)
        try:
            return self.law.forecast(budget_flops / self.unit, now_flops / self.unit)
        except ValueError as error:
            raise InputError(str(error)) from None

    def plan(self, budget_flops: float, small_flops: float, dispatch: int, *, facts: LawFacts) -> LawPlan:
        """Return when to grow within a budget, and why; or why the law does not say.

        Args:
          budget_flops: of the whole run.
          small_flops: of a step of all sources.
          dispatch: the step is a multiple of it.
          facts: of the run.

        Raises:
          InputError: as ``forecast``.
        """
        said = self.forecast(budget_flops, facts=facts)
        if not said.holds:
            return LawPlan(None, False, f"The law of {self.law.kind} does not plan: {said.why}.", said)
        last = int(budget_flops / small_flops) // dispatch * dispatch
        step = min(max(round(said.share.value * last / dispatch), 1) * dispatch, last)
        never = said.beats[1] < 0.5
        what = "Do not grow within this budget" if never or step == last else f"Grow at step {step:,}"
        others = {"never growing": said.never, "from scratch": said.scratch}
        losses = "".join(f", {name} {_interval(loss)}" for name, loss in others.items() if loss is not None)
        reason = (
            f"{what}: the law of {self.law.kind} puts the best step at {_interval(said.share, '.0%')} of the budget and "
            f"foretells a loss of {_interval(said.grow_best)} there{losses}. It may plan: {said.why}. {self.recipe}"
        )
        return LawPlan(None if never or step == last else step, True, reason, said)

    def save(self, path: pathlib.Path) -> None:
        """Write the law as JSON."""
        facts, law = dataclasses.asdict(self.facts), self.law.to_json()
        values = {"format": FORMAT, "unit": self.unit, "points": dict(self.points), "facts": facts, "law": law}
        atomic.write_text(path, json.dumps(values, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: pathlib.Path) -> SavedLaw:
        """Read a law.

        Raises:
          InputError: the file is missing, or holds something else.
        """
        try:
            values = read_json(path, longest=LARGE)
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']!r}, this version reads {FORMAT}")
            checked(_Law, values["law"])
            law, facts = bea.GrowthLaw.from_json(values["law"]), checked(LawFacts, values["facts"])
            if unknown := facts.training.keys() - ROLES.keys():
                raise ValueError(f"there is no role {min(unknown)[:100]!r}; there are {', '.join(ROLES)}")
            return cls(
                law, facts, checked(_Positive, values["unit"]), checked(dict[str, float | None], values["points"])
            )
        except FileNotFoundError:
            raise InputError(f"there is no law {path}; {REMEDY}") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is no law ({error}); {REMEDY}") from None


def fit_law(
    kind: str,
    curves: RunCurves,
    facts: LawFacts,
    *,
    longest: float = math.inf,
    skip: float = SKIP,
    plateau: bool = False,
    draws: int = 100,
    seed: int = 0,
) -> SavedLaw:
    """Fit a law to curves of runs, from where they have left their plateaus (``RunCurves.plateaus``).

    Args:
      kind: ``"head_start"``, ``"curves"`` or ``"two_stage"``.
      curves: of the runs.
      facts: of all of them.
      longest, skip: see ``RunCurves.points``.
      plateau: fit the plateaus too.
      draws, seed: of the bootstrap over runs.

    Raises:
      InputError: a schedule ends with the budget, so that a curve is of one budget alone; the curves have not left their
        plateaus; or they are too few, too short or do not fall (``bea.fit_growth_law``).
    """
    for training in facts.training.values():
        if training.get("schedule", {}).get("kind") in UNTIL_THE_END:
            raise InputError(
                f"the schedule {training['schedule']['kind']} ends with its budget, so that its curves say nothing of "
                "another one; run the short runs with a constant or an rsqrt schedule"
            )
    try:
        below = Plateaus() if plateau else curves.plateaus(longest)
        law = bea.fit_growth_law(kind, *curves.points(longest, skip, below), draws=draws, seed=seed)
    except ValueError as error:
        raise InputError(f"no law can be fitted: {error}") from None
    limits = {"longest": longest, "skip": skip, **below._asdict()}
    points = {name: value if math.isfinite(value) else None for name, value in limits.items()}
    return SavedLaw(law, facts, curves.unit, points)


def _interval(interval: Interval, form: str = ".3f") -> str:
    value, low, high = (f"{number:{form}}" for number in interval)
    return f"{value} ({low} to {high})"


def _shown(value: Any) -> str:
    """Return settings in a few words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items()) or "none"
    return str(value)


def _differing(mine: Any, theirs: Any) -> str:
    """Return two values in a few words; of settings those that differ."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        mine, theirs = ({key: values.get(key, "none") for key in keys} for values in (mine, theirs))
    return f"{_shown(mine)}, here {_shown(theirs)}"
