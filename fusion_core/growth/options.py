"""Options of a growth operator, and the operator applied to one configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.maps import GrowthMap
from fusion_core.growth.units import Units
from fusion_core.models.registry import parameter_shapes
from fusion_core.models.units import Config, Params, by_name
from fusion_core.seeds import DIGITS, LIMIT

# what a size may be at most; nothing is built in proportion to it before it is checked
LARGEST_FACTOR, MOST_LAYERS, MOST_UNITS = 1000, 1000, 2**24
SEEDS = f"the seed has more than {DIGITS} digits; take a shorter one"

Draw = Callable[[str, Array], Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a growth; one of factor, width and depth is given.

    Attributes:
      factor: multiple of the widths, or of the depth.
      width: the grown widths, by field; or all hidden widths of an MLP or of convolutions.
      depth: the grown number of layers, of all stacks or by field.
      seed: seed of all draws; None if none was given.
      noise: standard deviation of symmetry-breaking noise, in units of the root mean square of each array; 0 if none.

    Raises:
      InputError: factor, depth or seed is no integer of at least 2, 1 or 0, a size is above its bound, or noise is no
        finite number of at least 0.
    """

    # the user's values of any type, checked below
    factor: Any = None
    width: Any = None
    depth: Any = None
    seed: Any = None
    noise: Any = 0.0

    def __post_init__(self) -> None:
        depths = self.depth if isinstance(self.depth, dict) else {"depth": self.depth}
        given = [
            ("factor", self.factor, 2, LARGEST_FACTOR),
            *((name, value, 1, MOST_LAYERS) for name, value in depths.items()),
            ("seed", self.seed, 0, LIMIT),
        ]
        for name, value, least, most in given:
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise InputError(f"{name} is {value!r}; it must be an integer of at least {least}")
            if value is not None and value > most:
                raise InputError(f"{name} is above {most:,}; nothing that large is built" if name != "seed" else SEEDS)
        widths = self.width.values() if isinstance(self.width, dict) else [self.width]
        if any(isinstance(width, int) and width > MOST_UNITS for width in widths):
            raise InputError(f"a width is above {MOST_UNITS:,}; nothing that large is built")
        noise = self.noise
        if not isinstance(noise, int | float) or isinstance(noise, bool) or not (math.isfinite(noise) and noise >= 0):
            raise InputError(f"noise is {noise!r}; it must be a finite number of at least 0 (0: none)")


@dataclasses.dataclass(frozen=True)
class Growth:
    """An operator applied to one configuration.

    Attributes:
      config: configuration of the grown network.
      mapping: map J; None if nothing of the small network is kept.
      draw: (name of an array, its part of J θ) -> the grown array, with draws and constants added; without J, what is given
        is an empty array of the wanted dtype. None if J θ is the grown network. Arrays do not depend on each other, so that
        files can be grown tensor by tensor.
      units: for each space that is copied, the source of each grown unit; empty if no unit is copied.
      cancels: whether ``draw`` is noise that cancels over the copies (``fusion_core.growth.noise``), and nothing else.
    """

    config: Config
    mapping: GrowthMap | None
    draw: Draw | None = None
    units: Units = dataclasses.field(default_factory=dict)
    cancels: bool = False

    def apply(self, params: Params) -> Params:
        """Return the grown parameters."""
        if self.mapping is None:
            dtype = jnp.result_type(*jax.tree.leaves(params))
            grown = jax.tree.map(lambda struct: jnp.zeros((), dtype), parameter_shapes(self.config))
        else:
            grown = self.mapping.grown(params)
        if self.draw is None:
            return grown
        return jax.tree.unflatten(jax.tree.structure(grown), [self.draw(n, x) for n, x in by_name(grown).items()])
