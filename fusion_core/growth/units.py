"""Which axis of which array belongs to which units: the table that all width operators read.

A *space* is a set of units that are copied together: the hidden units of one layer, the heads of one kind of attention,
the residual stream. An array *writes* a space with the axis that makes its units, and *reads* it with the axis along
which it sums over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.linear import Params
from fusion_core.models import registry
from fusion_core.models.mlp import MLPConfig
from fusion_core.models.mlp import init as init_mlp
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import init as init_t5
from fusion_core.models.t5.model import parameter_shapes as t5_shapes

Config = Any  # T5Config | MLPConfig
# for each space, the small network's unit that each unit of the grown network is a copy of
Units = dict[str, np.ndarray]


class Axis(NamedTuple):
    """An axis that belongs to units.

    Attributes:
      space: the name of their space.
      reads: the array sums over the units, rather than making them.
      block: entries a unit takes along the axis (a head takes d_kv).
    """

    space: str
    reads: bool
    block: int = 1


Axes = tuple[Axis | None, ...]


def leaf_names(tree: Params) -> list[str]:
    """Dotted names of the leaves, in the order of ``jax.tree.leaves``; a tuple of integers is a leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def by_name(tree: Params) -> dict[str, Any]:
    """The leaves under their dotted names."""
    leaves = jax.tree.leaves(tree)
    return dict(zip(leaf_names(tree), leaves, strict=True))


def parameter_shapes(config: Config) -> Params:
    """The tree of shapes of a network. Raises InputError where the configuration is of no known kind."""
    if isinstance(config, T5Config):
        return t5_shapes(config)
    if isinstance(config, MLPConfig):
        return registry.parameter_shapes(config)
    raise InputError(
        f"no growth operator knows a configuration of type {type(config).__name__}; pass a T5Config or an MLPConfig"
    )


def fresh(config: Config, seed: int, dtype: Any) -> Params:
    """A network from scratch: a T5 as ``fusion_core.models.t5.init``; an MLP with weights of variance 1/fan-in, biases zero."""
    if isinstance(config, T5Config):
        return init_t5(config, seed, dtype=dtype)
    return init_mlp(config, seed, dtype=dtype)


def other_seed(seed: int, number: int) -> int:
    """A seed of its own: a network from scratch must not repeat the draws of a source that has the user's seed."""
    return int(np.random.default_rng((seed, number)).integers(2**31))


def spaces(config: Config) -> dict[str, int]:
    """Every space and its number of units.

    The heads of all self-attention layers of a stack are one space: they share the stack's relative position bias, which
    has one column a head, so that head h of one layer cannot become other copies than head h of another.
    """
    if isinstance(config, MLPConfig):
        return {f"hidden.{i}": width for i, width in enumerate(config.sizes[1:-1])}
    found = {"d_model": config.d_model}
    for stack, depth in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        found |= {f"{stack}.SelfAttention.heads": config.num_heads}
        found |= {f"{stack}.{i}.d_ff": config.d_ff for i in range(depth)}
    return found | {"decoder.EncDecAttention.heads": config.num_heads}


def axes(config: Config) -> dict[str, Axes]:
    """For every array of the network what its axes belong to; None: neither copied nor grown."""
    if isinstance(config, MLPConfig):
        last = len(config.sizes) - 2
        table: dict[str, Axes] = {}
        for i in range(last + 1):
            made = Axis(f"hidden.{i}", False) if i < last else None
            read = Axis(f"hidden.{i - 1}", True) if i > 0 else None
            table |= {f"layers.{i}.bias": (made,), f"layers.{i}.weight": (made, read)}
        return table
    return {name: _t5_axes(name.split("."), config) for name in leaf_names(t5_shapes(config))}


def _t5_axes(path: list[str], config: T5Config) -> Axes:
    name, made, read = path[-2], Axis("d_model", False), Axis("d_model", True)
    if name in ("shared", "lm_head"):
        return (None, made if name == "shared" else read)
    if name in ("layer_norm", "final_layer_norm"):
        return (made,)
    stack, block, kind = path[0], path[2], path[5]
    heads = f"{stack}.{kind}.heads"
    if name == "relative_attention_bias":
        return (None, Axis(heads, False))
    if name in ("q", "k", "v"):
        return (Axis(heads, False, config.d_kv), read)
    if name == "o":
        return (made, Axis(heads, True, config.d_kv))
    hidden = f"{stack}.{block}.d_ff"
    return (made, Axis(hidden, True)) if name == "wo" else (Axis(hidden, False), read)


def entries(units: np.ndarray, block: int) -> np.ndarray:
    """Indices along an axis of which each unit takes ``block`` entries, for a selection of units."""
    return (units[:, None] * block + np.arange(block)).reshape(-1)


