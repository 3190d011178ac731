"""Adafactor as T5 uses it and AdamW (by optax), the preconditioner read out, and states carried across a growth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fusion_core.errors import InputError
from fusion_core.growth.linear import FusionMap, Params
from fusion_core.growth.moments import MIN_DIM_TO_FACTOR, factored_moment, first_moment, second_moment
from fusion_core.train.step import TrainState


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
    """The diagonal M of the optimizer's update ``−M ∇L``, with the optimizer frozen at this gradient.

    For any optimizer whose update is the gradient times a factor per entry: the factor is the update divided by the
    gradient. Where the gradient is exactly zero (rows of unseen tokens) it is read off at a gradient too small to
    change the statistics.
    """
    tiny = 1e-22  # its square vanishes in float32, and beside the 1e-30 that Adafactor adds
    probe = jax.tree.map(lambda g: jnp.where(jnp.abs(g) < tiny, tiny, g), grads)
    updates, _ = optimizer.update(probe, state, params)
    return jax.tree.map(lambda u, g: -u / g, updates, probe)


def fuse_states(
    mapping: FusionMap, states: Sequence[TrainState], factors: Params, *, copies: bool = False
) -> TrainState:
    """The training state of the fused network: parameters by J, moments by ``fuse_optimizer_state``, step of the first.

    Args:
      mapping: of the fusion.
      states: of the sources.
      factors: on the first source's learning rates, a scalar an array (``fusion_core.rate_factors``).
      copies: the sources are equal.
    """
    return TrainState(
        params=mapping.embed([state.params for state in states]),
        opt_state=fuse_optimizer_state(mapping, [state.opt_state for state in states], copies=copies),
        step=states[0].step,
        rates=jax.tree.map(lambda factor, rate: (factor * rate).astype(rate.dtype), factors, states[0].rates),
    )


def fuse_optimizer_state(mapping: FusionMap, states: Sequence[Any], *, copies: bool = False) -> Any:
    """The optimizer state of the fused network: moments by the gradients' map, step counts of the first.

    For k copies the fused gradient is known: every block of a hidden matrix, the off-diagonal ones too, gets w of the
    source's, an array scaled by s gets w/s of it; second moments get the square. For different sources the blocks between
    them are estimates (``fusion_core.growth.moments``).

    Args:
      mapping: of the fusion.
      states: of one optax optimizer, one a source: Adam and those built on it, Adafactor, momentum, or none of these.
      copies: the sources are equal, parameters and states: off-diagonal moments are exact rather than estimated.

    Raises:
      InputError: a state holds arrays of a kind that is not known here.
    """
    treedef: Any = jax.tree.structure(mapping.rules)
    rules, shapes, weights = jax.tree.leaves(mapping.rules), mapping.leaf_shapes(), mapping.weights

    def each(f: Callable[..., Any], trees: Sequence[Params]) -> Params:
        leaves = zip(*(treedef.flatten_up_to(tree) for tree in trees), strict=True)
        return treedef.unflatten(
            [f(rule, weights, list(moments), copies=copies) for rule, moments in zip(rules, leaves, strict=True)]
        )

    def factored(parts: Sequence[optax.FactoredState]) -> optax.FactoredState:
        per_source = [
            list(zip(*(treedef.flatten_up_to(t) for t in (s.v_row, s.v_col, s.v)), strict=True)) for s in parts
        ]
        fused = [
            factored_moment(rule, weights, leaf_shapes, moments, copies=copies)
            for rule, leaf_shapes, moments in zip(rules, shapes, zip(*per_source, strict=True), strict=True)
        ]
        v_row, v_col, v = (treedef.unflatten(leaves) for leaves in zip(*fused, strict=True))
        return optax.FactoredState(count=parts[0].count, v_row=v_row, v_col=v_col, v=v)

    def fuse(parts: Sequence[Any], owner: str = "") -> Any:
        first = parts[0]
        if isinstance(first, optax.FactoredState):
            return factored(parts)
        if isinstance(first, optax.ScaleByAdamState):
            mu, nu = each(first_moment, [s.mu for s in parts]), each(second_moment, [s.nu for s in parts])
            return optax.ScaleByAdamState(count=first.count, mu=mu, nu=nu)
        if isinstance(first, optax.TraceState):
            return optax.TraceState(trace=each(first_moment, [s.trace for s in parts]))
        if isinstance(first, optax.EmaState):
            return optax.EmaState(count=first.count, ema=each(first_moment, [s.ema for s in parts]))
        if isinstance(first, tuple):
            fused = [fuse(fields, type(first).__name__) for fields in zip(*parts, strict=True)]
            return type(first)(*fused) if hasattr(first, "_fields") else tuple(fused)
        if any(jnp.ndim(leaf) for leaf in jax.tree.leaves(first)):
            raise InputError(
                f"an optimizer state of type {owner or type(first).__name__} holds arrays that no growth rule is known for; "
                "Adam, Adafactor, momentum and averages of gradients can be grown, or start a new state"
            )
        return first

    return fuse(states)
