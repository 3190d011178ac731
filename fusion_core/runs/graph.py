"""The consequences of a plan: the order of its nodes, each one's network, steps and FLOPs; and everything that is wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from fusion_core.errors import InputError
from fusion_core.growth import fused_config, fusion_map
from fusion_core.growth.operators import growth_of
from fusion_core.growth.options import MOST_LAYERS, MOST_UNITS
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.flops import step_flops
from fusion_core.runs.plan import FuseNode, GrowNode, GrowthNode, Node, Plan, TrainNode
from fusion_core.runs.separating import measured_flops
from fusion_core.runs.settings import OptimizerSettings
from fusion_core.text.span_corruption import check_sentinels, target_length
from fusion_core.train.devices import check_share


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A node and what follows from the nodes before it.

    Attributes:
      node: as the plan has it.
      config: of its network.
      optimizer: whose state the node leaves behind; None after a growth with a fresh one.
      ramp: what has a factor of its own in the ramp of its state's learning rates, ``"array"`` or ``"entry"``; empty if there
        is no ramp. It is that of the last growth.
      step_flops: FLOPs of a training step; 0 for a growth.
      start: the node's first step, counted through its ancestors; None if it is decided while the plan runs.
      steps: of training; 0 for a growth; None if they are decided while the plan runs.
      spent: FLOPs of the node and of each of its ancestors, each once; None if they are decided while the plan runs.
      flops: FLOPs of the node, at most; of a growth, what its measurements cost; the last node of an ``auto`` group has those
        of the whole group.
    """

    node: Node
    config: T5Config
    optimizer: OptimizerSettings | None
    ramp: str = ""
    step_flops: float = 0.0
    start: int | None = None
    steps: int | None = 0
    spent: Mapping[str, float] | None = None
    flops: float | None = 0.0

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def until(self) -> int | None:
        """The node's last step; None if it is decided while the plan runs."""
        early = isinstance(self.node, TrainNode) and self.node.until_loss is not None
        return None if self.start is None or self.steps is None or early else self.start + self.steps


@dataclasses.dataclass(frozen=True)
class AutoGroup:
    """Sources, their growth and the grown network, whose steps the online rule decides together."""

    sources: tuple[TrainNode, ...]
    event: GrowthNode
    grown: TrainNode

    @property
    def names(self) -> tuple[str, ...]:
        return (*(source.name for source in self.sources), self.event.name, self.grown.name)


def check_size(config: T5Config) -> None:
    """Raise InputError if a network is too large to be meant; nothing is built in proportion to a size before this.

    The bounds are ``MOST_LAYERS`` layers of a stack and ``MOST_UNITS`` units of any width.
    """
    for name in ("num_layers", "num_decoder_layers"):
        if getattr(config, name) > MOST_LAYERS:
            raise InputError(f"{name} is {_long(getattr(config, name))}; it must be at most {MOST_LAYERS:,}")
    for name in ("vocab_size", "d_model", "d_ff", "num_heads", "d_kv"):
        if getattr(config, name) > MOST_UNITS:
            raise InputError(f"{name} is {_long(getattr(config, name))}; it must be at most {MOST_UNITS:,}")