def replicate(config: Config, units: Units) -> Callable[[Params], Params]:
    r"""The linear map that copies units: written axes are copied, read axes copied and divided by the number of copies.

    .. math:: W'_{ij} = W_{g(i)\,h(j)} / n_{h(j)}, \qquad n_u = |\{j : h(j) = u\}|

    where g and h are the grown units' sources. The sum over a unit's copies is then the unit's own term: exact, as long as
    every unit is copied at least once, and as norms see the same mean square (equal numbers of copies in the stream).
    A tied T5 head cannot be divided, since the input uses the embedding too: the final decoder norm carries k^-½, which
    is k for the sum and k^½ for the logits' factor d_model^-½.
    """
    table = axes(config)
    tied_scale = 1.0
    if isinstance(config, T5Config) and config.tie_word_embeddings:
        tied_scale = (config.d_model / len(units["d_model"])) ** 0.5

    def leaf(name: str, array: Array) -> Array:
        for number, axis in enumerate(table[name]):
            if axis is None:
                continue
            index = entries(units[axis.space], axis.block)
            array = jnp.take(array, index, axis=number)
            if axis.reads:
                counts = np.bincount(index)[index]
                shape = [-1 if n == number else 1 for n in range(array.ndim)]
                array = array * jnp.asarray(1 / counts, array.dtype).reshape(shape)
        return array * jnp.asarray(tied_scale, array.dtype) if name == "decoder.final_layer_norm.weight" else array

    return lambda params: rename(leaf, params)


def rename(function: Callable[[str, Any], Any], params: Params) -> Params:
    """``function(name, leaf)`` at every leaf."""
    leaves = [function(name, leaf) for name, leaf in by_name(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def zero_sum_noise(config: Config, units: Units, grown: Params, size: int | float, seed: int) -> Params:
    r"""Adds noise that cancels over the copies which an array reads, so that the function stays what it was.

    .. math::
        \tilde W_{ij} = W'_{ij} + \sqrt{\tfrac{n}{n - 1}} \Big(N_{ij} - \frac1n \sum_{h(j') = h(j)} N_{ij'}\Big),
        \qquad n = n_{h(j)}

    Copies are equal in their values x, so that the noise adds nothing; their outgoing weights are not, so that their gradients
    differ. For two copies it is ``[[W + N₁, W − N₁], [W + N₂, W − N₂]]``. N is Gaussian, of standard deviation
    ``size`` times the root mean square of the array's entries that are not zero.
    """
    return _noise(config, grown, size, seed, lambda axis, _: axis.reads, units, centred=True)


def copy_noise(config: Config, units: Units, grown: Params, size: int | float, seed: int) -> Params:
    """Adds noise to what the second and later copies of a unit are made of: Net2Net's, which moves the function a little."""
    return _noise(
        config, grown, size, seed, lambda axis, array: not axis.reads and array.ndim == 2, units, centred=False
    )


def _rms(array: Array) -> Array:
    """Root mean square of the entries that are not zero: blocks that fusion leaves empty do not count."""
    wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    return jnp.sqrt(jnp.sum(wide * wide) / jnp.maximum(jnp.count_nonzero(wide), 1))


def _noise(
    config: Config,
    grown: Params,
    size: int | float,
    seed: int,
    taken: Callable[[Axis, Array], bool],
    units: Mapping[str, np.ndarray],
    *,
    centred: bool,
) -> Params:
    table = axes(config)
    rng = np.random.default_rng((seed, 1))  # not the stream that chose the units

    def leaf(name: str, array: Array) -> Array:
        for number, axis in enumerate(table[name]):
            if axis is None or not taken(axis, array):
                continue
            index = entries(units[axis.space], axis.block)
            noise = np.moveaxis(rng.standard_normal(array.shape), number, -1)
            if centred:
                same = (index[:, None] == index).astype(float)
                counts = same.sum(axis=0)
                # less the mean over the copies, at the standard deviation that it had; a unit without copies gets none
                noise = (noise - noise @ (same / counts)) * np.sqrt(counts / np.maximum(counts - 1, 1))
            else:
                noise = noise * (np.arange(len(index)) != first_copies(index))
            noise = np.moveaxis(noise, -1, number)
            array = array + (size * _rms(array)).astype(array.dtype) * jnp.asarray(noise, array.dtype)
        return array

    return rename(leaf, grown)


def first_copies(index: np.ndarray) -> np.ndarray:
    """For every position the first position of the same value."""
    _, first, inverse = np.unique(index, return_index=True, return_inverse=True)
    return first[inverse]
