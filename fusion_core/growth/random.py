"""Operators that draw blocks, or all, of the grown network, as in a network from scratch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.growth.copying import deep_fusion, grown_sizes, self_fusion, widened
from fusion_core.growth.depth import grown_depths
from fusion_core.growth.fuse import fusion_map
from fusion_core.growth.options import Growth, Options
from fusion_core.models.registry import architecture, init
from fusion_core.models.units import Config, Params


def _other_seed(seed: int, number: int) -> int:
    """Return another seed, so that a network from scratch does not repeat the draws of a source with the user's seed."""
    return int(np.random.default_rng((seed, number)).integers(2**31))


def _dtype(params: Params) -> Any:
    return jnp.result_type(*jax.tree.leaves(params))


def random_block(config: Config, options: Options) -> Growth:
    """Return ``fuse`` of the network with k − 1 networks from scratch."""
    factor, seed = options.factor, options.seed
    mapping, fusion = self_fusion(config, [0] + [None] * (factor - 1)), fusion_map([config] * factor)

    def finish(grown: Params) -> Params:
        others = [init(config, _other_seed(seed, i), dtype=_dtype(grown)) for i in range(factor - 1)]
        zeros = jax.tree.map(jnp.zeros_like, others[0])
        return jax.tree.map(jnp.add, grown, fusion.embed([zeros, *others]))

    return Growth(mapping.config, mapping, finish)


def random_off_diagonal(config: Config, options: Options) -> Growth:
    """Return ``fuse`` of k copies, whose off-diagonal blocks are those of the large network from scratch."""
    fused = deep_fusion(config, dataclasses.replace(options, noise=0.0))
    mapping = fused.mapping
    assert mapping is not None

    def finish(grown: Params) -> Params:
        dtype = _dtype(grown)
        filled = mapping.embed(jax.tree.map(lambda struct: jnp.ones(struct.shape, dtype), mapping.shapes))
        drawn = init(fused.config, _other_seed(options.seed, 0), dtype=dtype)
        return jax.tree.map(lambda x, f, r: jnp.where(f == 0, r, x), grown, filled, drawn)

    return dataclasses.replace(fused, finish=finish)


def random_init(config: Config, options: Options) -> Growth:
    """Return the grown configuration from scratch: wider by ``factor`` or to ``width``, or of another ``depth``.

    Raises:
      InputError: a depth is given for an MLP or convolutions.
    """
    if options.depth is None:
        grown = widened(config, grown_sizes(config, options, copied=False))
    elif architecture(config).stream is None:
        raise InputError(
            "random_init cannot make this network deeper: the widths of the new layers are not said; give width"
        )
    else:
        grown = dataclasses.replace(config, **grown_depths(config, options))
    return Growth(grown, None, lambda params: init(grown, options.seed, dtype=_dtype(params)))
