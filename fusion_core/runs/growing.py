"""A growth in a run: its map, its factors on the learning rates, and the state that it makes of its sources' states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.growth import GrowthMap, fuse, fusion_map, grow, growth_rate_factors, rate_factors
from fusion_core.growth.operators import growth_of
from fusion_core.models.t5.model import parameter_shapes
from fusion_core.runs.context import RunContext, scaled, state_shapes
from fusion_core.runs.graph import Resolved, times_wider
from fusion_core.runs.plan import GrowNode, GrowthNode, Recipe, TrainNode
from fusion_core.runs.separating import choose_noise_in_run, push_apart_in_run
from fusion_core.train import Ramp, TrainState, grow_states, rates_at
from fusion_core.train.ahead import Ahead


@dataclasses.dataclass(frozen=True)
class Event:
    """A growth as functions of its sources' states.

    Attributes:
      mapping: the linear map J.
      factors: on the learning rates, one number an array.
      first: the ramp's factors, an array each or one number an array; None if there is no ramp.
      params: returns the grown parameters, given those of the sources in order.
      copies: whether all sources are one network.
    """

    mapping: Any
    factors: Any
    first: Any
    params: Callable[[tuple[Any, ...]], Any]
    copies: bool


def event_of(context: RunContext, node: GrowthNode, sources: Mapping[str, Resolved]) -> Event:
    """Return the growth of a node, from the configurations of its sources."""
    seed, config = context.seed_of(node), sources[node.inputs[0]].config
    optimizer = sources[node.inputs[0]].optimizer
    recipe = node.recipe
    if isinstance(node, GrowNode):
        options = node.options(seed)
        growth, sizes = growth_of(config, node.operator, options), dataclasses.asdict(options)
        noise = sizes.pop("noise")
        factors = jax.tree.map(lambda _: 1.0, parameter_shapes(growth.config))
        if recipe.velocity and optimizer is not None:
            anything = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), parameter_shapes(config))
            exact = growth_rate_factors(anything, config, node.operator, optimizer.rule, **sizes)
            # one number an array: exact if all units have equally many copies
            factors = jax.tree.map(lambda f: float(np.mean(f)), exact)
        if recipe.rates == "width" and optimizer is not None:
            factors = rate_factors(factors, growth.config, times_wider(config, growth.config), optimizer.rule)
        make = lambda params: grow(params[0], config, node.operator, noise=noise, **sizes)[0]
        return Event(growth.mapping, *_rates(recipe, factors, growth.mapping), make, False)
    configs = [sources[name].config for name in node.sources]
    factors = jax.tree.map(lambda _: 1.0, parameter_shapes(config))
    if recipe.velocity and optimizer is not None:
        factors = rate_factors(factors, config, len(configs), optimizer.rule)
    choices: dict[str, Any] = {
        "norm": node.norm,
        "off_diagonal": _blocks(recipe),
        "noise": recipe.noise,
        "seed": seed,
    }
    weights = node.weights or None
    mapping = fusion_map(configs, weights)
    return Event(
        mapping,
        *_rates(recipe, factors, mapping),
        lambda params: fuse(list(zip(params, configs, strict=True)), weights, **choices)[0],
        len(set(node.sources)) == 1,
    )


def _blocks(recipe: Recipe) -> str:
    """Return the blocks that ``fuse`` makes; a push apart comes after it."""
    if recipe.off_diagonal != "separating":
        return recipe.off_diagonal
    return "antisymmetric" if recipe.noise else "zero"


def _rates(recipe: Recipe, factors: Any, mapping: GrowthMap | None) -> tuple[Any, Any]:
    """Return the factors on the rates, and those of the ramp; None if there is no ramp.

    Args:
      recipe: of the growth.
      factors: those that keep the velocity if the recipe has them at all, else ones.
      mapping: J; None if all entries are new.
    """
    if not recipe.ramp:
        return factors, None
    ones, zeros = (jax.tree.map(lambda _, value=value: value, factors) for value in (1.0, 0.0))
    if recipe.rates == "relax":
        return ones, factors
    if recipe.rates == "rewarm":
        return ones, zeros
    if mapping is None:
        raise InputError("nothing of the network is kept, so that all entries are new; take rates = 'rewarm'")
    return ones, jax.tree.map(lambda rule: jnp.where(rule.new_entries(), 0.0, 1.0), mapping.rules)


def prepared(
    context: RunContext, resolved: Resolved, sources: Mapping[str, Resolved], *, compiled: bool = False
) -> tuple[Event, Ahead | None]:
    """Return a growth as functions of its sources' states: the event, and what carries states across, if they are carried.

    Args:
      context: of the run.
      resolved: the growth's node.
      sources: nodes that are grown, by name.
      compiled: whether to compile the second, from the shapes of the sources' states.
    """
    node = resolved.node
    assert not isinstance(node, TrainNode)
    event = event_of(context, node, sources)
    if resolved.optimizer is None or event.mapping is None:
        return event, None
    choices = {"copies": event.copies, "fresh_new": node.recipe.optimizer_state == "fresh_new"}
    # without the parameters, which the event makes
    carry = Ahead(jax.jit(lambda s: grow_states(event.mapping, s, event.factors, **choices)._replace(params=())))
    if compiled:
        parts = [sources[name] for name in node.inputs]
        carry.compile_now(tuple(state_shapes(part.config, part.optimizer, part.ramp) for part in parts))
    return event, carry


def grown_state(
    context: RunContext, resolved: Resolved, sources: Mapping[str, Resolved], states: Mapping[str, TrainState]
) -> TrainState:
    """Return the state after a growth of the sources' states (by name)."""
    node = resolved.node
    assert not isinstance(node, TrainNode)
    ahead = context.growths.get(node.name)
    event, carry = (ahead and ahead.result()) or prepared(context, resolved, sources)
    parts = tuple(states[name] for name in node.inputs)
    made = lambda event: event.params(tuple(part.params for part in parts))
    measure = (context.plan, context.data, resolved, sources[node.inputs[0]], event, parts)
    cost = f"; that cost {resolved.flops:.3g} FLOPs"
    if node.noise == "auto":
        noisy = lambda size: made(event_of(context, dataclasses.replace(node, noise=size), sources))
        choice = choose_noise_in_run(*measure, noisy)
        context.note(f"node {node.name}: {choice.reason}{cost}")
        params = noisy(choice.noise)
    else:
        params = made(event)
    if node.recipe.off_diagonal == "separating":
        push = push_apart_in_run(*measure, params)
        context.note(f"node {node.name}: {push.reason}{cost}")
        params = push.params
    step = parts[0].step
    ramp: Ramp | tuple[()] = ()
    if event.first is not None:
        first = jax.tree.map(lambda f: jnp.asarray(f, jnp.float32), event.first)
        ramp = Ramp(first, step, jnp.asarray(node.recipe.rewarm, jnp.int32))
    if carry is not None:
        return carry(parts)._replace(params=params, ramp=ramp)
    # the node that goes on sets a fresh optimizer's rate, so that only the ratios of the rates matter here
    rates = jax.tree.map(lambda factor: jnp.asarray(factor, jnp.float32), event.factors)
    found: object = jax.tree.structure(rates)
    if found == jax.tree.structure(parts[0].rates):
        rates = jax.tree.map(jnp.multiply, rates, scaled(rates_at(parts[0], means=True), 1.0))
    return TrainState(params, (), step, rates, ramp)
