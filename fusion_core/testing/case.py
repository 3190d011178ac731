"""What an architecture's checks are made of: its record, small configurations, and a forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.operators import GROWTH_OPERATORS, GrowthOperator, growth_of
from fusion_core.growth.options import Options
from fusion_core.models.architecture import Architecture
from fusion_core.models.units import Config, Params
from fusion_core.testing.maps import assert_close
from fusion_core.testing.strategies import Network

EQUAL_LAYERS = ("aki", "stacking", "net2net_depth")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """An architecture under test; the attributes are the arguments of ``checks``."""

    record: Architecture
    configs: tuple[Config, ...]
    outputs: Callable[[Params, Config], Array]
    params: Callable[[Config, int], Params]
    batch: Any
    without: tuple[str, ...]
    grouped: bool
    tolerance: float
    examples: int

    @cached_property
    def compiled(self) -> Callable[[Params, Config], Array]:
        """The forward pass, compiled once a configuration."""
        return jax.jit(lambda params, config: self.outputs(params, config), static_argnums=1)

    def of(self, params: Params, config: Config) -> np.ndarray:
        """Return the outputs. Raises AssertionError if they say nothing: not finite, or all equal."""
        found = np.asarray(self.compiled(params, config))
        if not np.isfinite(found).all():
            raise AssertionError(f"the outputs of {config} are not finite")
        if found.size > 1 and not np.ptp(found) > 0:
            raise AssertionError(f"all outputs of {config} are equal, so that they show nothing; give other parameters")
        return found

    def same(self, found: np.ndarray, wanted: np.ndarray, what: str) -> None:
        """Raise AssertionError if outputs differ by more than the tolerance."""
        assert_close(found, wanted, what, self.tolerance)

    def network(self, config: Config, seed: int = 0) -> Network:
        """Return the network of a configuration and a seed."""
        return Network(config, seed, self.params)

    def loss(self, out: Array) -> Array:
        """Return a loss with a gradient at every output."""
        goal = jnp.sin(1.0 + jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return jnp.mean((out - goal) ** 2)

    def operators(self) -> list[GrowthOperator]:
        """Return the operators that take the network: those that deepen only where there are layers to repeat."""
        config = self.configs[0]
        deep = all(len(stack.repeated) for stack in self.record.stacks(config)) and bool(self.record.stacks(config))
        found = (o for o in GROWTH_OPERATORS.values() if o.takes_network(config) and o.name not in self.without)
        return [o for o in found if (deep or o.grows != "depth") and not self._lacks_equal_layers(o.name)]

    def _lacks_equal_layers(self, operator: str) -> bool:
        """Return whether the operator needs layers of equal shapes, and the first configuration has none."""
        if operator not in EQUAL_LAYERS:
            return False
        try:
            growth_of(self.configs[0], operator, Options(factor=2))
        except InputError:
            return True
        return False
