"""What in a plan a law of growth is about, and what a law that was fitted before says of it."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_core.errors import InputError
from fusion_core.models.t5 import T5Config
from fusion_core.runs.graph import AutoGroup, Resolved, budget_flops
from fusion_core.runs.plan import FuseNode, GrowthNode, Plan, TrainNode
from fusion_core.schedule import GrowthForecast, Interval, LawFacts, LawPlan, SavedLaw

LONG = 0.9  # of the longest curve: shorter ones of a network are only its sources
NO_PART = ("name", "sources", "source_node", "seed")  # of a growth's recipe


@dataclasses.dataclass(frozen=True)
class LawCase:
    """One pair of networks and recipe of growth in a plan: what a law can be about.

    Attributes:
      facts: what a law of it holds for; text is None.
      growths, grown: the growths, and the last nodes that go on from them.
      small, scratch: last nodes of the small network alone, and of large ones from scratch.
      large_flops, small_flops: FLOPs of a step of the large network, and of one of all sources.
      budget: FLOPs of the whole; None if the plan does not say.
      planned: FLOPs of the sources of each growth whose steps the plan says.
    """

    facts: LawFacts
    growths: tuple[str, ...]
    grown: tuple[str, ...]
    small: tuple[str, ...]
    scratch: tuple[str, ...]
    large_flops: float
    small_flops: float
    budget: float | None
    planned: tuple[float, ...]


def law_cases(plan: Plan, nodes: Sequence[Resolved]) -> list[LawCase]:
    """Return the pairs of networks and recipes of growth in a plan, those with two growths in a row left out.

    Large networks from scratch of other settings than the first one's are left out, too.
    """
    named = {node.name: node for node in nodes}
    budget = budget_flops(plan, named)
    found: dict[str, LawCase] = {}
    for resolved in nodes:
        if isinstance(resolved.node, TrainNode):
            continue
        case = _case(resolved.node, resolved.config, named, budget)
        if case is None:
            continue
        key = json.dumps(dataclasses.asdict(case.facts), sort_keys=True)
        if key in found:
            one = found[key]
            case = dataclasses.replace(
                case,
                growths=one.growths + case.growths,
                grown=one.grown + case.grown,
                planned=one.planned + case.planned,
            )
        found[key] = case
    return list(found.values())


def case_of(plan: Plan, nodes: Sequence[Resolved], growth: str = "") -> LawCase:
    """Return the plan's only case, or that of a growth.

    Raises:
      InputError: there is none, or several and no growth is named.
    """
    cases = law_cases(plan, nodes)
    if growth:
        plan.node(growth)  # raises, and lists the nodes
        cases = [case for case in cases if growth in case.growths]
    if not cases:
        what = f"{growth} is no growth" if growth else f"{plan.name} has no growth"
        raise InputError(
            f"{what} of networks that are trained from a random start; a law of growth is about such a one"
        )
    if len(cases) > 1:
        listed = "; ".join(", ".join(case.growths) for case in cases)
        raise InputError(
            f"{plan.name} has growths of {len(cases)} recipes or pairs of networks ({listed}), and a law is of one; "
            "name a growth"
        )
    return cases[0]


def _case(event: GrowthNode, large: T5Config, named: Mapping[str, Resolved], budget: float | None) -> LawCase | None:
    """Return what a law of a growth is about; None if its sources do not begin at random, or are not trained alike."""
    chains = [chain for name in dict.fromkeys(event.inputs) if (chain := _chain(named, name))]
    after = [node for node in named.values() if event.name in _back(named, node.name)]
    if len(chains) < len(set(event.inputs)) or not after:
        return None
    sources = [node for chain in chains for node in chain]
    first, start = _node(after[0]), _start(_node(sources[0]))
    if (
        any(node.config != sources[0].config for node in sources)
        or any(_training(_node(node)) != _training(_node(sources[0])) for node in sources)
        or any(_training(_node(node)) != _training(first) for node in after)
        or len({(_node(node).batch, _node(node).length) for node in (*sources, *after)}) > 1
    ):
        return None
    starts = (node for node in named.values() if node.config == large and getattr(node.node, "model", None))
    scratch = next((_start(_node(node)) for node in starts), None)
    training = {"small": start, "grown": _training(first)} | ({} if scratch is None else {"scratch": scratch})
    model = lambda config: _plain(dataclasses.asdict(config))
    facts = LawFacts(
        None, first.batch, first.length, model(sources[0].config), model(large), training, growth_settings(event)
    )
    own = [node.flops for node in after if _node(node).auto] or [budget]
    whole = [flops for flops in own if flops is not None] or [
        sum(n.spent.values()) for n in after if n.spent is not None
    ]
    known = [chain[-1].spent for chain in chains]
    before = {name: flops for spent in known if spent is not None for name, flops in spent.items()}
    return LawCase(
        facts,
        growths=(event.name,),
        grown=tuple(node.name for node in after if not any(node.name in other.node.inputs for other in after)),
        small=_ends(named, sources[0].config, start),
        scratch=_ends(named, large, scratch),
        large_flops=after[0].step_flops,
        small_flops=sum(chain[-1].step_flops for chain in chains),
        budget=max(whole, default=None),
        planned=() if None in known else (math.fsum(before.values()),),
    )


def growth_settings(event: GrowthNode) -> dict[str, Any]:
    """Return the recipe of a growth, with its defaults in place."""
    own = {key: value for key, value in dataclasses.asdict(event).items() if key not in NO_PART}
    recipe = event.recipe._asdict()
    sources = {"sources": len(set(event.inputs))} | (
        {"copies": len(event.inputs)} if isinstance(event, FuseNode) else {}
    )
    kept = {**sources, **own, **recipe, "noise": event.noise if event.noise == "auto" else recipe["noise"]}
    return _plain({key: value for key, value in kept.items() if value not in (None, (), "", 0)})


def _training(node: TrainNode) -> dict[str, Any]:
    """Return what of a node's settings decides how the loss falls, but for batch and length."""
    compute = {"dtype": node.compute.dtype, "z_loss": node.compute.z_loss}
    return _plain(
        {
            "optimizer": dataclasses.asdict(node.optimizer),
            "schedule": dataclasses.asdict(node.schedule),
            "compute": compute,
        }
    )


