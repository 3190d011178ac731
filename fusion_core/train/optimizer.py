"""Adafactor as T5 uses it and AdamW (by optax), the preconditioner read out, and states carried across a growth."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fusion_core.errors import InputError
from fusion_core.growth.maps import GrowthMap, Rule
from fusion_core.growth.moments import (
    MIN_DIM_TO_FACTOR,
    Factored,
    anew,
    factored_anew,
    factored_moment,
    first_moment,
    second_moment,
    spread,
)
from fusion_core.models.units import Params
from fusion_core.train.step import TrainState, rates_at


def adafactor() -> optax.GradientTransformation:
    """Return Adafactor at learning rate 1: factored second moments, updates of RMS at most 1 times each parameter's RMS.

    Source: Shazeer and Stern (2018); the settings are T5's.
    """
    return optax.adafactor(learning_rate=1.0, min_dim_size_to_factor=MIN_DIM_TO_FACTOR)


def adamw(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Return AdamW at learning rate 1; the decay, like the step, is in units of the learning rate.

    Source: Loshchilov and Hutter (2019).
    """
    return optax.adamw(1.0, b1, b2, eps, weight_decay=weight_decay)


def clipped(optimizer: optax.GradientTransformation, norm: float | None) -> optax.GradientTransformation:
    """Return the optimizer on gradients whose global norm is cut to ``norm``; if None, the optimizer itself.

    Raises:
      InputError: the norm is not positive and finite.
    """
    if norm is None:
        return optimizer
    if not (math.isfinite(norm) and norm > 0):
        raise InputError(f"the clipping norm is {norm}; it must be positive and finite")
    return optax.chain(optax.clip_by_global_norm(norm), optimizer)


def preconditioner(
    optimizer: optax.GradientTransformation, grads: Params, state: optax.OptState, params: Params
) -> Params:
    """Return the diagonal M of the optimizer's update ``−M ∇L``, with the optimizer frozen at this gradient.

    The update must be the gradient times a factor per entry; M is the update divided by the gradient. Where the gradient
    is exactly zero (rows of unseen tokens), M is computed at a gradient too small to change the statistics.
    """
    tiny = 1e-22  # its square vanishes in float32, and beside the 1e-30 that Adafactor adds
    probe = jax.tree.map(lambda g: jnp.where(jnp.abs(g) < tiny, tiny, g), grads)
    updates, _ = optimizer.update(probe, state, params)
    return jax.tree.map(lambda u, g: -u / g, updates, probe)


def grow_states(
    mapping: GrowthMap, states: Sequence[TrainState], factors: Params, *, copies: bool = False, fresh_new: bool = False
) -> TrainState:
    """Return the training state after a growth: parameters by J, moments by ``grow_optimizer_state``, step of the first.

    Its learning rates are those of the first network's next step, times ``factors``, and it has no ramp: of a ramp that is
    not finished the rates stay where they are (an array's mean, if its entries differ by the ramp alone).

    Args:
      mapping: map J of a fusion or of a growth operator.
      states: training states of the networks that J takes; one for an operator.
      factors: factors on the first network's learning rates, a tree like the grown parameters with a scalar or an array
        for each array (``fusion_core.rate_factors``, ``fusion_core.growth_rate_factors``). A new layer has the rates of
        the layer that it copies.
      copies: whether the networks are equal.
      fresh_new: whether the moments of new entries begin anew.

    Raises:
      InputError: as ``grow_optimizer_state``.
    """
    networks = [state.params for state in states]

    def rate(rule: Rule, parts: list[Any]) -> Any:
        return spread(rule, parts[0]) if jnp.ndim(parts[0]) else parts[0]

    rates = mapping.each(rate, [rates_at(states[0], means=True)] * len(states))
    return TrainState(
        params=mapping.grown(tuple(networks) if mapping.several else networks[0]),
        opt_state=grow_optimizer_state(
            mapping, [state.opt_state for state in states], copies=copies, fresh_new=fresh_new
        ),
        step=states[0].step,
        rates=jax.tree.map(lambda factor, r: (factor * r).astype(r.dtype), factors, rates),
    )


