r"""Learning rates across any growth: the factors with which the function goes on at the velocity that it had.

Where each small entry has N copies that get one and the same gradient, and each holds c times it, the function-preserving
growth ``L(Jθ) = L_s(θ)`` gives every copy the gradient ``g / (N c)``. The function moves as before if every copy moves by c
times the small entry's update. Gradient descent therefore needs the factor ``N c²``, Adam, whose update is of the size of the
rate, c, and Adafactor, whose update is in units of the parameter's root mean square, ``c · rms(θ) / rms(Θ)``. Here
``N c² = J (Jᵀ J 1) / J 1`` and ``c = J 1``, entry by entry.

For Adafactor this is exact where all units have the same number of copies. Deepening has no such factors: the gradients of the
old layers stay, and the new layers begin to move the function too; only a factor of 0 on them would keep its velocity.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fusion_core.errors import InputError
from fusion_core.growth.grow import GROWTH_OPERATORS, grow, growth_map
from fusion_core.growth.linear import Params
from fusion_core.growth.rates import UPDATES, rate_factors
from fusion_core.growth.units import Config


def growth_rate_factors(
    params: Params,
    config: Config,
    operator: str,
    optimizer: str,
    *,
    factor: Any = None,
    width: Any = None,
    depth: Any = None,
    seed: Any = None,
) -> Params:
    """Factors on the learning rate of every array with which the growth keeps the velocity of the function.

    Exact to first order in the rate, without noise, under the conditions of ``fusion_core.rate_factors``, which this is for
    ``deep_fusion``.

    Args:
      params: of the small network.
      config, operator, factor, width, depth, seed: as ``grow`` took them.
      optimizer: ``"sgd"``, ``"adam"`` or ``"adafactor"``.

    Returns:
      A tree like the grown params: a float for each array (``deep_fusion``), or an array of its shape.

    Raises:
      InputError: as ``grow``; an unknown optimizer; an operator of whose new entries not all are copies.
    """
    if optimizer not in UPDATES:
        raise InputError(f"no rate factors for the optimizer {optimizer!r}; there are factors for {', '.join(UPDATES)}")
    sizes = {"factor": factor, "width": width, "depth": depth, "seed": seed}
    grown, _ = grow(params, config, operator, **sizes)
    if GROWTH_OPERATORS[operator].properties.keeps_dynamics != "with factors":
        with_factors = [o.name for o in GROWTH_OPERATORS.values() if o.properties.keeps_dynamics == "with factors"]
        raise InputError(
            f"no rate factors for {operator}: its new entries move the function on their own; there are factors for "
            f"{', '.join(with_factors)}"
        )
    if operator == "deep_fusion":
        return rate_factors(params, config, factor, optimizer)
    mapping = growth_map(config, operator, **sizes)
    held = mapping.embed(jax.tree.map(jnp.ones_like, params))
    if optimizer == "adam":
        return held
    if optimizer == "sgd":
        return jax.tree.map(lambda total, c: total / c, mapping.embed(mapping.transpose(held)), held)
    rms = lambda x: jnp.sqrt(jnp.mean(x * x))
    return jax.tree.map(lambda c, small, large: c * rms(small) / rms(large), held, params, grown)
