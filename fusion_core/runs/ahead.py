"""What a run will compile after its next growths, compiled while it trains before them."""

from __future__ import annotations

from collections.abc import Mapping

from fusion_core.runs.context import RunContext, state_shapes, trainer_of
from fusion_core.runs.graph import Resolved
from fusion_core.runs.plan import TrainNode
from fusion_core.train.devices import processes


def grown_from(nodes: Mapping[str, Resolved], name: str) -> list[Resolved]:
    """Return the ``train`` nodes that go on from a growth of a node, or from growths of that growth."""
    found = []
    for resolved in nodes.values():
        node = resolved.node
        if isinstance(node, TrainNode):
            if node.source_node == name and not isinstance(nodes[name].node, TrainNode):
                found.append(resolved)
        elif name in node.inputs:
            found += grown_from(nodes, node.name)
    return found


def compile_ahead(context: RunContext, nodes: Mapping[str, Resolved], name: str) -> None:
    """Begin to compile steps and evaluations of the networks that are grown from a node, one after the other in a thread.

    They are those that no node of this process has had yet. Nothing is done where several processes must compile the same.
    """
    if processes()[1] > 1:
        return
    for resolved in grown_from(nodes, name):
        node, count = resolved.node, len(context.trainers)
        assert isinstance(node, TrainNode)
        trainer = trainer_of(context.plan, resolved.config, node, context.trainers)
        if len(context.trainers) > count and not context.finished(resolved.name):
            state = state_shapes(resolved.config, resolved.optimizer, resolved.ramp)
            trainer.compile_ahead(state, context.data.validation(node.length, node.batch))
