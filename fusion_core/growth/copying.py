r"""Operators that widen by copies of units: replication (Net2Net, HyperCloning, SPARKLING), AKI, Deep Fusion's self-fusion.

Replication copies units, and divides what reads copies by their number:

.. math:: W'_{ij} = \frac{W_{g(i)\,h(j)}}{n_{h(j)}}, \qquad n_u = |\{j : h(j) = u\}|

where g and h map each grown unit to its source. The sum over a unit's copies is then the unit's own term: exact, if
every unit is copied at least once and the norms' statistics stay the same (equal numbers of copies in the stream). A tied
head cannot be divided, since it is the embedding and the input uses it too: the norm before it carries ``1/k``, times the
quotient of the logits' factors, ``k^½`` for a T5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth.fuse import check_ratios, fusion_map
from fusion_core.growth.maps import Block, GrowthMap, Rule
from fusion_core.growth.noise import copy_noise, noisy
from fusion_core.growth.options import Draw, Growth, Options
from fusion_core.growth.units import Units, copied, first_copies
from fusion_core.models.registry import architecture, layouts, parameter_shapes, resized, spaces
from fusion_core.models.units import Axis, Config, by_name, is_norm


def whole_copies(config: Config, factor: int) -> Units:
    """Return every unit ``factor`` times, copy after copy."""
    return {name: np.tile(np.arange(space.size), factor) for name, space in spaces(config).items()}


def width_fields(config: Config) -> list[str]:
    """Return the names of the fields that count units, in the configuration's order."""
    counted = {space.field for space in spaces(config).values()}
    return [field.name for field in dataclasses.fields(config) if field.name in counted]


def _hidden_widths(config: Config, width: object) -> dict[str, int]:
    hidden = sorted(spaces(config).values(), key=lambda space: space.position or 0)
    if not isinstance(width, tuple | list) or len(width) != len(hidden):
        raise InputError(
            f"width is {width!r}; give the {len(hidden)} hidden widths of the grown network, such as "
            f"{tuple(2 * space.size for space in hidden)}"
        )
    return {space.name: size for space, size in zip(hidden, width, strict=True)}


def grown_sizes(config: Config, options: Options, *, copied: bool) -> dict[str, int]:
    """Return the grown number of units of every space.

    Args:
      config: configuration of the small network.
      options: options with a factor or a width.
      copied: whether the grown units will be copies of the present ones.

    Raises:
      InputError: the width names no fields or widths of this network, is smaller than the present one or equal to it, or
        the stream would be copied unequally.
    """
    present = {name: space.size for name, space in spaces(config).items()}
    if options.factor is not None:
        return {name: options.factor * size for name, size in present.items()}
    width, stream = options.width, architecture(config).stream
    fields = width_fields(config)
    if stream is None:
        grown = _hidden_widths(config, width)
    elif not isinstance(width, dict) or not width or not set(width) <= set(fields):
        raise InputError(
            f"width is {width!r}; for a {type(config).__name__} give the fields that grow, of {', '.join(fields)}: "
            f"{{'{fields[1]}': 96}}"
        )
    else:
        grown = {name: width.get(space.field, space.size) for name, space in spaces(config).items()}
    for name, size in present.items():
        if not isinstance(grown[name], int) or isinstance(grown[name], bool) or grown[name] < size:
            field = name if stream is None else spaces(config)[name].field
            raise InputError(
                f"width of {field} is {grown[name]!r}; it must be an integer of at least {size}, its present width"
            )
    if grown == present:
        raise InputError(f"width is {width!r}, which the network has already; give a larger one")
    if copied and stream is not None and grown[stream] % present[stream]:
        raise InputError(
            f"{stream} cannot grow from {present[stream]} to {grown[stream]} by copying units: the norms' statistics stay "
            f"only if every unit of the stream is copied equally often; give a multiple, or grow {' and '.join(fields[1:])}"
        )
    return grown


def widened(config: Config, sizes: Mapping[str, int]) -> Config:
    """Return the configuration at other widths; copies of a stream with grouped norms keep their groups.

    Raises:
      InputError: the norms are grouped, and the stream's new width is no multiple of the present one.
    """
    stream = architecture(config).stream
    if stream is None:
        return resized(config, sizes)
    present = getattr(config, stream)
    copies, rest = divmod(sizes[stream], present)
    if config.norm_groups and rest:
        raise InputError(
            f"{stream} cannot grow from {present} to {sizes[stream]}, since the norms are grouped (norm_groups is "
            f"{config.norm_groups}) and the new units belong to no group; give a multiple of {present}"
        )
    return resized(config, sizes, norm_groups=config.norm_groups * copies)


