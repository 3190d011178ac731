"""The theory's terms at the checkpoints of a plan: modified losses; at a growth, also conflict and greedy rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax

from fusion_core.models.t5 import step_flops
from fusion_core.runs.context import RunContext
from fusion_core.runs.graph import Resolved
from fusion_core.runs.growing import event_of
from fusion_core.runs.plan import TrainNode
from fusion_core.runs.separating import mean_loss
from fusion_core.schedule import GrowthMeter, NetworkMeter, TrainedNetwork, greedy_decision
from fusion_core.sealed import write_sealed
from fusion_core.text.span_corruption import target_length
from fusion_core.train import Metrics, rates_at
from fusion_core.train.devices import first_process

THEORY, GREEDY = "theory.jsonl", "greedy.json"
PAIRS = 4  # pairs of batches behind every estimate


def measure_growth(context: RunContext, growth: Resolved, sources: Mapping[str, Resolved]) -> None:
    """Estimate the terms at every common checkpoint of the sources; write a record of each to the growth's folder.

    Sources of different shapes, or a growth without a linear map or with a fresh optimizer, are left out, with a note.

    Args:
      context: of the run.
      growth: the node that fuses or grows.
      sources: its inputs, finished.
    """
    context.writer.wait()  # the checkpoints are read
    nodes = [source.node for source in sources.values()]
    event = event_of(context, growth.node, sources)  # type: ignore[arg-type]
    configs = {source.config for source in sources.values()}
    if len(configs) > 1 or event.mapping is None or growth.optimizer is None:
        context.note(f"{growth.name}: its terms are not estimated: the sources' shapes or optimizers do not allow it")
        return
    node = nodes[0]
    if not isinstance(node, TrainNode):
        return
    records = Metrics(context.folder_of(growth.name) / THEORY)
    seen = {record["step"] for record in records.records}
    works = {name: (context.done(name) or {}).get("work", ".") for name in sources}
    steps = [set(context.store(source, works[name]).steps()) for name, source in sources.items()]
    wanted = sorted(step for step in set.intersection(*steps) - seen if step)  # at 0 there are no moments to freeze
    if not wanted:
        return
    small = _trained(sources[node.name])
    grown_flops = step_flops(growth.config, node.batch, node.length, target_length(node.length))
    grown = dataclasses.replace(small, loss=mean_loss(growth.config), step_flops=grown_flops)
    meter = GrowthMeter(small, grown, event.mapping, event.factors)
    order = growth.node.inputs
    for step in wanted:
        context.note(f"{growth.name}: the theory's terms at step {step}")
        states = [context.state_at(sources[name], step, works[name]) for name in order]
        batches = context.data.fresh(node.length, node.batch, step, 2 * PAIRS)
        record = meter.measure(states, batches[:PAIRS], batches[PAIRS:])
        if first_process():
            records.write({"step": step, **record})
    if first_process():
        rate = max(float(r) for r in jax.tree.leaves(rates_at(states[0], means=True)))
        decision = greedy_decision(records.records, rate, event.factors)
        write_sealed(context.folder_of(growth.name) / GREEDY, dataclasses.asdict(decision))


def measure_alone(context: RunContext, resolved: Resolved) -> None:
    """Estimate a network's own terms at every checkpoint of its node; write a record of each to the node's folder.

    Args:
      context: of the run.
      resolved: a finished node that trains.
    """
    context.writer.wait()
    node = resolved.node
    assert isinstance(node, TrainNode)
    records = Metrics(context.folder_of(resolved.name) / THEORY)
    seen = {record["step"] for record in records.records}
    work = (context.done(resolved.name) or {}).get("work", ".")
    wanted = [step for step in context.store(resolved, work).steps() if step and step not in seen]
    meter = NetworkMeter(_trained(resolved))
    for step in wanted:
        batches = context.data.fresh(node.length, node.batch, step, 2 * PAIRS)
        record = meter.measure(context.state_at(resolved, step, work), batches[:PAIRS], batches[PAIRS:])
        if first_process():
            records.write({"step": step, **record})


def _trained(resolved: Resolved) -> TrainedNetwork:
    """Return a node's network with its optimizer and schedule."""
    node = resolved.node
    assert isinstance(node, TrainNode)
    schedule = node.schedule.function(resolved.start or 0, resolved.steps or node.schedule.warmup + 1)
    return TrainedNetwork(mean_loss(resolved.config), node.optimizer.build(), resolved.step_flops, schedule)