def grow_optimizer_state(
    mapping: GrowthMap, states: Sequence[Any], *, copies: bool = False, fresh_new: bool = False
) -> Any:
    """Return the optimizer state after a growth: moments by the gradients' map, step counts of the first network.

    If copies get equal gradients, the grown ones are known: for k copies in a fusion every block of a hidden matrix, the
    off-diagonal ones too, gets w/s of the source's, for n copies of a unit 1/n; second moments get the square. The rest is
    estimated: blocks between different sources, new layers, parts that are drawn (``fusion_core.growth.moments``).

    Args:
      mapping: map J of a fusion or of a growth operator.
      states: states of one optax optimizer, one for each network: Adam and optimizers built on it, Adafactor, momentum,
        or optimizers without arrays.
      copies: whether the networks are equal in parameters and states: off-diagonal moments are then exact. For one
        network they always are.
      fresh_new: whether the moments of new entries begin anew: first moments at zero, second moments at their mean over the
        array's new entries (``fusion_core.growth.moments.anew``). Those of old entries are carried.

    Raises:
      InputError: a state holds arrays of an unknown kind.
    """
    copies = copies or not mapping.several
    shapes = list(mapping.shapes) if mapping.several else [mapping.shapes]
    trees: list[Any] = [jax.tree.structure(tree) for tree in shapes]

    def each(f: Callable[..., Any], moments: Sequence[Params]) -> Params:
        return mapping.each(lambda rule, parts: f(rule, parts, copies=copies), moments)

    def first(moments: Sequence[Params]) -> Params:
        grown = each(first_moment, moments)
        return jax.tree.map(lambda r, m: anew(r, m, second=False), mapping.rules, grown) if fresh_new else grown

    def second(moments: Sequence[Params]) -> Params:
        grown = each(second_moment, moments)
        return jax.tree.map(lambda r, m: anew(r, m, second=True), mapping.rules, grown) if fresh_new else grown

    def factored(parts: Sequence[optax.FactoredState]) -> optax.FactoredState:
        wrapped = []
        for state, tree, network in zip(parts, trees, shapes, strict=True):
            leaves = zip(*(tree.flatten_up_to(t) for t in (state.v_row, state.v_col, state.v, network)), strict=True)
            wrapped.append(tree.unflatten([Factored(row, col, v, struct.shape) for row, col, v, struct in leaves]))
        grown = each(factored_moment, wrapped)
        grown = jax.tree.map(factored_anew, mapping.rules, grown) if fresh_new else grown
        v_row, v_col, v = (jax.tree.map(operator.attrgetter(name), grown) for name in ("v_row", "v_col", "v"))
        return optax.FactoredState(count=parts[0].count, v_row=v_row, v_col=v_col, v=v)

    def grow(parts: Sequence[Any], owner: str = "") -> Any:
        one = parts[0]
        if isinstance(one, optax.FactoredState):
            return factored(parts)
        if isinstance(one, optax.ScaleByAdamState):
            mu, nu = first([s.mu for s in parts]), second([s.nu for s in parts])
            return optax.ScaleByAdamState(count=one.count, mu=mu, nu=nu)
        if isinstance(one, optax.TraceState):
            return optax.TraceState(trace=first([s.trace for s in parts]))
        if isinstance(one, optax.EmaState):
            return optax.EmaState(count=one.count, ema=first([s.ema for s in parts]))
        if isinstance(one, tuple):
            grown = [grow(fields, type(one).__name__) for fields in zip(*parts, strict=True)]
            return type(one)(*grown) if hasattr(one, "_fields") else tuple(grown)
        if any(jnp.ndim(leaf) for leaf in jax.tree.leaves(one)):
            raise InputError(
                f"an optimizer state of type {owner or type(one).__name__} holds arrays that no growth rule is known for; "
                "Adam, Adafactor, momentum and averages of gradients can be grown, or start a new state"
            )
        return one

    return grow(states)
