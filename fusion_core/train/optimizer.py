"""Adafactor as T5 uses it (by optax), its preconditioner read out, and its state carried across a growth event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusion_core.errors import InputError
from fusion_core.fusion.linear import FusionMap, Params, Rule
from fusion_core.train.step import TrainState

# Second moments are factored in the two largest axes when the smaller has at least this many entries. T5's own 128
# would leave our small networks unfactored, and only factored moments give a grown network's new entries an estimate.
MIN_DIM_TO_FACTOR = 8

Schedule = Callable[[Any], Any]


def t5_schedule(warmup: int = 10_000) -> Schedule:
    """T5's schedule ``√(warmup / max(n, warmup))`` at step n: constant, then the inverse square root; its peak is 1.

    Times the learning rate (``TrainState.rates``): with 0.01 it is T5's own ``1 / √max(n, 10⁴)``. The unit is
    Adafactor's: relative to each parameter's root mean square. Source: Raffel et al. (2020), section 3.1.2.

    Raises:
      InputError: warmup is below 1.
    """
    if warmup < 1:
        raise InputError(f"the schedule's warmup is {warmup} steps; it must be at least 1")

    def schedule(n: Any) -> Any:
        return jnp.sqrt(warmup / jnp.maximum(n, warmup))

    return schedule


def adafactor(schedule: Schedule) -> optax.GradientTransformation:
    """Adafactor with factored second moments, updates clipped to RMS 1 and scaled by each parameter's RMS.

    Source: Shazeer and Stern (2018); the settings are T5's.
    """
    return optax.adafactor(learning_rate=schedule, min_dim_size_to_factor=MIN_DIM_TO_FACTOR)


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


def _factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(axis that ``v_row`` keeps, axis that ``v_col`` keeps): optax's rule; None: not factored."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape)
    if shape[order[-2]] < MIN_DIM_TO_FACTOR:
        return None
    return int(order[-2]), int(order[-1])


def _fuse_moment(
    rule: Rule, weights: Sequence[float], shapes: Sequence[tuple[int, ...]], moments: Sequence[tuple[Any, Any, Any]]
) -> tuple[Any, Any, Any]:
    """(v_row, v_col, v) of one fused array from those of its sources."""
    # a source's gradient reaches the fused array times w/s: L depends on w·output, and the array holds s·θ
    factors = [(w / s) ** 2 for w, s in zip(weights, rule.scales, strict=True)]
    dims = [sum(s[a] for s in shapes) if a in rule.axes else shapes[0][a] for a in range(len(shapes[0]))]
    fused_axes = _factored_axes(tuple(dims))
    placeholder = jnp.zeros((1,), moments[0][2].dtype)
    if fused_axes is None:
        scaled = [f * v for f, (_, _, v) in zip(factors, moments, strict=True)]
        if rule.axes:
            return placeholder, placeholder, Rule(rule.axes, (1.0,) * len(shapes)).embed(scaled)
        return placeholder, placeholder, sum(w * v for w, v in zip(weights, scaled, strict=True))

    def along(axis: int) -> Any:
        """Mean square over the other axis, for each index of ``axis`` of the fused array."""
        parts, sizes = [], []
        for factor, shape, (v_row, v_col, v) in zip(factors, shapes, moments, strict=True):
            axes = _factored_axes(shape)
            other = 1 - axis
            # a source too small to be factored has the whole of v: its means are the factors
            part = jnp.mean(v, axis=other) if axes is None else (v_row if axes[0] == axis else v_col)
            parts.append(factor * part)
            sizes.append(shape[other] if other in rule.axes else 1)
        if axis in rule.axes:
            return jnp.concatenate(parts)
        return sum(n * part for n, part in zip(sizes, parts, strict=True)) / sum(sizes)

    return along(fused_axes[0]), along(fused_axes[1]), placeholder


def fuse_states(mapping: FusionMap, states: Sequence[TrainState], factors: Params) -> TrainState:
    """The training state of the fused network: parameters by J, moments by ``fuse_optimizer_state``, step of the first.

    Args:
      mapping: of the fusion.
      states: of the sources.
      factors: on the first source's learning rates, a scalar an array (``fusion_core.rate_factors``).
    """
    return TrainState(
        params=mapping.embed([state.params for state in states]),
        opt_state=fuse_optimizer_state(mapping, [state.opt_state for state in states]),
        step=states[0].step,
        rates=jax.tree.map(lambda factor, rate: (factor * rate).astype(rate.dtype), factors, states[0].rates),
    )


def fuse_optimizer_state(mapping: FusionMap, states: Sequence[optax.OptState]) -> optax.OptState:
    """The optimizer state of the fused network: moments by the square of the gradients' map, step counts of the first.

    For k copies the fused gradient is known: every block of a hidden matrix, the off-diagonal ones too, gets 1/k of the
    source's, an array scaled by s gets w/s of it. Factored second moments follow by concatenation and so have estimates
    for the new entries. For different sources this is the estimate, not the truth.

    Args:
      mapping: of the fusion.
      states: of ``adafactor``, one a source.
    """
    treedef: Any = jax.tree.structure(mapping.rules)
    rules = jax.tree.leaves(mapping.rules)
    shapes = [jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple)) for tree in mapping.shapes]

    def fuse(parts: Sequence[Any]) -> Any:
        if not isinstance(parts[0], optax.FactoredState):
            return parts[0]
        per_source = [
            list(zip(*(treedef.flatten_up_to(t) for t in (s.v_row, s.v_col, s.v)), strict=True)) for s in parts
        ]
        fused = [
            _fuse_moment(rule, mapping.weights, leaf_shapes, moments)
            for rule, leaf_shapes, moments in zip(
                rules, zip(*shapes, strict=True), zip(*per_source, strict=True), strict=True
            )
        ]
        v_row, v_col, v = (treedef.unflatten(leaves) for leaves in zip(*fused, strict=True))
        return optax.FactoredState(count=parts[0].count, v_row=v_row, v_col=v_col, v=v)

    return tuple(fuse(parts) for parts in zip(*states, strict=True))
