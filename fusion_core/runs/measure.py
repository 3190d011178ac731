"""The theory's terms at the checkpoints of a growth's sources: modified losses, conflict, the greedy rule's rates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax

from fusion_core import atomic
from fusion_core.models.t5 import T5Config, step_flops, token_loss
from fusion_core.runs.context import RunContext, event_of
from fusion_core.runs.graph import Resolved
from fusion_core.runs.plan import TrainNode
from fusion_core.schedule import GrowthMeter, TrainedNetwork, greedy_decision
from fusion_core.text.span_corruption import target_length
from fusion_core.train import Metrics
from fusion_core.train.devices import first_process

THEORY, GREEDY = "theory.jsonl", "greedy.json"
PAIRS = 4  # pairs of batches behind every estimate


def measure(context: RunContext, growth: Resolved, sources: Mapping[str, Resolved]) -> None:
    """Estimate the terms at every common checkpoint of the sources; write a record of each to the growth's folder.

    Sources of different shapes, or a growth without a linear map or with a fresh optimizer, are left out, with a note.

    Args:
      context: of the run.
      growth: the node that fuses or grows.
      sources: its inputs, finished.
    """
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
    optimizer = growth.optimizer.build()
    before = sources[node.name]
    schedule = node.schedule.function(before.start or 0, before.steps or node.schedule.warmup + 1)
    small = TrainedNetwork(_mean_loss(configs.pop()), optimizer, before.step_flops, schedule)
    grown_flops = step_flops(growth.config, node.batch, node.length, target_length(node.length))
    meter = GrowthMeter(
        small, TrainedNetwork(_mean_loss(growth.config), optimizer, grown_flops, schedule), event.mapping, event.factors
    )
    order = growth.node.inputs
    for step in wanted:
        context.note(f"{growth.name}: the theory's terms at step {step}")
        states = [context.state_at(sources[name], step, works[name]) for name in order]
        batches = context.data.fresh(node.length, node.batch, step, 2 * PAIRS)
        record = meter.measure(states, batches[:PAIRS], batches[PAIRS:])
        if first_process():
            records.write({"step": step, **record})
    if first_process():
        rate = max(float(r) for r in jax.tree.leaves(states[0].rates))
        decision = greedy_decision(records.records, rate, event.factors)
        atomic.write_text(
            context.folder_of(growth.name) / GREEDY, json.dumps(dataclasses.asdict(decision), indent=2) + "\n"
        )


def _mean_loss(config: T5Config) -> Any:
    def mean(params: Any, batch: Any) -> jax.Array:
        total, count = token_loss(params, config, batch["encoder_ids"], batch["targets"])
        return total / count

    return mean