def _long(number: int) -> str:
    return f"{number:,}" if number < 10**30 else "a number of more than 30 digits"


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes, each after its inputs, otherwise in the order given.

    Raises:
      InputError: an input is missing, or there is a cycle; one message has all such errors.
    """
    known = {node.name: node for node in nodes}
    errors = [
        f"node {node.name}: its input {name!r} is missing; there are {', '.join(known)}"
        for node in nodes
        for name in dict.fromkeys(node.inputs)
        if name not in known
    ]
    done: dict[str, Node] = {}
    waiting = [] if errors else list(nodes)
    while waiting:
        ready = next((node for node in waiting if all(name in done for name in node.inputs)), None)
        if ready is None:
            errors.append(f"there is a cycle: {_cycle(waiting, done)}; a node cannot come before itself")
            break
        done[ready.name] = ready
        waiting.remove(ready)
    if errors:
        raise InputError("\n  ".join(errors))
    return list(done.values())


def _cycle(waiting: Sequence[Node], done: dict[str, Node]) -> str:
    blocked = {node.name: next(name for name in node.inputs if name not in done) for node in waiting}
    path = [waiting[0].name]
    while blocked[path[-1]] not in path:
        path.append(blocked[path[-1]])
    loop = path[path.index(blocked[path[-1]]) :]
    return " → ".join([*reversed(loop), loop[-1]])


def _auto_group(plan: Plan, grown: TrainNode) -> AutoGroup:
    """Return the group of an ``auto`` node after a growth. Raise InputError if the rule cannot decide it."""
    owner = f"node {grown.name}: steps = 'auto' "
    event = plan.node(grown.source_node)
    if isinstance(event, TrainNode):
        raise InputError(f"{owner}is for networks from a random start and for the one that is grown from them")
    if grown.budget is None and plan.budget is None:
        raise InputError(f"{owner}needs a budget: the plan's, or one in steps of this node, its sources' included")
    if event.recipe.off_diagonal == "separating" or event.noise == "auto":
        raise InputError(
            f"{owner}would measure at every trial of {event.name}; take off_diagonal = 'antisymmetric' and a number as noise"
        )
    sources = [plan.node(name) for name in dict.fromkeys(event.inputs)]
    for source in sources:
        if not isinstance(source, TrainNode) or source.model is None or not source.auto:
            raise InputError(
                f"{owner}needs sources that begin with a model and have steps = 'auto'; {source.name} is not such"
            )
        if (source.batch, source.length) != (grown.batch, grown.length):
            raise InputError(f"{owner}needs equal batch and length in all of the group; {source.name} has others")
    for node in (*sources, grown):
        if isinstance(node, TrainNode) and node.schedule.kind == "cosine":
            raise InputError(
                f"node {node.name}: a cosine needs to know its end; with steps = 'auto' take another schedule"
            )
    return AutoGroup(tuple(s for s in sources if isinstance(s, TrainNode)), event, grown)


def auto_groups(plan: Plan) -> list[AutoGroup]:
    """Return all groups.

    Raises:
      InputError: the rule cannot decide one of them, or an ``auto`` source is in no group or in two.
    """
    auto = [node for node in plan.nodes if isinstance(node, TrainNode) and node.auto]
    groups = [_auto_group(plan, node) for node in auto if node.source_node]
    for node in auto:
        count = sum(node in group.sources for group in groups)
        if not node.source_node and count != 1:
            raise InputError(
                f"node {node.name}: steps = 'auto' needs exactly one node with a budget that goes on from a growth of it, "
                f"but there are {count}"
            )
    events = [group.event.name for group in groups]
    if len(set(events)) < len(events):
        raise InputError("two nodes with steps = 'auto' go on from the same growth; give one of them a number of steps")
    return groups


def resolve(plan: Plan, devices: int | None = None) -> list[Resolved]:
    """Return all nodes in an order in which they can run.

    Args:
      plan: to be resolved.
      devices: number of devices that share the batches; if None, sharing is not checked.

    Raises:
      InputError: the plan cannot run; the message lists all errors that were found.
    """
    order = in_order(plan.nodes)
    errors: list[str] = []
    try:
        auto_groups(plan)
    except InputError as error:
        errors.append(str(error))
    found: dict[str, Resolved] = {}

    def each(make: object, wanted: Sequence[Node]) -> None:
        for node in wanted:
            inputs = [found[name] for name in node.inputs if name in found]
            if len(inputs) < len(node.inputs):
                continue  # an input is wrong, and that is among the errors
            try:
                found[node.name] = make(node, inputs)  # type: ignore[operator]
            except InputError as error:
                message = str(error)
                errors.append(message if message.startswith(f"node {node.name}") else f"node {node.name}: {message}")
                found.pop(node.name, None)

    each(lambda node, inputs: _network(plan, node, inputs, devices), order)
    budget = None
    try:
        budget = budget_flops(plan, found)
    except InputError as error:
        errors.append(str(error))
    if not errors:
        each(lambda node, inputs: _timed(plan, found[node.name], inputs, budget), order)
    if errors:
        raise InputError("\n  ".join(errors))
    return list(found.values())


def budget_flops(plan: Plan, nodes: Mapping[str, Resolved]) -> float | None:
    """Return the plan's budget in FLOPs; None if it has none."""
    budget = plan.budget
    if budget is None or budget.flops is not None:
        return None if budget is None else budget.flops
    if not isinstance(plan.node(budget.node), TrainNode):
        raise InputError(f"the budget is in steps of {budget.node!r}, which is not trained; name a node that is")
    assert budget.steps is not None
    return budget.steps * nodes[budget.node].step_flops if budget.node in nodes else None


def steps_within(plan: Plan, node: TrainNode, step_flops: float, budget: float | None, before: float) -> int:
    """Return the steps of a node that are a share or the rest of the budget, a whole number of dispatches.

    Args:
      plan: of the node.
      node: whose ``steps`` are a share or ``"rest"``.
      step_flops: of its step.
      budget: FLOPs of every arm.
      before: FLOPs of its ancestors.

    Raises:
      InputError: there is no budget, or it does not pay for one dispatch.
    """
    if budget is None:
        raise InputError(f"steps is {node.steps!r}, but the plan has no budget; give one, or a number of steps")
    flops = budget - before if node.share is None else node.share * budget
    steps = math.floor(flops / step_flops / plan.steps_per_dispatch + 1e-9) * plan.steps_per_dispatch
    if steps < 1:
        raise InputError(
            f"steps is {node.steps!r}, but that pays for less than a dispatch of {plan.steps_per_dispatch} steps (the nodes "
            f"before it cost {before / budget:.1%} of the budget); give a larger budget"
        )
    return steps


