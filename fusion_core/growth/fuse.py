r"""Fusion of whole networks: their spaces of units are concatenated, for every architecture of the registry.

A fused network holds its sources side by side: every vector of activations is the concatenation ``(x_1, ..., x_k)``. What
becomes of an array depends on the units that its axes make and read:

===================== ========================== ================================
it reads              it makes the sources'      it writes the common outputs
===================== ========================== ================================
the common inputs     rows stacked
the sources'          block-diagonal             columns side by side, times wᵢ
nothing (a bias)      concatenated               sum weighted with wᵢ
===================== ========================== ================================

Heads are ranges of the rows of q, k and v, so source i's heads read its stream and write to it. Elementwise functions,
gates and the softmax of a head need no rule. A tied head is the embedding, which the input uses too, so that the norm
before it carries ``wᵢ``; and that norm or the head also ``lᵢ / l`` if the logits are multiplied by a factor ``l`` that depends
on the width. An embedding that is multiplied by such a factor ``e`` where it is read carries ``eᵢ / e`` (Gemma's √d; its l is
``1/√d``).
Source: Mazzawi et al. (2024); docs/fusion.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.growth.agreement import check_agree
from fusion_core.growth.maps import Block, GrowthMap, Rule
from fusion_core.growth.noise import OFF_DIAGONAL, OffDiagonal, with_noise
from fusion_core.growth.norms import NORM_MODES, NormMode, calibrated, norm_moments, with_paths
from fusion_core.growth.units import beside
from fusion_core.models.registry import architecture, layouts, parameter_shapes, resized, spaces
from fusion_core.models.units import Axis, Config, Params, Stack, by_name


def _check_kinds(configs: Sequence[Config]) -> None:
    if len(configs) < 2:
        raise InputError(
            f"fusion needs at least two networks, but got {len(configs)}; repeat one to fuse it with itself"
        )
    kinds = {type(config).__name__ for config in configs}
    if len(kinds) > 1:
        raise InputError(f"cannot fuse networks of different kinds: {', '.join(sorted(kinds))}")


def check_ratios(one: Config, other: Config, what: str) -> None:
    """Raise InputError if a quotient of sizes that must agree differs between two configurations."""
    for over, under, why in architecture(one).ratios:
        pairs = [(getattr(config, over), getattr(config, under)) for config in (one, other)]
        if pairs[0][0] // pairs[0][1] != pairs[1][0] // pairs[1][1]:
            raise InputError(
                f"{what}: {over} / {under} is {pairs[0][0]} / {pairs[0][1]} and {pairs[1][0]} / {pairs[1][1]}; {why}, so the "
                "ratios must agree"
            )


def _check_depth(ours: Stack, theirs: Stack, i: int, *, residual: bool) -> None:
    """Raise InputError, with the operator that helps, if two stacks have different numbers of layers."""
    if ours.layers == theirs.layers:
        return
    shallow = 1 if ours.layers < theirs.layers else i
    deep = max(ours, theirs, key=lambda stack: stack.layers)
    where = f"{ours.field} of networks 1 and {i}" if residual else f"networks 1 and {i}"
    remedy = (
        f'"identity_layers", depth={{"{ours.field}": {deep.layers}}}) keeps its function; "stacking" in its place copies the '
        "layers"
        if residual
        else f'"net2net_depth", depth={len(deep.repeated)}) keeps the function of a network of ReLU layers'
    )
    raise InputError(
        f"cannot fuse depth {ours.layers} with depth {theirs.layers} ({where}): fusion widens only; bring network {shallow} to "
        f"the same depth first: fusion_core.grow(params, config, {remedy}"
    )


def _norm_groups(configs: Sequence[Config], norm: str, stream: str) -> tuple[int, ...]:
    if norm == "grouped":
        return sum((config.norm_groups or (getattr(config, stream),) for config in configs), ())
    for i, config in enumerate(configs, start=1):
        if config.norm_groups:
            raise InputError(
                f"network {i} has grouped norms (norm_groups is {config.norm_groups}), which the norm mode {norm!r} "
                "would lose; fuse with norm='grouped'"
            )
    return ()


def fused_config(configs: Sequence[Config], norm: NormMode | str = "plain") -> Config:
    """Return the configuration of the fused network: numbers of units are added, all other fields must agree.

    Args:
      configs: configurations of the sources.
      norm: as in ``fuse``; ``"calibrated"`` gives the same configuration as ``"plain"``, ``"grouped"`` keeps each source's
        groups.

    Raises:
      InputError: the networks cannot be fused.
    """
    _check_kinds(configs)
    first, record = configs[0], architecture(configs[0])
    if norm not in NORM_MODES:
        raise InputError(f"no norm mode {norm!r}; there are {', '.join(NORM_MODES)}")
    if norm != "plain" and record.stream is None:
        raise InputError(f"norm is {norm!r}, but a {type(first).__name__} has no norms; leave it 'plain'")
    for i, config in enumerate(configs[1:], start=2):
        check_ratios(first, config, f"cannot fuse networks 1 and {i}")
        for ours, theirs in zip(record.stacks(first), record.stacks(config), strict=True):
            _check_depth(ours, theirs, i, residual=record.stream is not None)
        check_agree(first, config, i)
    sizes = {name: sum(spaces(config)[name].size for config in configs) for name in spaces(first)}
    if record.stream is None:
        return resized(first, sizes)
    return resized(first, sizes, norm_groups=_norm_groups(configs, norm, record.stream))


def fusion_map(configs: Sequence[Config], weights: Sequence[float] | None = None) -> GrowthMap:
    """Return the linear map of a fusion, from the configurations alone; it is the same for plain and grouped norms.

    Args:
      configs: configurations of the k sources, all of one kind.
      weights: weights of the sources in the mean, positive, of sum 1; if None, 1/k each.

    Raises:
      InputError: the networks cannot be fused, or the weights are not positive or do not sum to 1.
    """
    _check_kinds(configs)
    residual = architecture(configs[0]).stream is not None
    config = fused_config(configs, "grouped" if residual else "plain")  # "grouped" takes every network, "plain" not
    if not any(getattr(c, "norm_groups", ()) for c in configs) and residual:
        config = dataclasses.replace(config, norm_groups=())
    if weights is None:
        weights = [1.0 / len(configs)] * len(configs)
    if len(weights) != len(configs):
        raise InputError(f"{len(weights)} weights were given for {len(configs)} networks; give one each")
    if not all(math.isfinite(w) and w > 0 for w in weights) or abs(sum(weights) - 1) > 1e-6:
        raise InputError(f"the weights are {list(weights)}; they must be positive and sum to 1")
    shares = tuple(float(w) for w in weights)
    shapes = tuple(parameter_shapes(c) for c in configs)
    return GrowthMap(_fused_rules(configs, config, shares), shapes, config, shares)


def _fused_rules(configs: Sequence[Config], fused: Config, weights: tuple[float, ...]) -> Params:
    record, tables = architecture(fused), [layouts(config) for config in configs]
    tied, scale = set(record.tied(fused)), record.logit_scale
    before_head = [w * scale(config) / scale(fused) for w, config in zip(weights, configs, strict=True)]
    rules = []
    for name, layout in layouts(fused).items():
        axes = zip(*(table[name].axes for table in tables), strict=True)
        if name in tied or layout.is_head:
            scales: Sequence[float] = before_head
        elif layout.number(reads=False) is None:
            scales = weights
        else:
            scales = [record.input_scale(c, name) / record.input_scale(fused, name) for c in configs]
        blocks = [Block(i, name, s, w) for i, (s, w) in enumerate(zip(scales, weights, strict=True))]
        rules.append(
            Rule(
                tuple(blocks),
                tuple(beside(a) if isinstance(a[0], Axis) else None for a in axes),
                layout.shape,
                offset=layout.offset,
            )
        )
    return jax.tree.unflatten(jax.tree.structure(record.arrays(fused)), rules)


def calibrate(
    networks: Sequence[tuple[Params, Config]], batch: Any, weights: Sequence[float] | None = None
) -> GrowthMap:
    """Return the fusion map with calibrated norms: each source's scales of each norm are fitted to a batch.

    Args:
      networks: ``(params, config)`` of each source.
      batch: for a T5 ``{"encoder_ids": int [batch, source], "targets": int [batch, target]}``, in which padding does not
        count; for decoders ``{"ids": int [batch, length]}``. A few hundred tokens are enough.
      weights: weights of the sources in the mean.

    Raises:
      InputError: as ``fuse``.
    Source: docs/t5_fusion.md; the equation is in ``fusion_core.growth.norms``.
    """
    configs = [config for _, config in networks]
    fused_config(configs, "calibrated")  # raises for networks without norms
    tokens = jax.tree.map(jnp.asarray, batch)
    watched = [
        jax.jit(lambda p, b, config=config: norm_moments(with_paths(p), config, b))(params, tokens)
        for params, config in networks
    ]
    return calibrated(fusion_map(configs, weights), configs, watched)


def check_params(i: int, params: Params, shapes: Params) -> None:
    """Raise InputError if the parameters of network ``i`` are not of these shapes, or not finite."""
    wanted, found = by_name(shapes), by_name(params)
    if list(wanted) != list(found):
        odd = sorted(wanted.keys() ^ found.keys())[:3] or list(wanted)[:3]
        raise InputError(f"network {i}: its parameters are not those of its configuration; look at {', '.join(odd)}")
    for name, struct in wanted.items():
        leaf = found[name]
        if tuple(leaf.shape) != struct.shape:
            raise InputError(
                f"network {i}: {name} has shape {tuple(leaf.shape)}, but its configuration says {struct.shape}"
            )
        # a traced array has no values yet
        if not isinstance(leaf, jax.core.Tracer) and not np.isfinite(np.asarray(leaf)).all():
            raise InputError(f"network {i}: {name} has entries that are not finite; it is of a diverged run")


def check_grown(params: Params) -> Params:
    """Return grown parameters of finite sources. Raises InputError if an entry is known, and more than its dtype holds."""
    for name, leaf in by_name(params).items():
        if not isinstance(leaf, jax.core.Tracer) and not np.isfinite(np.asarray(leaf)).all():
            raise InputError(
                f"{name} of the grown network has entries that {leaf.dtype} cannot hold; grow it in float32, or with less noise"
            )
    return params


def _check_noise(networks: Sequence[tuple[Params, Config]], off_diagonal: str, noise: float) -> None:
    if off_diagonal not in OFF_DIAGONAL:
        raise InputError(f"no off-diagonal blocks are called {off_diagonal!r}; there are {', '.join(OFF_DIAGONAL)}")
    if off_diagonal == "zero" and noise != 0:
        raise InputError(
            f"noise is {noise}, but the off-diagonal blocks are 'zero'; choose 'random' or 'antisymmetric'"
        )
    if off_diagonal != "zero" and not (math.isfinite(noise) and noise > 0):
        raise InputError(f"noise is {noise}; {off_diagonal!r} blocks need a positive number, such as 0.1")
    if off_diagonal != "antisymmetric":
        return
    first_params, first_config = networks[0]
    for i, (params, config) in enumerate(networks[1:], start=2):
        equal = config == first_config and all(
            a is b or isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer) or np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(first_params), jax.tree.leaves(params), strict=True)
        )
        if not equal:
            raise InputError(
                f"antisymmetric noise keeps the function of equal copies only, but networks 1 and {i} differ; "
                "choose off_diagonal='random'"
            )


def fuse(
    networks: Sequence[tuple[Params, Config]],
    weights: Sequence[float] | None = None,
    *,
    norm: NormMode = "plain",
    off_diagonal: OffDiagonal = "zero",
    noise: float = 0.0,
    seed: int = 0,
    calibration: Any = None,
) -> tuple[Params, Config]:
    r"""Return one network whose outputs are the weighted mean of the sources'.

    .. math:: \Theta = J (\theta_1, \dots, \theta_k), \qquad f(\Theta; x) = \sum_i w_i f_i(\theta_i; x)

    Exact for MLPs and convolutional networks, for any network fused with itself, and with grouped norms. With plain norms
    the mean of different networks is approximate: source i is rescaled by ``rms_i / rms`` at each norm.

    Args:
      networks: ``(params, config)`` of each source.
      weights: weights of the sources in the mean; if None, equal ones.
      norm: ``"plain"``: one norm over the whole stream; ``"calibrated"``: the same with its scales fitted to a batch
        (``calibrate``); ``"grouped"``: one norm a source, exact, but no other library has such a network.
      off_diagonal: blocks between sources: ``"zero"``; ``"random"``: normal; ``"antisymmetric"``, for equal copies alone:
        noise in all blocks that changes no output but separates the copies' gradients (which else stay equal).
      noise: standard deviation of the noise, in units of each array's root mean square.
      seed: seed of the noise.
      calibration: the batch of tokens that ``"calibrated"`` needs; see ``calibrate``.

    Returns:
      ``(params, config)`` of the fused network.

    Raises:
      InputError: there are fewer than two networks, their depths or vocabularies differ, shapes do not fit, an entry is
        not finite, or would not be in its dtype, or options do not go together.
    Source: Mazzawi et al. (2024); docs/fusion.md.
    """
    configs = [config for _, config in networks]
    config = fused_config(configs, norm)
    mapping = fusion_map(configs, weights)
    for i, ((params, _), shapes) in enumerate(zip(networks, mapping.shapes, strict=True), start=1):
        check_params(i, params, shapes)
    _check_noise(networks, off_diagonal, noise)
    if (norm == "calibrated") != (calibration is not None):
        raise InputError(
            "norm='calibrated' needs a batch of tokens: give it as calibration"
            if calibration is None
            else f"a calibration batch was given, but norm is {norm!r}; say norm='calibrated'"
        )
    if norm == "calibrated":
        mapping = calibrate(networks, calibration, weights)
    fused = mapping.grown([params for params, _ in networks])
    if off_diagonal != "zero":
        fused = with_noise(mapping, fused, off_diagonal, noise, seed)
    return check_grown(fused), config