def _start(node: TrainNode) -> dict[str, Any]:
    """Return the same of a node that begins with a random start, with that start."""
    found = _training(node)
    found["optimizer"]["rate"] = node.optimizer.first_rate
    return {**found, "start": {"base_width": node.base_width, "match_cross_attention": node.match_cross_attention}}


def _node(resolved: Resolved) -> TrainNode:
    assert isinstance(resolved.node, TrainNode)
    return resolved.node


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


def _chain(named: Mapping[str, Resolved], last: str) -> list[Resolved] | None:
    """Return the nodes from a random start to one; None if there is a growth among them."""
    chain = [named[last]]
    while chain[0].node.inputs:
        chain.insert(0, named[chain[0].node.inputs[0]])
    return chain if all(isinstance(node.node, TrainNode) for node in chain) else None


def _back(named: Mapping[str, Resolved], name: str) -> list[str]:
    """Return the inputs of a node that trains, back to the last growth or a random start."""
    found: list[str] = []
    while isinstance(named[name].node, TrainNode) and named[name].node.inputs:
        name = named[name].node.inputs[0]
        found.append(name)
    return found


def _ends(named: Mapping[str, Resolved], config: T5Config, start: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the last nodes of the longest chains from random starts of a network with its settings."""
    longest: dict[str, tuple[float, str]] = {}
    for name, node in named.items():
        chain = _chain(named, name)
        if chain and node.config == config and _start(_node(chain[0])) == start:
            length = math.inf if node.until is None else node.until
            longest[chain[0].name] = max(longest.get(chain[0].name, (0.0, "")), (length, name))
    whole = max((length for length, _ in longest.values()), default=0.0)
    return tuple(name for length, name in longest.values() if length >= LONG * whole)


@dataclasses.dataclass(frozen=True)
class PlanForecast:
    """What a law says of a plan.

    Attributes:
      case: of the plan that the law is about.
      law: the law.
      forecast: of the plan's budget.
      planned: (FLOPs of the sources, loss) of each growth whose step the plan says.
    """

    case: LawCase
    law: SavedLaw
    forecast: GrowthForecast
    planned: tuple[tuple[float, Interval], ...]

    @property
    def best_flops(self) -> float:
        """FLOPs of the sources at the best step."""
        return self.forecast.share.value * self.forecast.budget * self.law.unit


def plan_forecast(
    plan: Plan, nodes: Sequence[Resolved], law: SavedLaw, text: str | None = None, now: int = 0
) -> PlanForecast:
    """Return what a law says of a plan's budget.

    Args:
      plan: which is checked: the law has to hold for its settings.
      nodes: of the plan.
      law: that was fitted before.
      text: sum of the plan's text and tokenizer; if None, it is not compared.
      now: steps that each source has been given so far.

    Raises:
      InputError: the law holds for none of the plan's growths, or the plan has no budget.
    """
    cases = [
        dataclasses.replace(case, facts=dataclasses.replace(case.facts, text=text)) for case in law_cases(plan, nodes)
    ]
    fitting = [case for case in cases if law.facts.difference(case.facts) is None]
    case = fitting[0] if fitting else cases[0] if cases else case_of(plan, nodes)
    law.check(case.facts)
    if case.budget is None:
        raise InputError(f"{plan.name} has no budget, for which a law could say anything; give it one")
    said = law.forecast(case.budget, now * case.small_flops, facts=case.facts)
    planned = [(flops, law.law.predict(flops / law.unit, (case.budget - flops) / law.unit)) for flops in case.planned]
    return PlanForecast(case, law, said, tuple(planned))


def planned_by_law(plan: Plan, nodes: Mapping[str, Resolved], group: AutoGroup, text: str | None) -> LawPlan | None:
    """Return what the law of the plan's rule says of an ``auto`` group; None if the plan has none.

    Raises:
      InputError: the law cannot be read, or holds for other settings than the group's.
    """
    if plan.rule is None:
        return None
    law = SavedLaw.load(pathlib.Path(plan.rule.law))
    case = case_of(plan, list(nodes.values()), group.event.name)
    facts = dataclasses.replace(case.facts, text=text)
    law.check(facts)
    total = nodes[group.grown.name].flops
    assert total is not None  # an auto group has a budget
    return law.plan(total, case.small_flops, plan.steps_per_dispatch, facts=facts)
