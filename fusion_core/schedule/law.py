"""Laws of the loss after growth, fitted to the curves of runs, saved with what they hold for, and asked about a budget.

A law is fitted to short runs once and read when a long one is planned. It holds for one text and tokenizer, optimizer,
schedule, batch, pair of networks and recipe of growth: these facts are saved with it and compared before it says anything.
``bea.fit_growth_law`` has the laws, ``bea.head_start_step`` the rule that needs no grown run; docs/when_to_grow.md what of
them holds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import bea
from fusion_core import atomic
from fusion_core.errors import InputError

FORMAT = 1
REMEDY = "fit a law to short runs of this plan: one from scratch, one of the small network, some grown"
UNTIL_THE_END = (
    "cosine",
    "linear",
)  # schedules whose rates depend on the budget, so that a curve serves one budget alone
SKIP = 0.1  # share of the longest run whose points are left out: the first fall from the random start is no power law

Nodes = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class LawFacts:
    """What a law holds for.

    Attributes:
      text: sum of tokens and tokenizer; None if it is not known, which is then not compared.
      optimizer, schedule: their settings.
      batch, length: sequences and tokens of a step.
      small, large: settings of the two networks.
      growth: settings of the growth: off-diagonal blocks, noise, rates, optimizer state. Empty for a law without grown runs.
    """

    text: str | None
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    batch: int
    length: int
    small: Mapping[str, Any]
    large: Mapping[str, Any]
    growth: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunCurves:
    """Curves of runs, lengths in FLOPs of steps of the large network.

    Attributes:
      unit: FLOPs of a step of the large network.
      scratch, small: (length, loss) of each seed.
      grown: (n1, (n2, loss)) of each grown run, the point at the growth first.
    """

    unit: float
    scratch: tuple[np.ndarray, ...]
    small: tuple[np.ndarray, ...]
    grown: tuple[tuple[float, np.ndarray], ...]

    def points(self, longest: float = math.inf, skip: float = SKIP, below: float = math.inf) -> tuple[np.ndarray, ...]:
        """Return n1, n2, loss and run of all points that a law is fitted to.

        Args:
          longest: points of longer runs (n1 + n2) are left out.
          skip: points of less than this share of ``longest``, or of the longest run, are left out.
          below: points before the first loss below it in their run are left out: those of a plateau, around which no law
            bends.
        """
        of = lambda n1, n2, loss: np.stack(np.broadcast_arrays(n1, n2, loss), axis=1)
        runs = [of(0.0, *curve.T) for curve in self.scratch]
        runs += [of(curve[:, 0], 0.0, curve[:, 1]) for curve in self.small]
        runs += [of(n1, *curve[curve[:, 0] > 0].T) for n1, curve in self.grown]
        end = min(longest, max((float((run[:, 0] + run[:, 1]).max()) for run in runs if len(run)), default=0.0))
        rows = []
        for i, run in enumerate(runs):
            length = run[:, 0] + run[:, 1]
            kept = (length <= end * (1 + 1e-9)) & (length >= skip * end) & np.logical_or.accumulate(run[:, 2] < below)
            rows.append(np.column_stack([run[kept], np.full(kept.sum(), i)]))
        n1, n2, loss, number = np.concatenate(rows or [np.empty((0, 4))]).T
        return n1, n2, loss, number.astype(int)


def run_curves(
    seeds: Mapping[str, Nodes], *, scratch: str = "", small: str = "", grown: Sequence[str] = ()
) -> RunCurves:
    """Return the curves of some nodes of a run's results, or of a record, with the sources paid.

    Args:
      seeds: seed -> node -> facts, as in ``results.json``.
      scratch, small: the last node of the large network from scratch, and of the small one alone; if empty, there is none.
      grown: last nodes of grown networks.

    Raises:
      InputError: a seed lacks a node, one of ``grown`` has no growth before it or one of the others has, or a node has no
        validation loss or one that is not finite.
    """
    if not scratch and not grown:
        raise InputError("there is no large network among the nodes; name the one from scratch, or grown ones")
    found: dict[str, list[tuple[float, np.ndarray]]] = {}
    units = set()
    for seed, nodes in seeds.items():
        for name in filter(None, (scratch, small, *grown)):
            if name not in nodes:
                raise InputError(f"seed {seed} has no node {name}; name one of {', '.join(nodes)}")
            found.setdefault(name, []).append(_curve(nodes, name, name in grown))
            if name != small:
                units.add(float(nodes[name]["step_flops"]))
    if len(units) != 1:
        raise InputError(f"steps of the large networks cost {sorted(units)} FLOPs; take networks of one size and batch")
    unit = units.pop()
    scaled = lambda name: tuple(np.stack([c[:, 0] / unit, c[:, 1]], axis=1) for _, c in found.get(name, ()))
    after = [(before / unit, c) for name in grown for (before, _), c in zip(found[name], scaled(name), strict=True)]
    return RunCurves(unit, scaled(scratch), scaled(small), tuple(after))


def _curve(nodes: Nodes, last: str, grown: bool) -> tuple[float, np.ndarray]:
    """Return the FLOPs before the last growth, and the curve (FLOPs since then or since the random start, loss)."""
    chain = [last]
    while (inputs := nodes[chain[0]]["inputs"]) and nodes[inputs[0]]["kind"] == "train":
        chain.insert(0, inputs[0])
    if grown != bool(inputs):
        has, remedy = ("no", "is from a random start") if grown else ("a", "is grown")
        raise InputError(f"the node {last} has {has} growth before it: it {remedy}; name it as what it is")
    before: set[str] = set()
    waiting = list(inputs)
    while waiting:
        name = waiting.pop()
        if name not in before:
            before.add(name)
            waiting += nodes[name]["inputs"]
    spent = math.fsum(float(nodes[name].get("flops", 0.0)) for name in before)
    spent += float(nodes[chain[0]].get("lost_flops", 0.0))  # trials of growing that lost
    points: dict[float, float] = {}  # a node's first evaluation is that of the one before it
    flops = 0.0
    for name in chain:
        node = nodes[name]
        points |= {flops + (step - node["start"]) * node["step_flops"]: loss for step, loss in node["validation_loss"]}
        flops += float(node["flops"])
    curve = np.array(sorted((at, loss) for at, loss in points.items()), float)
    if curve.ndim != 2 or not np.isfinite(curve).all():
        raise InputError(f"the node {last} has no validation losses, or one that is not finite; name another")
    return spent, curve


@dataclasses.dataclass(frozen=True)
class SavedLaw:
    """A fitted law with what it holds for.

    Attributes:
      law: see ``bea.GrowthLaw``.
      facts: what it holds for.
      unit: FLOPs of a step of the large network.
      points: which points were fitted, see ``RunCurves.points``; None where that is no limit.
    """

    law: bea.GrowthLaw
    facts: LawFacts
    unit: float
    points: Mapping[str, float | None]

    def check(self, facts: LawFacts) -> None:
        """Raise InputError, which names the first difference, unless the law holds for these facts."""
        for field in dataclasses.fields(LawFacts):
            mine, theirs = getattr(self.facts, field.name), getattr(facts, field.name)
            if (field.name == "text" and None in (mine, theirs)) or (field.name == "growth" and not mine):
                continue
            if mine != theirs:
                what = "text or tokenizer" if field.name == "text" else field.name
                raise InputError(
                    f"the law was fitted on another {what} ({_shown(mine)}, here {_shown(theirs)}); {REMEDY}"
                )

    def forecast(self, budget_flops: float, now_flops: float = 0.0, *, facts: LawFacts) -> bea.GrowthForecast:
        """Return what the law says of a budget in FLOPs; lengths of the answer are in steps of the large network.

        Raises:
          InputError: the law is of other facts, or the budget is not positive and finite, or now is not within it.
        """
        self.check(facts)
        try:
            return self.law.forecast(budget_flops / self.unit, now_flops / self.unit)
        except ValueError as error:
            raise InputError(str(error)) from None

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
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']!r}, this version reads {FORMAT}")
            law, facts = bea.GrowthLaw.from_json(values["law"]), LawFacts(**values["facts"])
            return cls(law, facts, float(values["unit"]), dict(values["points"]))
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
    below: float = math.inf,
    draws: int = 100,
    seed: int = 0,
) -> SavedLaw:
    """Fit a law to curves of runs.

    Args:
      kind: ``"head_start"``, ``"curves"`` or ``"two_stage"``.
      curves: of the runs.
      facts: of all of them.
      longest, skip, below: see ``RunCurves.points``.
      draws, seed: of the bootstrap over runs.

    Raises:
      InputError: the schedule ends with the budget, so that a curve is of one budget alone; or the curves are too few, too
        short or do not fall (``bea.fit_growth_law``).
    """
    if facts.schedule.get("kind") in UNTIL_THE_END:
        raise InputError(
            f"the schedule {facts.schedule['kind']} ends with its budget, so that its curves say nothing of another one; "
            "run the short runs with a constant or an rsqrt schedule"
        )
    try:
        law = bea.fit_growth_law(kind, *curves.points(longest, skip, below), draws=draws, seed=seed)
    except ValueError as error:
        raise InputError(f"no law can be fitted: {error}") from None
    limits = {"longest": longest, "skip": skip, "below": below}
    points = {name: value if math.isfinite(value) else None for name, value in limits.items()}
    return SavedLaw(law, facts, curves.unit, points)


def _shown(value: Any) -> str:
    """Return settings in a few words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
    return str(value)
