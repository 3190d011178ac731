"""What follows from a plan: the order of its nodes, each one's network, steps and FLOPs; and everything that is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fusion_core.errors import InputError
from fusion_core.growth import fused_config, fusion_map
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.flops import step_flops
from fusion_core.runs.schema import FuseNode, Node, OptimizerSettings, Plan, TrainNode
from fusion_core.text.span_corruption import MEAN_SPAN, NOISE_DENSITY, check_sentinels, target_length, window_length
from fusion_core.train.devices import check_share


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A node and what follows from the nodes before it.

    Attributes:
      node: as the plan has it.
      config: of its network.
      optimizer: whose state it leaves behind; None: a fusion with a fresh one.
      start, until: its first step, counted through its ancestors, and its last; None: the online rule decides.
      step_flops: of a training step; 0 for a fusion.
      flops: of the node; an ``auto`` node after a fusion has all of its budget, its sources' share included, and they none.
    """

    node: Node
    config: T5Config
    optimizer: OptimizerSettings | None
    start: int | None
    until: int | None
    step_flops: float = 0.0
    flops: float = 0.0

    @property
    def name(self) -> str:
        return self.node.name


@dataclasses.dataclass(frozen=True)
class Auto:
    """Sources, their fusion and the grown network that the online rule takes together."""

    sources: tuple[TrainNode, ...]
    fuse: FuseNode
    grown: TrainNode

    @property
    def names(self) -> tuple[str, ...]:
        return (*(source.name for source in self.sources), self.fuse.name, self.grown.name)


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """The nodes, each after its inputs, otherwise in the order given.

    Raises:
      InputError: an input is missing, or there is a cycle; all such errors in one message.
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


def auto_group(plan: Plan, grown: TrainNode) -> Auto:
    """The group of an ``auto`` node after a fusion. Raises InputError where it is none that the rule can decide."""
    owner = f"node {grown.name}: steps = 'auto' "
    fuse = plan.node(grown.source_node)
    if not isinstance(fuse, FuseNode):
        raise InputError(f"{owner}is for networks from a random start and for the one that is fused from them")
    if grown.budget is None:
        raise InputError(f"{owner}needs a budget, in steps of this node, its sources' included")
    sources = [plan.node(name) for name in dict.fromkeys(fuse.sources)]
    for source in sources:
        if not isinstance(source, TrainNode) or source.model is None or source.steps is not None:
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
    return Auto(tuple(s for s in sources if isinstance(s, TrainNode)), fuse, grown)


def auto_groups(plan: Plan) -> list[Auto]:
    """All groups. Raises InputError as ``auto_group``, or where an ``auto`` source belongs to no group or to two."""
    asks = [n for n in plan.nodes if isinstance(n, TrainNode) and n.steps is None]
    groups = [auto_group(plan, node) for node in asks if node.source_node]
    for node in asks:
        count = sum(node in group.sources for group in groups)
        if not node.source_node and count != 1:
            raise InputError(
                f"node {node.name}: steps = 'auto' needs exactly one node with a budget that goes on from a fusion of it, "
                f"but there are {count}"
            )
    fused = [group.fuse.name for group in groups]
    if len(set(fused)) < len(fused):
        raise InputError("two nodes with steps = 'auto' go on from the same fusion; give one of them a number of steps")
    return groups


def resolve(plan: Plan, devices: int | None = None) -> list[Resolved]:
    """All nodes in an order in which they can run.

    Args:
      plan: to look at.
      devices: that will share the batches; None: not known.

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
    for node in order:
        inputs = [found.get(name) for name in node.inputs]
        known = [resolved for resolved in inputs if resolved is not None]
        if len(known) < len(inputs):
            continue  # an input is wrong, and it has been said
        try:
            if isinstance(node, FuseNode):
                found[node.name] = _fused(node, known)
            else:
                found[node.name] = _trained(plan, node, known[0] if known else None, devices)
        except InputError as error:
            message = str(error)
            errors.append(message if message.startswith(f"node {node.name}") else f"node {node.name}: {message}")
    if errors:
        raise InputError("\n  ".join(errors))
    return list(found.values())


def _fused(node: FuseNode, sources: Sequence[Resolved]) -> Resolved:
    configs = [source.config for source in sources]
    config = fused_config(configs, node.norm)
    fusion_map(configs, node.weights or None)  # for the weights
    if node.optimizer_state == "fresh":
        return Resolved(node, config, None, sources[0].until, sources[0].until)
    kinds = [source.optimizer for source in sources]
    if any(kind is None or not _same_state(kind, kinds[0]) for kind in kinds):
        raise InputError("its sources have different optimizers; take one for all, or optimizer_state = 'fresh'")
    return Resolved(node, config, kinds[0], sources[0].until, sources[0].until)


def _same_state(one: OptimizerSettings, other: OptimizerSettings | None) -> bool:
    """Whether the two optimizers have states of the same structure."""
    return other is not None and one.name == other.name and (one.clip > 0) == (other.clip > 0)


def _trained(plan: Plan, node: TrainNode, source: Resolved | None, devices: int | None) -> Resolved:
    config = node.model if source is None else source.config
    assert config is not None  # the node has either
    dispatch = plan.steps_per_dispatch
    start = 0 if source is None else source.until
    node.cadence.check(dispatch)
    for name, steps in (("steps", node.steps), ("budget", node.budget)):
        if steps is not None and steps % dispatch:
            raise InputError(f"{name} is {steps}, but a dispatch has {dispatch} steps; take a multiple of it")
    check_sentinels(node.length, window_length(node.length)[0], NOISE_DENSITY, MEAN_SPAN)
    check_share(node.batch, node.accumulate, devices or 1)
    if source is not None and source.optimizer is not None and not _same_state(node.optimizer, source.optimizer):
        raise InputError(
            f"its optimizer, {_optimizer(node.optimizer)}, cannot go on with the state of {source.name}, "
            f"{_optimizer(source.optimizer)}; take the same, or a fusion with optimizer_state = 'fresh'"
        )
    node.schedule.function(node.steps or node.budget or node.schedule.warmup + 1)
    step = step_flops(config, node.batch, node.length, target_length(node.length))
    if node.steps is None:
        return Resolved(node, config, node.optimizer, None if source else 0, None, step, (node.budget or 0) * step)
    until = None if start is None else start + node.steps
    return Resolved(node, config, node.optimizer, start, until, step, node.steps * step)


def _optimizer(settings: OptimizerSettings) -> str:
    return f"{settings.name}{' with clipping' if settings.clip else ''}"
