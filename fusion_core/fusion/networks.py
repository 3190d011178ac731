"""Whole networks: one ``fuse`` for every architecture that has a table of rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fusion_core.errors import InputError
from fusion_core.fusion.linear import FusionMap, Params
from fusion_core.fusion.mlp import MLPConfig, fused_mlp_config, mlp_map
from fusion_core.fusion.t5 import fused_t5_config, t5_map
from fusion_core.t5.config import T5Config

Config = Any  # T5Config | MLPConfig

# configuration -> (the fused configuration, the fusion map): an architecture more is a line more
ARCHITECTURES: dict[type, tuple[Any, Any]] = {
    T5Config: (fused_t5_config, t5_map),
    MLPConfig: (fused_mlp_config, mlp_map),
}


def _architecture(configs: Sequence[Config]) -> tuple[Any, Any]:
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


def fused_config(configs: Sequence[Config]) -> Config:
    """The configuration of the fused network. Raises InputError where the networks cannot be fused."""
    return _architecture(configs)[0](configs)


def fusion_map(configs: Sequence[Config], weights: Sequence[float] | None = None) -> FusionMap:
    """The linear map of a fusion, from the configurations alone.

    Args:
      configs: of the k sources, all of one kind.
      weights: of the sources in the mean, positive, of sum 1; None: 1/k each.

    Raises:
      InputError: the networks cannot be fused, or the weights are not such.
    """
    _, build = _architecture(configs)
    fused_config(configs)
    if weights is None:
        weights = [1.0 / len(configs)] * len(configs)
    if len(weights) != len(configs):
        raise InputError(f"{len(weights)} weights were given for {len(configs)} networks; give one each")
    if not all(math.isfinite(w) and w > 0 for w in weights) or abs(sum(weights) - 1) > 1e-6:
        raise InputError(f"the weights are {list(weights)}; they must be positive and sum to 1")
    return build(configs, tuple(float(w) for w in weights))


def check_params(i: int, params: Params, shapes: Params) -> None:
    wanted = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda node: isinstance(node, tuple))[0]
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in wanted]
    found_names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
    if names != found_names:
        odd = sorted(set(names) ^ set(found_names))[:3] or names[:3]
        raise InputError(f"network {i}: its parameters are not those of its configuration; look at {', '.join(odd)}")
    for name, (_, shape), (_, leaf) in zip(names, wanted, found, strict=True):
        if tuple(leaf.shape) != shape:
            raise InputError(f"network {i}: {name} has shape {tuple(leaf.shape)}, but its configuration says {shape}")
        # a traced array has no values to look at
        if not isinstance(leaf, jax.core.Tracer) and not np.isfinite(np.asarray(leaf)).all():
            raise InputError(f"network {i}: {name} has entries that are not finite; it is of a diverged run")


def fuse(networks: Sequence[tuple[Params, Config]], weights: Sequence[float] | None = None) -> tuple[Params, Config]:
    r"""One network whose outputs are the weighted mean of the sources'.

    .. math:: \Theta = J (\theta_1, \dots, \theta_k), \qquad f(\Theta; x) = \sum_i w_i f_i(\theta_i; x)

    Exact for MLPs, and for a T5 fused with itself. Different T5s are averaged up to their norms' statistics (see
    ``fusion_core.fusion.t5``).

    Args:
      networks: ``(params, config)`` of each source; the params are trees of arrays as ``config`` says.
      weights: of the sources in the mean; None: equal ones.

    Returns:
      ``(params, config)`` of the fused network.

    Raises:
      InputError: fewer than two networks, unequal depth or vocabulary, shapes that do not fit, entries not finite.
    Source: Mazzawi et al. (2024).
    """
    configs = [config for _, config in networks]
    mapping = fusion_map(configs, weights)
    for i, ((params, _), shapes) in enumerate(zip(networks, mapping.shapes, strict=True), start=1):
        check_params(i, params, shapes)
    return mapping.embed([params for params, _ in networks]), fused_config(configs)
