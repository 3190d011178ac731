"""Whole networks: one ``fuse`` for every architecture that has a table of rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.growth.agreement import NORM_MODES, NormMode
from fusion_core.growth.calibration import Moments, NormKind, Path, norm_factors, watch, with_paths
from fusion_core.growth.conv import conv_map, fused_conv_config
from fusion_core.growth.decoder import (
    decoder_pass,
    decoder_unit,
    fused_gpt2_config,
    fused_llama_config,
    gpt2_map,
    gpt2_norm,
    llama_map,
    llama_norm,
)
from fusion_core.growth.linear import FusionMap, Params
from fusion_core.growth.mlp import fused_mlp_config, mlp_map
from fusion_core.growth.noise import OFF_DIAGONAL, OffDiagonal, with_noise
from fusion_core.growth.operators import replace_scales
from fusion_core.growth.t5 import fused_t5_config, t5_map, t5_norm, t5_pass, t5_unit
from fusion_core.models.conv import ConvConfig
from fusion_core.models.decoder.config import GPT2Config, LlamaConfig
from fusion_core.models.mlp import MLPConfig
from fusion_core.models.t5.config import T5Config

Config = Any  # one of the keys of ARCHITECTURES


class Architecture(NamedTuple):
    """What ``fuse`` knows of an architecture.

    Attributes:
      fused_config: ``(configs, norm mode) -> config``, or InputError.
      fusion_map: ``(configs, weights) -> FusionMap``.
      width: the field of the residual stream's width; None: there are no norms.
      kind: ``config -> NormKind``.
      unit: ``(x, config, groups)``, the norm without scale and bias.
      run: ``(params, config, batch, norm)``, the forward pass with any norm.
    """

    fused_config: Callable[..., Any]
    fusion_map: Callable[..., FusionMap]
    width: str | None = None
    kind: Callable[..., NormKind] | None = None
    unit: Callable[..., Any] | None = None
    run: Callable[..., Any] | None = None


# an architecture more is a line more
ARCHITECTURES: dict[type, Architecture] = {
    T5Config: Architecture(fused_t5_config, t5_map, "d_model", t5_norm, t5_unit, t5_pass),
    LlamaConfig: Architecture(fused_llama_config, llama_map, "hidden_size", llama_norm, decoder_unit, decoder_pass),
    GPT2Config: Architecture(fused_gpt2_config, gpt2_map, "n_embd", gpt2_norm, decoder_unit, decoder_pass),
    MLPConfig: Architecture(fused_mlp_config, mlp_map),
    ConvConfig: Architecture(fused_conv_config, conv_map),
}


def _architecture(configs: Sequence[Config]) -> Architecture:
    if len(configs) < 2:
        raise InputError(
            f"fusion needs at least two networks, but got {len(configs)}; repeat one to fuse it with itself"
        )
    kinds = {type(config).__name__ for config in configs}
    if len(kinds) > 1:
        raise InputError(f"cannot fuse networks of different kinds: {', '.join(sorted(kinds))}")
    if type(configs[0]) not in ARCHITECTURES:
        known = ", ".join(kind.__name__ for kind in ARCHITECTURES)
        raise InputError(f"no fusion rules for a configuration of type {kinds.pop()}; there are rules for {known}")
    return ARCHITECTURES[type(configs[0])]


def fused_config(configs: Sequence[Config], norm: NormMode = "plain") -> Config:
    """The configuration of the fused network. Raises InputError where the networks cannot be fused.

    Args:
      configs: of the sources.
      norm: as in ``fuse``; ``"calibrated"`` gives the configuration that ``"plain"`` gives.
    """
    architecture = _architecture(configs)
    if norm not in NORM_MODES:
        raise InputError(f"no norm mode {norm!r}; there are {', '.join(NORM_MODES)}")
    if norm != "plain" and architecture.width is None:
        raise InputError(f"norm is {norm!r}, but a {type(configs[0]).__name__} has no norms; leave it 'plain'")
    return architecture.fused_config(configs, norm)


def fusion_map(configs: Sequence[Config], weights: Sequence[float] | None = None) -> FusionMap:
    """The linear map of a fusion, from the configurations alone. Plain and grouped norms have the same.

    Args:
      configs: of the k sources, all of one kind.
      weights: of the sources in the mean, positive, of sum 1; None: 1/k each.

    Raises:
      InputError: the networks cannot be fused, or the weights are not such.
    """
    architecture = _architecture(configs)
    architecture.fused_config(configs, "grouped")  # which takes what plain takes, and groups as well
    if weights is None:
        weights = [1.0 / len(configs)] * len(configs)
    if len(weights) != len(configs):
        raise InputError(f"{len(weights)} weights were given for {len(configs)} networks; give one each")
    if not all(math.isfinite(w) and w > 0 for w in weights) or abs(sum(weights) - 1) > 1e-6:
        raise InputError(f"the weights are {list(weights)}; they must be positive and sum to 1")
    return architecture.fusion_map(configs, tuple(float(w) for w in weights))


def calibrate(
    networks: Sequence[tuple[Params, Config]], batch: Any, weights: Sequence[float] | None = None
) -> FusionMap:
    """The fusion map with calibrated norms: ``fusion_map`` with each source's scales of each norm fitted to a batch.

    Args:
      networks: ``(params, config)`` of each source.
      batch: T5: ``{"encoder_ids": int [batch, source], "targets": int [batch, target]}``, padding does not count;
        decoder-only: ``{"ids": int [batch, length]}``. A few hundred tokens are enough.
      weights: of the sources in the mean.

    Raises:
      InputError: as ``fuse``.
    Source: docs/t5_fusion.md; ``fusion_core.growth.calibration`` has the equation.
    """
    configs = [config for _, config in networks]
    fused_config(configs, "calibrated")  # which refuses networks without norms
    tokens = jax.tree.map(jnp.asarray, batch)
    watched = [
        jax.jit(lambda p, b, config=config: norm_moments(with_paths(p), config, b))(params, tokens)
        for params, config in networks
    ]
    return calibrated_map(configs, watched, weights)


def norm_moments(params: Params, config: Config, batch: Any) -> dict[Path, Moments]:
    """What every norm of one network sees on a batch; ``calibrated_map`` makes the factors of all sources' moments.

    Args:
      params: as ``with_paths`` gives them.
      config: of the network.
      batch: as in ``calibrate``.
    """
    architecture = _architecture([config] * 2)
    assert architecture.unit is not None
    assert architecture.run is not None
    unit, run = architecture.unit, architecture.run
    return watch(
        params,
        batch,
        lambda x: unit(x, config, config.norm_groups),
        lambda params, tokens, norm: run(params, config, tokens, norm),
    )


def calibrated_map(
    configs: Sequence[Config], moments: Sequence[dict[Path, Moments]], weights: Sequence[float] | None = None
) -> FusionMap:
    """``calibrate`` from each source's ``norm_moments`` on one batch."""
    config, mapping = fused_config(configs, "calibrated"), fusion_map(configs, weights)
    architecture = _architecture(configs)
    assert architecture.width is not None
    assert architecture.kind is not None
    factors = norm_factors(moments, [getattr(c, architecture.width) for c in configs], architecture.kind(config))
    # A LayerNorm's bias is added after the division, so it keeps its scale.
    old = {tuple(part.key for part in path): rule for path, rule in jax.tree_util.tree_leaves_with_path(mapping.rules)}
    scales = {(*path, "weight"): c for path, c in factors.items()}
    return replace_scales(
        mapping,
        {path: [s * x for s, x in zip(old[path].scales, c, strict=True)] for path, c in scales.items()},
    )


