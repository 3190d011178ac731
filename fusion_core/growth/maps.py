"""What an operator makes of a configuration: the grown configuration, the linear map, and what is drawn on top of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fusion_core.errors import InputError
from fusion_core.growth.linear import Params
from fusion_core.growth.units import Config, Units


@dataclasses.dataclass(frozen=True)
class Request:
    """How far to grow; one of factor, width and depth is given.

    Attributes:
      factor: multiple of the widths, or of the depth.
      width: the grown widths (an MLP's hidden ones, or a T5's by field).
      depth: the grown number of layers, or that of some of a T5's stacks by field.
      seed: of all draws; None where none was given.
      noise: of symmetry-breaking noise, in units of the root mean square of each array; 0: none.

    Raises:
      InputError: factor, depth or seed is no integer of at least 2, 1 or 0, or noise is no finite number of at least 0.
    """

    # whatever the user passed: checked below, with a message that says what is wanted
    factor: Any = None
    width: Any = None
    depth: Any = None
    seed: Any = None
    noise: Any = 0.0

    def __post_init__(self) -> None:
        depths = self.depth if isinstance(self.depth, dict) else {"depth": self.depth}
        given = [
            ("factor", self.factor, 2),
            *((name, value, 1) for name, value in depths.items()),
            ("seed", self.seed, 0),
        ]
        for name, value, least in given:
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise InputError(f"{name} is {value!r}; it must be an integer of at least {least}")
        noise = self.noise
        if not isinstance(noise, int | float) or isinstance(noise, bool) or not (math.isfinite(noise) and noise >= 0):
            raise InputError(f"noise is {noise!r}; it must be a finite number of at least 0 (0: none)")


@dataclasses.dataclass(frozen=True)
class GrowthMap:
    r"""The linear part J of a growth ``Θ = J θ + c``; all three are pure, jit-able functions of one tree.

    The transpose is derived from ``embed``. Every grown entry is a multiple of one small entry, or zero, so that JᵀJ is
    diagonal, ``JᵀJ = diag(Jᵀ J 1)``, and the pseudo-inverse is ``J⁺ = (JᵀJ)⁻¹ Jᵀ`` (zero where an entry is dropped).

    ``bea.GrowthEvent.of(m)`` is the same event in theory's terms.

    Attributes:
      embed: J; ``small params -> grown params``, linear.
      shapes: of the small network's arrays.
      config: of the grown network.
    """

    embed: Callable[[Params], Params]
    shapes: Params
    config: Config

    def transpose(self, grown: Params) -> Params:
        """Jᵀ: ``⟨J u, v⟩ = ⟨u, Jᵀ v⟩``."""
        return jax.linear_transpose(self.embed, self._filled(grown, jax.ShapeDtypeStruct))(grown)[0]

    def pinv(self, grown: Params) -> Params:
        """J⁺, with ``J⁺ J = 1`` wherever no entry is dropped."""
        gram = self.transpose(self.embed(self._filled(grown, jnp.ones)))
        return jax.tree.map(lambda x, d: x / jnp.where(d == 0, 1, d), self.transpose(grown), gram)

    def _filled(self, grown: Params, fill: Callable[..., Any]) -> Params:
        dtype = jnp.result_type(*jax.tree.leaves(grown))
        return jax.tree.map(lambda struct: fill(struct.shape, dtype), self.shapes)


@dataclasses.dataclass(frozen=True)
class Growth:
    """An operator at work on one configuration.

    Attributes:
      config: of the grown network.
      embed: J; None: nothing of the source is kept.
      finish: ``(J θ, or θ where J is None) -> Θ``: adds what is drawn.
      units: for each space that is copied, the source of each grown unit; empty where no unit is copied.
    """

    config: Config
    embed: Callable[[Params], Params] | None
    finish: Callable[[Params], Params] = lambda grown: grown
    units: Units = dataclasses.field(default_factory=dict)
