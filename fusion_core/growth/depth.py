"""Operators that deepen: stacking, residual blocks that add nothing, identity layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.maps import Block, GrowthMap, Rule
from fusion_core.growth.options import Growth, Options
from fusion_core.models.registry import architecture, layouts, parameter_shapes
from fusion_core.models.settings import Settings
from fusion_core.models.units import Config, Layout, Stack, by_name, is_norm

HIDDEN_LAYERS = "the number of hidden-to-hidden layers"


class Layers(NamedTuple):
    """The layers of a grown stack.

    Attributes:
      sources: for each layer the number of the small network's layer that it copies.
      new: for each layer whether the small network does not have it.
    """

    sources: np.ndarray
    new: np.ndarray


def grown_depths(config: Config, options: Options, *, multiple: bool = False) -> dict[str, int]:
    """Return the grown number of repeated layers of every stack, by its field.

    Args:
      config: configuration of the small network.
      options: options with a factor or a depth.
      multiple: whether the depths must be multiples of the present ones.

    Raises:
      InputError: a depth is not above the present one, or is no multiple of it although ``multiple``.
    """
    residual = architecture(config).stream is not None
    present = {s.field if residual else HIDDEN_LAYERS: len(s.repeated) for s in architecture(config).stacks(config)}
    wanted = options.depth
    if isinstance(wanted, dict):
        if not residual or not wanted or not wanted.keys() <= present.keys():
            fields = f", or the fields that grow, of {', '.join(present)}: {{'{next(iter(present))}': 8}}"
            raise InputError(f"depth is {wanted!r}; give a number of layers{fields if residual else ''}")
        grown = present | wanted
    else:
        grown = {name: wanted or (options.factor or 1) * depth for name, depth in present.items()}
        wanted = grown
    for name, depth in present.items():
        if name in wanted and grown[name] <= depth:
            raise InputError(f"depth is {grown[name]}, but {name} is {depth} already; give a larger one")
        if multiple and grown[name] % depth:
            raise InputError(
                f"stacking cannot grow {name} from {depth} to {grown[name]}: whole copies of the stack are put on top of it; "
                f"give a multiple of {depth}, or use identity_layers"
            )
    return grown


def deepened(config: Config, layers: Mapping[str, Layers]) -> Config:
    """Return the configuration with the given layers in its stacks, by the stacks' fields."""
    changes: dict[str, object] = {}
    for field, (sources, _) in layers.items():
        widths = getattr(config, field)
        chain = isinstance(widths, tuple)
        changes[field] = (widths[0], *(widths[s + 1] for s in sources)) if chain else len(sources)
        if isinstance(settings := getattr(config, "settings", None), Settings):
            changes["settings"] = settings.for_layers(widths, sources.tolist())
    return dataclasses.replace(config, **changes)


def depth_map(config: Config, layers: Mapping[str, Layers], *, silent: bool) -> GrowthMap:
    """Return the map that copies layers.

    Args:
      config: configuration of the small network.
      layers: grown layers of every stack, by its field.
      silent: whether new layers are zero where they write to the stream, or everywhere if there is no stream.
    """
    record, grown = architecture(config), deepened(config, layers)
    table = layouts(grown)
    last_norms = any(layout.adds for layout in table.values())  # of blocks that end in a norm, it alone is zero

    def rule(name: str, layout: Layout) -> Rule:
        block, new = Block(0, name), False
        for stack in record.stacks(grown):
            split = stack.split(name)
            if split is not None:
                sources, is_new = layers[stack.field]
                new = bool(is_new[split[0]])
                zero = silent and new and (layout.adds if last_norms else _writes(record.stream, name, layout))
                block = Block(0, stack.join(int(sources[split[0]]), split[1]), 0.0 if zero else 1.0)
        return Rule((block,), (None,) * len(layout.shape), layout.shape, new, layout.offset)

    rules = [rule(name, layout) for name, layout in table.items()]
    tree = jax.tree.unflatten(jax.tree.structure(record.arrays(grown)), rules)
    return GrowthMap(tree, parameter_shapes(config), grown)