def check_params(i: int, params: Params, shapes: Params) -> None:
    wanted = jax.tree_util.tree_flatten_with_path(shapes)[0]
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in wanted]
    found_names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
    if names != found_names:
        odd = sorted(set(names) ^ set(found_names))[:3] or names[:3]
        raise InputError(f"network {i}: its parameters are not those of its configuration; look at {', '.join(odd)}")
    for name, (_, struct), (_, leaf) in zip(names, wanted, found, strict=True):
        shape = struct.shape
        if tuple(leaf.shape) != shape:
            raise InputError(f"network {i}: {name} has shape {tuple(leaf.shape)}, but its configuration says {shape}")
        # a traced array has no values to look at
        if not isinstance(leaf, jax.core.Tracer) and not np.isfinite(np.asarray(leaf)).all():
            raise InputError(f"network {i}: {name} has entries that are not finite; it is of a diverged run")


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
    r"""One network whose outputs are the weighted mean of the sources'.

    .. math:: \Theta = J (\theta_1, \dots, \theta_k), \qquad f(\Theta; x) = \sum_i w_i f_i(\theta_i; x)

    Exact for MLPs and convolutional networks, for any network fused with itself, and with grouped norms. With plain norms
    different networks are averaged up to their norms' statistics: source i is rescaled by ``rms_i / rms`` at each norm.

    Args:
      networks: ``(params, config)`` of each source; the params are trees of arrays as ``config`` says.
      weights: of the sources in the mean; None: equal ones.
      norm: ``"plain"``: the norms see the whole stream; ``"calibrated"``: so they do, with their scales fitted to a
        batch (``calibrate``); ``"grouped"``: one norm a source, exact, but no other library has such a network.
      off_diagonal: blocks between sources: ``"zero"``; ``"random"``: normal; ``"antisymmetric"``: for equal copies, noise
        in all blocks that changes no output and lets the copies' gradients separate (without it they never do).
      noise: standard deviation of the noise, in units of each array's root mean square.
      seed: of the noise.
      calibration: the batch of tokens that ``"calibrated"`` needs; see ``calibrate``.

    Returns:
      ``(params, config)`` of the fused network.

    Raises:
      InputError: fewer than two networks, unequal depth or vocabulary, shapes that do not fit, entries not finite,
        options that do not go together.
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
    fused = mapping.embed([params for params, _ in networks])
    if off_diagonal != "zero":
        fused = with_noise(mapping, fused, off_diagonal, noise, seed)
    return fused, config
