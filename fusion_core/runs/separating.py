"""What a self-fusion measures in a run, with its text, loss and optimizer: a push apart, a size of noise; and the FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.models.t5 import T5Config, step_flops, token_loss
from fusion_core.runs.plan import FuseNode, Node, Plan, TrainNode
from fusion_core.schedule.noise import BATCHES as NOISE_BATCHES
from fusion_core.schedule.noise import NoiseChoice, choice_flops, choose_noise
from fusion_core.schedule.separation import BATCHES, Push, frozen_metric, mean_over, push_apart, separation_flops
from fusion_core.text.span_corruption import target_length
from fusion_core.train import TrainState, grow_states

if TYPE_CHECKING:
    from fusion_core.runs.data import RunData
    from fusion_core.runs.graph import Resolved
    from fusion_core.runs.growing import Event


def trained_before(plan: Plan, node: Node) -> TrainNode:
    """Return the nearest node before a growth that trains, whose batches are those of what the growth measures."""
    while not isinstance(node, TrainNode):
        node = plan.node(node.inputs[0])
    return node


def measured_flops(plan: Plan, node: FuseNode, config: T5Config) -> float:
    """Return the FLOPs of what a fusion measures, with the grown network's configuration; 0 if it measures nothing."""
    pushes = node.recipe.off_diagonal == "separating"
    if not pushes and node.noise != "auto":
        return 0.0
    trained = trained_before(plan, node)
    one = step_flops(config, trained.batch, trained.length, target_length(trained.length))
    return separation_flops(one) if pushes else choice_flops(one)


def mean_loss(config: T5Config) -> Any:
    """Return ``(params, batch) -> mean loss`` over the batch's tokens."""

    def mean(params: Any, batch: Any) -> Array:
        total, count = token_loss(params, config, batch["encoder_ids"], batch["targets"])
        return total / count

    return mean


def push_apart_in_run(
    plan: Plan,
    data: RunData,
    resolved: Resolved,
    source: Resolved,
    event: Event,
    parts: Sequence[TrainState],
    params: Any,
) -> Push:
    """Return a node's grown parameters, pushed apart along the directions that a few fresh batches give.

    With the sources' optimizer, frozen at the event, as the metric: the directions are those in which training parts the
    copies fastest, and the rate is one of a step.

    Args:
      plan, data: of the run.
      resolved: the node that fuses.
      source: its source.
      event: its growth.
      parts: states of the sources.
      params: grown parameters, with noise or without.
    """
    node, trained = resolved.node, trained_before(plan, resolved.node)
    assert isinstance(node, FuseNode)
    loss = mean_loss(resolved.config)
    batches = data.fresh(trained.length, trained.batch, int(parts[0].step), BATCHES)
    embedded, metric = jax.jit(event.mapping.embed)(tuple(part.params for part in parts)), None
    if source.optimizer is not None:
        optimizer, everything, scale = source.optimizer.build(), mean_over(loss, batches), _schedule(source, parts[0])
        carried = _carried(event, parts)
        metric = jax.jit(lambda state: frozen_metric(optimizer, lambda p, _: everything(p), state, None, scale))(
            carried
        )
    size = None if node.push is None else float(node.push)
    return push_apart(loss, event.mapping, embedded, params, batches, metric, size=size, seed=node.seed)


def choose_noise_in_run(
    plan: Plan,
    data: RunData,
    resolved: Resolved,
    source: Resolved,
    event: Event,
    parts: Sequence[TrainState],
    noisy: Callable[[float], Any],
) -> NoiseChoice:
    """Return the noise of a node with ``noise = "auto"``, from steps of its sources' optimizer on a few fresh batches.

    Args:
      plan, data, resolved, source, event, parts: as of ``push_apart_in_run``.
      noisy: returns the grown parameters with noise of a size.

    Raises:
      InputError: the source has no optimizer state to step with.
    """
    if source.optimizer is None:
        raise InputError(
            f"node {resolved.name}: noise = 'auto' steps with the optimizer of {source.name}, which left none"
        )
    trained = trained_before(plan, resolved.node)
    batches = data.fresh(trained.length, trained.batch, int(parts[0].step), NOISE_BATCHES)
    scale, optimizer = _schedule(source, parts[0]), source.optimizer.build()
    return choose_noise(mean_loss(resolved.config), optimizer, _carried(event, parts), noisy, batches, scale)


def _carried(event: Event, parts: Sequence[TrainState]) -> TrainState:
    """Return the grown state without noise, push or ramp."""
    return jax.jit(lambda s: grow_states(event.mapping, s, event.factors, copies=event.copies))(tuple(parts))


def _schedule(source: Resolved, state: TrainState) -> Any:
    """Return the schedule's factor at the end of the source, 1 if the source did not train."""
    if not isinstance(source.node, TrainNode):
        return 1.0
    schedule = source.node.schedule.function(source.start or 0, source.steps or source.node.schedule.warmup + 1)
    return schedule(state.step)
