"""Operators that widen: replication (Net2Net, HyperCloning), AKI, Deep Fusion's self-fusion, random blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.depth import STACKS, grown_depths
from fusion_core.growth.linear import Params
from fusion_core.growth.maps import Growth, Request
from fusion_core.growth.networks import fused_config, fusion_map
from fusion_core.growth.noise import with_noise
from fusion_core.growth.units import (
    Config,
    Units,
    axes,
    by_name,
    copy_noise,
    fresh,
    other_seed,
    parameter_shapes,
    rename,
    replicate,
    spaces,
    zero_sum_noise,
)
from fusion_core.models.mlp import MLPConfig

WIDTHS = ("d_model", "d_ff", "num_heads")


def whole_copies(config: Config, factor: int) -> Units:
    """Every unit ``factor`` times, copy after copy."""
    return {space: np.tile(np.arange(size), factor) for space, size in spaces(config).items()}


def _width_of_space(space: str) -> str:
    """The configuration's field that counts a T5 space."""
    return "num_heads" if space.endswith("heads") else space.split(".")[-1]


def _grown_widths(config: Config, request: Request, *, copied: bool) -> dict[str, int]:
    """The grown number of units of every space; ``copied``: its units will be copies of the present ones."""
    sizes = spaces(config)
    if request.factor is not None:
        return {space: request.factor * size for space, size in sizes.items()}
    width = request.width
    if isinstance(config, MLPConfig):
        if not isinstance(width, tuple | list) or len(width) != len(sizes):
            raise InputError(
                f"width is {width!r}; give the {len(sizes)} hidden widths of the grown MLP, such as (16, 16)"
            )
        grown = dict(zip(sizes, width, strict=True))
    else:
        if not isinstance(width, dict) or not width or not set(width) <= set(WIDTHS):
            raise InputError(
                f"width is {width!r}; for a T5 give the fields that grow, of {', '.join(WIDTHS)}: {{'d_ff': 96}}"
            )
        grown = {space: width.get(_width_of_space(space), size) for space, size in sizes.items()}
    for space, size in sizes.items():
        if not isinstance(grown[space], int) or isinstance(grown[space], bool) or grown[space] < size:
            raise InputError(
                f"width of {space} is {grown[space]!r}; it must be an integer of at least {size}, its present width"
            )
    if grown == sizes:
        raise InputError(f"width is {width!r}, which the network has already; give a larger one")
    if copied and grown.get("d_model", 0) % sizes.get("d_model", 1):
        raise InputError(
            f"d_model cannot grow from {sizes['d_model']} to {grown['d_model']} by copying units: RMSNorm keeps its mean "
            "square only if every unit of the stream is copied equally often; give a multiple, or grow d_ff and num_heads"
        )
    return grown


def _config_of(config: Config, grown: dict[str, int]) -> Config:
    """The configuration at other widths; copies of a stream with grouped norms keep their groups."""
    if isinstance(config, MLPConfig):
        return MLPConfig((config.sizes[0], *grown.values(), config.sizes[-1]))
    copies, rest = divmod(grown["d_model"], config.d_model)
    if config.norm_groups and rest:
        raise InputError(
            f"d_model cannot grow from {config.d_model} to {grown['d_model']}, since the norms are grouped (norm_groups is "
            f"{config.norm_groups}) and the new units belong to no group; give a multiple of {config.d_model}"
        )
    widths = {_width_of_space(space): size for space, size in grown.items()}
    return dataclasses.replace(config, **widths, norm_groups=config.norm_groups * copies)


def _copies(config: Config, factor: int) -> Config:
    """The configuration of ``factor`` copies side by side."""
    return fused_config([config] * factor, "grouped" if getattr(config, "norm_groups", ()) else "plain")


