"""Operators that draw blocks, or all, of the grown network, as in a network from scratch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.copying import deep_fusion, grown_sizes, self_fusion, widened
from fusion_core.growth.depth import deepened, grown_depths, spread
from fusion_core.growth.fuse import check_ratios, fusion_map
from fusion_core.growth.maps import Block, GrowthMap, Rule
from fusion_core.growth.options import Growth, Options
from fusion_core.growth.units import Selection, copied, first_copies
from fusion_core.models.registry import architecture, initial, layouts, parameter_shapes, spaces
from fusion_core.models.units import Axis, Config, by_name, is_norm

SHRINK = 0.4  # λ of ``shrink_perturb``; the abstracts of its sources give no number


def _other_seed(seed: int, number: int) -> int:
    """Return another seed, so that a network from scratch does not repeat the draws of a source with the user's seed."""
    return int(np.random.default_rng((seed, number)).integers(2**31))


def random_block(config: Config, options: Options) -> Growth:
    """Return ``fuse`` of the network with k − 1 networks from scratch."""
    factor, seed = options.factor, options.seed
    mapping, fusion = self_fusion(config, [0] + [None] * (factor - 1)), by_name(fusion_map([config] * factor).rules)

    def draw(name: str, grown: Array) -> Array:
        drawn = [initial(config, _other_seed(seed, i), name, grown.dtype) for i in range(factor - 1)]
        return grown + fusion[name].embed([jnp.zeros_like(drawn[0]), *drawn])

    return Growth(mapping.config, mapping, draw)


def filled(mapping: GrowthMap, name: str) -> Array:
    """Return which entries of a grown array come from the small network, as J of ones: 0 where they do not."""
    rule, shapes = by_name(mapping.rules)[name], by_name(mapping.shapes)
    ones = [None if b.network is None else jnp.ones(shapes[b.name].shape, jnp.float32) for b in rule.blocks]
    return rule.embed(ones)


def random_off_diagonal(config: Config, options: Options) -> Growth:
    """Return ``fuse`` of k copies, whose off-diagonal blocks are those of the large network from scratch."""
    fused = deep_fusion(config, dataclasses.replace(options, noise=0.0))
    mapping = fused.mapping
    assert mapping is not None

    def draw(name: str, grown: Array) -> Array:
        drawn = initial(fused.config, _other_seed(options.seed, 0), name, grown.dtype)
        return jnp.where(filled(mapping, name) == 0, drawn, grown)

    return dataclasses.replace(fused, draw=draw)


def padding(config: Config, grown: Config, scale: float) -> GrowthMap:
    """Return the map that puts the small network into the leading block of every array, and zeros elsewhere.

    Args:
      config: configuration of the small network.
      grown: configuration of the grown one, with at least as many units of every space.
      scale: factor on all arrays but the scales and biases of norms, which keep theirs.

    Raises:
      InputError: sizes whose quotients must agree do not.
    """
    check_ratios(config, grown, "the small network has no place in the grown one")
    # the new units are drawn; each has a unit of the small network, so that arrays of both have an entry for it
    units = {name: np.arange(space.size) % spaces(config)[name].size for name, space in spaces(grown).items()}

    def leading(axis: Axis | int) -> Selection | None:
        selection = copied(axis, units) if isinstance(axis, Axis) else None
        if selection is None:
            return None
        new = first_copies(selection.taken) != np.arange(len(selection.taken))
        return selection._replace(part=new.astype(int), copies=None)

    rules = []
    for name, layout in layouts(grown).items():
        axes = tuple(leading(axis) for axis in layouts(config)[name].axes)
        drawn = [Block(None, name)] if any(axes) else []
        rules.append(
            Rule((Block(0, name, 1.0 if is_norm(name) else scale), *drawn), axes, layout.shape, offset=layout.offset)
        )
    tree = jax.tree.unflatten(jax.tree.structure(architecture(config).arrays(config)), rules)
    return GrowthMap(tree, parameter_shapes(config), grown)


def shrink_perturb(config: Config, options: Options) -> Growth:
    r"""Return the large network from scratch, R, plus the shrunk small one, padded by zeros.

    .. math:: \Theta = \lambda \begin{pmatrix} \theta & 0 \\ 0 & 0 \end{pmatrix} + R, \qquad \lambda = 0.4

    A norm has one scale for each unit, which is 1 from scratch, so that the sum would be ``1 + λ``: units of the small
    network keep their scales and biases, new ones get R's. Sources: Mallik et al. (2024), arXiv 2411.07340, and
    Mallik et al. (2026), arXiv 2605.13405; for the norms, ours.
    """
    mapping = padding(config, widened(config, grown_sizes(config, options, copied=False)), SHRINK)

    def draw(name: str, shrunk: Array) -> Array:
        drawn = initial(mapping.config, _other_seed(options.seed, 0), name, shrunk.dtype)
        return jnp.where(filled(mapping, name) == 0, drawn, shrunk) if is_norm(name) else shrunk + drawn

    return Growth(mapping.config, mapping, draw)


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
        depths = grown_depths(config, options)
        grown = deepened(
            config, {s.field: spread(s.layers, depths[s.field]) for s in architecture(config).stacks(config)}
        )
    return Growth(grown, None, lambda name, empty: initial(grown, options.seed, name, empty.dtype))