def replication(config: Config, units: Units, above: Mapping[str, str] | None = None) -> GrowthMap:
    """Return the map that copies units and divides what reads copies by their number.

    Args:
      config: configuration of the small network.
      units: for every space the source of each grown unit.
      above: name of an array -> name of the array that makes the second and later copies of its units, possibly itself;
        if None, every array makes its own copies.
    """
    grown = widened(config, {name: len(index) for name, index in units.items()})
    check_ratios(config, grown, "units cannot be copied so")
    record, rules = architecture(config), []
    for name, layout in layouts(grown).items():
        small = layouts(config)[name]
        axes = [copied(axis, units) if isinstance(axis, Axis) else None for axis in small.axes]
        scale = record.input_scale(config, name) / record.input_scale(grown, name)
        if record.stream is not None and (name in record.tied(config) or layout.is_head):
            # what reads copies is divided by their number anyway
            share = 1.0 if layout.is_head else getattr(config, record.stream) / getattr(grown, record.stream)
            scale = share * record.logit_scale(config) / record.logit_scale(grown)
        blocks = [Block(0, name, scale)]
        made = small.number(reads=False)
        if above is not None and above[name] != name and made is not None:
            selection = axes[made]
            assert selection is not None
            later = first_copies(selection.taken) != np.arange(len(selection.taken))
            axes[made] = selection._replace(part=later.astype(int))
            blocks.append(Block(0, above[name]))
        rules.append(Rule(tuple(blocks), tuple(axes), layout.shape, offset=layout.offset))
    tree = jax.tree.unflatten(jax.tree.structure(record.arrays(config)), rules)
    return GrowthMap(tree, parameter_shapes(config), grown)


def net2net_width(config: Config, options: Options) -> Growth:
    """Return random replication; see the registry. A residual stream is copied in whole multiples."""
    rng = np.random.default_rng(options.seed)
    grown = grown_sizes(config, options, copied=True)
    units: Units = {}
    for name, space in spaces(config).items():
        if name == architecture(config).stream:
            units[name] = np.tile(np.arange(space.size), grown[name] // space.size)
        else:
            units[name] = np.concatenate(
                [np.arange(space.size), rng.integers(space.size, size=grown[name] - space.size)]
            )
    mapping = replication(config, units)
    if not options.noise:
        return Growth(mapping.config, mapping, units=units)
    draw = each_array(mapping, lambda rule, x, i: copy_noise(rule, x, i, options.noise, options.seed))
    return Growth(mapping.config, mapping, draw, units)


def each_array(mapping: GrowthMap, function: Callable[[Rule, Array, int], Array]) -> Draw:
    """Return ``draw`` of a ``Growth`` that is ``function(rule, array, number of the array)``."""
    numbered = {name: (rule, i) for i, (name, rule) in enumerate(by_name(mapping.rules).items())}

    def draw(name: str, array: Array) -> Array:
        rule, i = numbered[name]
        return function(rule, array, i)

    return draw


def _whole(mapping: GrowthMap, options: Options, units: Units) -> Growth:
    """Return the growth by whole copies, with cancelling noise if the options have noise."""
    if not options.noise:
        return Growth(mapping.config, mapping, units=units)
    draw = each_array(mapping, lambda rule, x, i: noisy(rule, x, i, "antisymmetric", options.noise, options.seed))
    return Growth(mapping.config, mapping, draw, units, cancels=True)


def hypercloning(config: Config, options: Options) -> Growth:
    """Return replication by whole copies."""
    units = whole_copies(config, options.factor)
    return _whole(replication(config, units), options, units)


def sparkling(config: Config, options: Options) -> Growth:
    """Return replication by whole copies, which keeps the root mean square of every activation.

    Copies of every unit do so if what reads them is divided by their number. The map is hypercloning's, and its copies
    stay equal: what parts them is training, by the operator's ``optimizer_state`` and ``rates`` in plans, the state
    anew and the rates warmed up for the new copies alone. The texts on SPARKLING that we could read name these parts
    and give no formulas, so this is our reading of them. Source: Yu et al. (2026), arXiv 2602.02472, its abstract.
    """
    return hypercloning(config, options)


def deep_fusion(config: Config, options: Options) -> Growth:
    """Return ``fuse`` of k copies."""
    copies = [0] * options.factor
    return _whole(self_fusion(config, copies), options, whole_copies(config, options.factor))


def self_fusion(config: Config, networks: Sequence[int | None]) -> GrowthMap:
    """Return the map of a fusion of one network (0) with networks that are drawn (None), as a map of that one."""
    fused = fusion_map([config] * len(networks))

    def rule(old: Rule) -> Rule:
        blocks = [block._replace(network=n) for block, n in zip(old.blocks, networks, strict=True)]
        return dataclasses.replace(old, blocks=tuple(blocks))

    return GrowthMap(jax.tree.map(rule, fused.rules), parameter_shapes(config), fused.config)


def aki(config: Config, options: Options) -> Growth:
    """Return whole copies, of which the second and later ones are made by the weights of the layer above.

    Raises:
      InputError: no layer has one of the same shape above it.
    """
    units = whole_copies(config, options.factor)
    above = {name: _name_above(name, config) for name in layouts(config)}
    if all(name == up for name, up in above.items()):
        raise InputError(
            "aki finds no layer with one of the same shape above it, so that it would only copy units; use hypercloning, or "
            "give a network of two equal layers in succession"
        )
    mapping = replication(config, units, above)
    return Growth(mapping.config, mapping, units=units)


def _name_above(name: str, config: Config) -> str:
    """Return the name of the next layer's array from which new units take their weights; the name itself if there is none.

    Norms have the units of the stream and not of a layer; both layers as a whole must be of one shape.
    """
    table = layouts(config)
    for stack in architecture(config).stacks(config):
        split = stack.split(name)
        if split is None or is_norm(name):
            continue
        layer, rest = split
        own, above = ({s[1]: n for n in table if (s := stack.split(n)) and s[0] == i} for i in (layer, layer + 1))
        equal = all(table[own[part]].shape == table[above[part]].shape for part in own.keys() & above.keys())
        if layer + 1 in stack.repeated and equal and rest in above:
            return above[rest]
    return name