def net2net_width(config: Config, request: Request) -> Growth:
    """Random replication; see the registry. The stream of a T5 is copied in whole multiples."""
    rng = np.random.default_rng(request.seed)
    grown = _grown_widths(config, request, copied=True)
    units: Units = {}
    for space, size in spaces(config).items():
        if space == "d_model":
            units[space] = np.tile(np.arange(size), grown[space] // size)
        else:
            units[space] = np.concatenate([np.arange(size), rng.integers(size, size=grown[space] - size)])
    finish: Callable[[Params], Params] = lambda params: params
    if request.noise:
        finish = lambda params: copy_noise(config, units, params, request.noise, request.seed)
    return Growth(_config_of(config, grown), replicate(config, units), finish, units)


def hypercloning(config: Config, request: Request) -> Growth:
    """Whole copies; with noise, whose sum over the copies is zero."""
    units = whole_copies(config, request.factor)
    finish: Callable[[Params], Params] = lambda grown: grown
    if request.noise:
        finish = lambda grown: zero_sum_noise(config, units, grown, request.noise, request.seed)
    return Growth(_copies(config, request.factor), replicate(config, units), finish, units)


def deep_fusion(config: Config, request: Request) -> Growth:
    """``fc.fuse`` of k copies, with its antisymmetric noise if there is any."""
    factor = request.factor
    mapping = fusion_map([config] * factor)
    finish: Callable[[Params], Params] = lambda grown: grown
    if request.noise:
        finish = lambda grown: with_noise(mapping, grown, "antisymmetric", request.noise, request.seed)
    return Growth(
        _copies(config, factor),
        lambda params: mapping.embed([params] * factor),
        finish,
        whole_copies(config, factor),
    )


def aki(config: Config, request: Request) -> Growth:
    """Whole copies, of which the second and later ones are made by the weights of the layer above."""
    factor = request.factor
    units = whole_copies(config, factor)
    copied, table = replicate(config, units), axes(config)
    above = {name: _name_above(name, config) for name in by_name(parameter_shapes(config))}
    if all(name == up for name, up in above.items()):
        raise InputError(
            "aki finds no layer with one of the same shape above it, so that it would only copy units; use hypercloning, or "
            "give a network of two equal layers in succession"
        )

    def embed(params: Params) -> Params:
        small = by_name(params)
        own = copied(params)
        upper = by_name(copied(rename(lambda name, _: small[above[name]], params)))

        def leaf(name: str, array: Array) -> Array:
            made = table[name][0]
            # norm scales and position biases belong to the stream and to the stack, not to a layer's units
            if above[name] == name or made is None or made.reads:
                return array
            rows = small[name].shape[0]
            return jnp.concatenate([array[:rows], upper[name][rows:]])

        return rename(leaf, own)

    return Growth(_copies(config, factor), embed, units=units)


def _name_above(name: str, config: Config) -> str:
    """The array of the next layer that new units take their weights from; itself where there is none."""
    path = name.split(".")
    if isinstance(config, MLPConfig):
        layer, sizes = int(path[1]), config.sizes
        # both layers as a whole must be of one shape, and the last layer makes no units
        if layer + 3 < len(sizes) and sizes[layer] == sizes[layer + 1] == sizes[layer + 2]:
            path[1] = str(layer + 1)
    elif len(path) > 5 and path[-2] not in ("layer_norm", "relative_attention_bias"):
        depth = config.num_layers if path[0] == "encoder" else config.num_decoder_layers
        path[2] = str(min(int(path[2]) + 1, depth - 1))
    return ".".join(path)


def random_block(config: Config, request: Request) -> Growth:
    """``fc.fuse`` of the network with k − 1 networks from scratch."""
    factor, seed = request.factor, request.seed
    mapping = fusion_map([config] * factor)
    zero = lambda params: jax.tree.map(jnp.zeros_like, params)

    def finish(grown: Params) -> Params:
        dtype = jnp.result_type(*jax.tree.leaves(grown))
        others = [fresh(config, other_seed(seed, i), dtype) for i in range(factor - 1)]
        return jax.tree.map(jnp.add, grown, mapping.embed([zero(others[0]), *others]))

    return Growth(
        _copies(config, factor), lambda params: mapping.embed([params, *[zero(params)] * (factor - 1)]), finish
    )


def random_off_diagonal(config: Config, request: Request) -> Growth:
    """``fc.fuse`` of k copies, whose off-diagonal blocks are those of the large network from scratch."""
    fused = deep_fusion(config, dataclasses.replace(request, noise=0.0))
    seed = request.seed

    def finish(grown: Params) -> Params:
        dtype = jnp.result_type(*jax.tree.leaves(grown))
        ones = jax.tree.map(lambda struct: jnp.ones(struct.shape, dtype), parameter_shapes(config))
        assert fused.embed is not None
        filled = fused.embed(ones)
        return jax.tree.map(
            lambda x, f, r: jnp.where(f == 0, r, x), grown, filled, fresh(fused.config, other_seed(seed, 0), dtype)
        )

    return dataclasses.replace(fused, finish=finish)


def random_init(config: Config, request: Request) -> Growth:
    """The grown configuration from scratch: wider by ``factor`` or to ``width``, or a T5 of another ``depth``."""
    seed = request.seed
    if request.depth is not None:
        if isinstance(config, MLPConfig):
            raise InputError(
                "random_init cannot make an MLP deeper: the widths of the new layers are not said; give width"
            )
        present = {name: getattr(config, name) for name in STACKS.values()}
        grown = dataclasses.replace(config, **grown_depths(config, request, present))
    else:
        grown = _config_of(config, _grown_widths(config, request, copied=False))
    return Growth(grown, None, lambda params: fresh(grown, seed, jnp.result_type(*jax.tree.leaves(params))))
