r"""Measured properties of growth operators: the numbers behind the table in docs/growth_operators.md.

The function is the network's outputs F(θ) on a batch. Its velocity is ``v = −∂F(θ) · r ∘ u(∇L)`` with the rates r and the
optimizer's update u (u(g) = g for gradient descent, g/|g| for Adam's first step): a directional derivative, free of any
step size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.growth.operators import GROWTH_OPERATORS, Properties, copied_units, grow
from fusion_core.growth.rates import growth_rate_factors
from fusion_core.growth.units import Units, first_copies, packed_entries
from fusion_core.models.registry import layouts
from fusion_core.models.units import Axis, Config, Params, by_name

SAME_GRADIENT = 1e-3  # relative difference of the gradients of copies above which they separate
SAME_VELOCITY = 1e-3  # largest difference of the velocities' ratio, and of their cosine, from 1

FIRST_UPDATES: dict[str, Callable[[Array], Array]] = {
    "sgd": lambda g: g,
    "adam": lambda g: g / jnp.sqrt(g * g + 1e-60),  # its first step; zero where the gradient is zero
}


@dataclasses.dataclass(frozen=True)
class Velocity:
    """The grown function's velocity against the small one's, over all outputs of the batch.

    Attributes:
      ratio: norm of the grown one over that of the small one.
      cosine: cosine of their angle.
    """

    ratio: float
    cosine: float

    @property
    def kept(self) -> bool:
        """Whether ratio and cosine are 1 within ``SAME_VELOCITY``."""
        return abs(self.ratio - 1) < SAME_VELOCITY and self.cosine > 1 - SAME_VELOCITY


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of one operator on one network.

    Attributes:
      difference: largest absolute difference of an output.
      scale: largest absolute output.
      separation: for each space of copied units the largest relative difference of the gradients of a unit's copies, over
        the arrays that make the units.
      velocities: velocities with one learning rate, by optimizer.
      with_factors: velocities with ``growth_rate_factors``, by optimizer; empty if there are no factors.
    """

    difference: float
    scale: float
    separation: dict[str, float]
    velocities: dict[str, Velocity]
    with_factors: dict[str, Velocity]

    def properties(self, tolerance: float) -> Properties:
        """Return the measured properties; outputs count as equal within ``tolerance`` times their scale."""
        separate = [value > SAME_GRADIENT for value in self.separation.values()]
        symmetry: Literal["yes", "in part", "no", "no copies"] = "in part"
        if not separate:
            symmetry = "no copies"
        elif all(separate) or not any(separate):
            symmetry = "yes" if separate[0] else "no"
        dynamics: Literal["yes", "with factors", "no"] = "no"
        if self.velocities["sgd"].kept:
            dynamics = "yes"
        elif self.with_factors and self.with_factors["sgd"].kept:
            dynamics = "with factors"
        return Properties(self.difference <= tolerance * self.scale, symmetry, dynamics)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _probe(
    outputs: Callable[[Params, Config], Array],
    loss: Callable[[Array], Array],
    config: Config,
    params: Params,
    direction: Params,
) -> tuple[Array, Params, Array]:
    """Return outputs, the loss's gradient and the outputs' derivative along a direction; compiled once a configuration."""
    function = lambda p: outputs(p, config)
    value, along = jax.jvp(function, (params,), (direction,))
    return value, jax.grad(lambda p: loss(function(p)))(params), along


def measure(
    params: Params,
    config: Config,
    operator: str,
    outputs: Callable[[Params, Config], Array],
    loss: Callable[[Array], Array],
    *,
    noise: float = 0.0,
    **sizes: Any,
) -> Measured:
    """Grow the network, and measure the change of its function, of the gradients of copies, and of its velocity.

    Args:
      params, config: the small network, in float64 to tell rounding from a wrong formula.
      operator: a name in ``GROWTH_OPERATORS``.
      outputs: ``(params, config) -> array``, of one shape for both networks.
      loss: ``outputs -> scalar``.
      noise, sizes: as for ``grow`` (factor, width or depth, and seed).

    Raises:
      InputError: as ``grow``.
    """
    grown, grown_config = grow(params, config, operator, noise=noise, **sizes)
    zeros = partial(jax.tree.map, jnp.zeros_like)
    small_out, small_grads, _ = _probe(outputs, loss, config, params, zeros(params))
    out, grads, _ = _probe(outputs, loss, grown_config, grown, zeros(grown))

    def velocity(name: str, at: Params, of: Config, gradients: Params, factors: Params | None) -> np.ndarray:
        update = jax.tree.map(lambda g: -FIRST_UPDATES[name](g), gradients)
        if factors is not None:
            update = jax.tree.map(lambda r, u: jnp.asarray(r, u.dtype) * u, factors, update)
        return np.asarray(_probe(outputs, loss, of, at, update)[2])

    def against(name: str, factors: Params | None) -> Velocity:
        before = velocity(name, params, config, small_grads, None)
        after = velocity(name, grown, grown_config, grads, factors)
        sizes = [float(np.linalg.norm(v)) for v in (before, after)]
        return Velocity(sizes[1] / sizes[0], float(np.vdot(before, after)) / (sizes[0] * sizes[1]))

    has_factors = GROWTH_OPERATORS[operator].properties.keeps_dynamics == "with factors"
    return Measured(
        difference=float(jnp.abs(out - small_out).max()),
        scale=float(jnp.abs(small_out).max()),
        separation=_separation(grown_config, copied_units(config, operator, **sizes), grads),
        velocities={name: against(name, None) for name in FIRST_UPDATES},
        with_factors={
            name: against(name, growth_rate_factors(params, config, operator, name, **sizes))
            for name in FIRST_UPDATES
            if has_factors
        },
    )


def _separation(config: Config, units: Units, grads: Params) -> dict[str, float]:
    """Return, for each space of copied units, the largest relative difference of the gradients of a unit's copies."""
    found = dict.fromkeys(units, 0.0)
    leaves = by_name(grads)
    for name, layout in layouts(config).items():
        for number, axis in enumerate(layout.axes):
            if not isinstance(axis, Axis) or axis.space.name not in units:
                continue
            gradient = np.moveaxis(np.asarray(leaves[name]), number, 0)
            first = first_copies(packed_entries(units[axis.space.name], axis))
            copies = first != np.arange(len(first))
            originals = gradient[first[copies]]
            size = float(np.linalg.norm(originals))
            if size > 0:
                difference = float(np.linalg.norm(gradient[copies] - originals)) / size
                found[axis.space.name] = max(found[axis.space.name], difference)
    return found