def _writes(stream: str | None, name: str, layout: Layout) -> bool:
    """Return whether an array adds to the stream; true if there is no stream."""
    if stream is None:
        return True
    made = layout.number(reads=False)
    axis = None if made is None else layout.axes[made]
    return axis is not None and not isinstance(axis, int) and axis.space.name == stream and not is_norm(name)


def stacking(config: Config, options: Options) -> Growth:
    """Return copies of all layers on top of them."""
    record = architecture(config)
    if record.stream is None:
        _check_equal_widths(config, record.stacks(config)[0])
    grown = grown_depths(config, options, multiple=True)
    layers = {}
    for stack, depth in zip(record.stacks(config), grown.values(), strict=True):
        before, after = np.arange(stack.repeated.start), np.arange(stack.repeated.stop, stack.layers)
        repeated = stack.repeated.start + np.arange(depth) % len(stack.repeated)
        sources = np.concatenate([before, repeated, after])
        new = np.zeros(len(sources), bool)
        new[stack.repeated.stop : stack.repeated.start + depth] = True
        layers[stack.field] = Layers(sources, new)
    mapping = depth_map(config, layers, silent=False)
    return Growth(mapping.config, mapping)


def _check_equal_widths(config: Config, stack: Stack) -> None:
    hidden = getattr(config, stack.field)[1 : stack.repeated.stop + 1]
    if len(hidden) < 2 or len(set(hidden)) > 1:
        raise InputError(
            f"stacking copies the layers between equal hidden widths, but the hidden widths are {hidden}; give a network of "
            "at least two hidden layers, all of one width, or use net2net_depth"
        )


def spread(small: int, grown: int) -> Layers:
    """Return the layers with each one followed by its copies, whose numbers differ by 1 at most."""
    sources = np.arange(grown) * small // grown
    return Layers(sources, np.concatenate([[False], np.diff(sources) == 0]))


def identity_layers(config: Config, options: Options) -> Growth:
    """Return copies of residual blocks that write nothing to the stream, each after its source."""
    grown = grown_depths(config, options)
    stacks = architecture(config).stacks(config)
    mapping = depth_map(config, {s.field: spread(s.layers, grown[s.field]) for s in stacks}, silent=True)
    return Growth(mapping.config, mapping)


def net2net_depth(config: Config, options: Options) -> Growth:
    """Return identity layers after hidden ones; the identities are constants, so J has zeros there.

    Raises:
      InputError: a factor is given but there is no hidden-to-hidden layer, or kernels have even sides.
    """
    (stack,) = architecture(config).stacks(config)
    hidden = stack.repeated.stop
    if options.factor is not None and not stack.repeated:
        raise InputError(
            "factor multiplies the number of hidden-to-hidden layers, of which this network has none; give depth"
        )
    depth = grown_depths(config, options)[HIDDEN_LAYERS]
    sources, new = spread(hidden, depth + 1)
    after = np.arange(hidden, stack.layers)
    layers = Layers(np.concatenate([sources, after]), np.concatenate([new, np.zeros(len(after), bool)]))
    mapping = depth_map(config, {stack.field: layers}, silent=True)
    rules = by_name(mapping.rules)
    for name, rule in rules.items():
        if rule.new and any(side % 2 == 0 for side in rule.shape[2:]):
            raise InputError(f"net2net_depth needs kernels with a middle, but {name} has the shape {rule.shape}")

    return Growth(mapping.config, mapping, lambda name, leaf: _identity(leaf) if rules[name].new else leaf)


def _identity(leaf: Array) -> Array:
    """Return the identity in the place of a matrix or, in the middle of its kernel, of a convolution; zero for a bias."""
    if leaf.ndim < 2:
        return jnp.zeros_like(leaf)
    middle = tuple(side // 2 for side in leaf.shape[2:])
    return jnp.zeros_like(leaf).at[(..., *middle)].set(jnp.eye(leaf.shape[0], dtype=leaf.dtype))