def _network(plan: Plan, node: Node, inputs: Sequence[Resolved], devices: int | None) -> Resolved:
    """Return the node with its network and the FLOPs of its step."""
    if isinstance(node, FuseNode):
        return dataclasses.replace(
            _fused(node, inputs), flops=measured_flops(plan, node, fused_config([i.config for i in inputs]))
        )
    if isinstance(node, GrowNode):
        config = growth_of(inputs[0].config, node.operator, node.options(node.seed)).config
        check_size(config)
        recipe = node.recipe
        if recipe.rates == "width":
            times_wider(inputs[0].config, config)
        return Resolved(node, config, None if recipe.optimizer_state == "fresh" else inputs[0].optimizer, recipe.ramp)
    source = inputs[0] if inputs else None
    config = node.model if source is None else source.config
    assert config is not None  # the node has either
    dispatch = plan.steps_per_dispatch
    node.cadence.check(dispatch)
    for name, steps in (("steps", node.steps), ("budget", node.budget)):
        if isinstance(steps, int) and steps % dispatch:
            raise InputError(f"{name} is {steps}, but a dispatch has {dispatch} steps; take a multiple of it")
    check_sentinels(node.length)
    check_share(node.batch, node.accumulate, devices or 1)
    if source is not None and source.optimizer is not None and not _same_state(node.optimizer, source.optimizer):
        raise InputError(
            f"its optimizer, {_optimizer(node.optimizer)}, cannot go on with the state of {source.name}, "
            f"{_optimizer(source.optimizer)}; take the same, or a growth with optimizer_state = 'fresh'"
        )
    flops = step_flops(config, node.batch, node.length, target_length(node.length))
    return Resolved(node, config, node.optimizer, "" if source is None else source.ramp, flops)


def times_wider(small: T5Config, grown: T5Config) -> int:
    """Return the grown ``d_model`` over the small one. Raise InputError if that is no whole number of at least 2."""
    copies, rest = divmod(grown.d_model, small.d_model)
    if rest or copies < 2:
        raise InputError(
            f"rates = 'width' is for a d_model that is a multiple of the small one, but it grows from {small.d_model} to "
            f"{grown.d_model}; take rates = 'keep'"
        )
    return copies


def _fused(node: FuseNode, sources: Sequence[Resolved]) -> Resolved:
    configs = [source.config for source in sources]
    config = fused_config(configs, node.norm)
    check_size(config)
    fusion_map(configs, node.weights or None)  # checks the weights
    if node.optimizer_state == "fresh":
        return Resolved(node, config, None, node.recipe.ramp)
    kinds = [source.optimizer for source in sources]
    if any(kind is None or not _same_state(kind, kinds[0]) for kind in kinds):
        raise InputError("its sources have different optimizers; take one for all, or optimizer_state = 'fresh'")
    return Resolved(node, config, kinds[0], node.recipe.ramp)


def _same_state(one: OptimizerSettings, other: OptimizerSettings | None) -> bool:
    """Return whether the states of two optimizers have the same structure."""
    return other is not None and one.name == other.name and (one.clip > 0) == (other.clip > 0)


def _optimizer(settings: OptimizerSettings) -> str:
    return f"{settings.name}{' with clipping' if settings.clip else ''}"


def _timed(plan: Plan, resolved: Resolved, inputs: Sequence[Resolved], budget: float | None) -> Resolved:
    """Return the node with its steps and FLOPs, as far as they are known before the plan runs."""
    node = resolved.node
    start = inputs[0].until if inputs else 0
    before: dict[str, float] | None = {}
    for source in inputs:
        before = None if before is None or source.spent is None else {**before, **source.spent}
    if not isinstance(node, TrainNode):
        return dataclasses.replace(
            resolved, start=start, spent=None if before is None else {**before, node.name: resolved.flops or 0.0}
        )
    if node.auto:
        if not node.source_node:
            return dataclasses.replace(resolved, start=0, steps=None, spent=None)
        whole = node.budget * resolved.step_flops if node.budget is not None else budget
        return dataclasses.replace(resolved, start=None, steps=None, spent=None, flops=whole)
    if isinstance(node.steps, int):
        steps: int | None = node.steps
    elif node.share is None and before is None:
        if budget is None:
            steps_within(plan, node, resolved.step_flops, None, 0.0)  # raises
        steps = None  # the ancestors' FLOPs are not known yet
    else:
        steps = steps_within(plan, node, resolved.step_flops, budget, math.fsum((before or {}).values()))
    if steps is not None:
        node.schedule.function(start or 0, steps)  # checks that the warm-up fits
    flops = None if steps is None else steps * resolved.step_flops
    known = before is not None and flops is not None and node.until_loss is None
    spent = {**before, node.name: flops} if known and before is not None and flops is not None else None
    return dataclasses.replace(resolved, start=start, steps=steps, spent=spent, flops=flops)
