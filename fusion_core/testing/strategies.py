"""Hypothesis strategies: networks, sources of a fusion, and their weights; what is drawn has a short repr.

Hypothesis is imported when a strategy is made: without it the names are there, and the first call says what to install.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.models.mlp import MLPConfig
from fusion_core.models.registry import layouts, parameter_shapes
from fusion_core.models.units import Config, Params, is_norm

EXAMPLES = 5  # drawn for each check: networks of a few shapes, each of which is compiled once
SEEDS = 99
SIZE = 0.4  # of the entries of random parameters

Strategy = Any  # hypothesis.strategies.SearchStrategy, which need not be installed
Maker = Callable[[Config, int], Params]  # (configuration, seed) -> parameters


def library() -> Any:
    """Return the package hypothesis. Raises InputError, with the remedy, if it is not installed."""
    try:
        import hypothesis
    except ModuleNotFoundError:
        raise InputError("fusion_core.testing needs hypothesis; pip install 'deepfusion[testing]'") from None
    return hypothesis


def random_params(config: Config, seed: int, dtype: Any = None) -> Params:
    """Return random parameters of a configuration, none at the value at which training begins; equal seeds give equal ones.

    Entries are normal of size 0.4, around 1 for what scales a norm's output and 0 for all else, so that a lost bias, norm
    or factor shows in the outputs.

    Args:
      config: a configuration with a record in ``fusion_core.models.registry``.
      seed: seed of the entries.
      dtype: their dtype; if None, float64 where JAX has it (``jax.enable_x64``), else float32.
    """
    dtype = dtype or jnp.zeros(()).dtype
    found = {}
    for name, layout in layouts(config).items():
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        start = 1.0 - layout.offset if is_norm(name) and not name.endswith("bias") else 0.0
        found[name] = jnp.asarray(start + SIZE * rng.standard_normal(layout.shape), dtype)
    return jax.tree.unflatten(jax.tree.structure(parameter_shapes(config)), list(found.values()))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network by its seed: what is drawn, in place of its arrays.

    Attributes:
      config: its configuration.
      seed: seed of its parameters.
      maker: (configuration, seed) -> parameters.
    """

    config: Config
    seed: int
    maker: Maker = dataclasses.field(default=random_params, repr=False)

    @property
    def params(self) -> Params:
        """The parameters."""
        return self.maker(self.config, self.seed)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Sources of a fusion.

    Attributes:
      members: the networks.
      weights: their weights in the mean, positive, of sum 1.
    """

    members: tuple  # of Network
    weights: tuple  # of float

    @property
    def networks(self) -> list[tuple[Params, Config]]:
        """The networks as ``fusion_core.fuse`` takes them: ``(params, config)`` of each."""
        return [(member.params, member.config) for member in self.members]


def weights(number: int) -> Strategy:
    """Return a strategy for the weights of so many sources: positive, of sum 1, the simplest all equal."""
    st = library().strategies
    parts = st.lists(st.integers(1, 9), min_size=number, max_size=number)
    return parts.map(lambda drawn: tuple(part / sum(drawn) for part in drawn))


def networks(configs: Sequence[Config], maker: Maker = random_params) -> Strategy:
    """Return a strategy for one network of one of the configurations.

    Args:
      configs: configurations to draw from.
      maker: (configuration, seed) -> parameters.
    """
    st = library().strategies
    drawn = st.tuples(st.sampled_from(list(configs)), st.integers(0, SEEDS))
    return drawn.map(lambda found: Network(found[0], found[1], maker))


def sources(configs: Sequence[Config], maker: Maker = random_params, most: int = 3) -> Strategy:
    """Return a strategy for two or more sources of a fusion, with weights.

    Args:
      configs: configurations that can be fused, from which each source's is drawn.
      maker: (configuration, seed) -> parameters.
      most: largest number of sources.
    """
    st = library().strategies
    member = networks(configs, maker)

    def of(number: int) -> Strategy:
        members = st.lists(member, min_size=number, max_size=number, unique_by=lambda network: network.seed)
        return st.tuples(members, weights(number)).map(lambda found: Sources(tuple(found[0]), found[1]))

    return st.one_of([of(number) for number in range(2, most + 1)])


def mlp_sources(maker: Maker = random_params) -> Strategy:
    """Return a strategy for MLPs that can be fused: of one depth, each with hidden widths of its own.

    There are few shapes, since each may be a compilation.

    Args:
      maker: (configuration, seed) -> parameters.
    """
    kinds = itertools.product(range(2, 5), [(1, 2), (3, 1)])
    families = [
        [MLPConfig((n_in, *hidden, n_out)) for hidden in itertools.product((1, 4), repeat=depth - 1)]
        for depth, (n_in, n_out) in kinds
    ]
    return library().strategies.one_of([sources(family, maker) for family in families])


def tried(strategy: Strategy, body: Callable[[Any], None], examples: int = EXAMPLES) -> None:
    """Call ``body`` with drawn examples, always the same ones, simple ones first; the error of the first that fails is raised.

    Args:
      strategy: what is drawn.
      body: raises what is wrong with an example.
      examples: number of examples.
    """
    hypothesis = library()

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],  # what is drawn is small: a configuration, weights, seeds
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(drawn: Any) -> None:
        body(drawn)

    run()
