"""What a run will compile after its next growths, compiled while it trains before them."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from fusion_core.runs.context import RunContext, state_shapes, trainer_of
from fusion_core.runs.graph import Resolved
from fusion_core.runs.growing import prepared
from fusion_core.runs.plan import TrainNode
from fusion_core.train.ahead import in_turn
from fusion_core.train.devices import processes


def after_growths(nodes: Mapping[str, Resolved], name: str) -> tuple[list[Resolved], list[Resolved]]:
    """Return the growths of a node and of those growths, and the ``train`` nodes that go on from them."""
    growths = [r for r in nodes.values() if name in r.node.inputs and not isinstance(r.node, TrainNode)]
    trained = [r for r in nodes.values() for g in growths if isinstance(r.node, TrainNode) and g.name in r.node.inputs]
    further = [after_growths(nodes, growth.name) for growth in growths]
    return growths + [g for found, _ in further for g in found], trained + [t for _, found in further for t in found]


def compile_ahead(context: RunContext, nodes: Mapping[str, Resolved], name: str) -> None:
    """Begin to prepare the growths that come from a node, and to compile steps and evaluations of what is trained after them.

    All is done in turn beside the training; steps are those that no node of this process has had yet. Nothing is done where
    several processes must compile the same.
    """
    if processes()[1] > 1:
        return
    growths, trained = after_growths(nodes, name)
    for growth in growths:
        sources = {n: nodes[n] for n in growth.node.inputs}
        if growth.name not in context.growths and not context.finished(growth.name):
            work = functools.partial(prepared, context, growth, sources, compiled=True)
            context.growths[growth.name] = in_turn(work)
    for resolved in trained:
        node, count = resolved.node, len(context.trainers)
        assert isinstance(node, TrainNode)
        trainer = trainer_of(context.plan, resolved.config, node, context.trainers)
        if len(context.trainers) > count and not context.finished(resolved.name):
            state = state_shapes(resolved.config, resolved.optimizer, resolved.ramp)
            trainer.compile_ahead(state, context.data.validation(node.length, node.batch))
