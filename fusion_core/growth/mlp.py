"""Fusion rules of a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_core.errors import InputError
from fusion_core.growth import operators
from fusion_core.growth.agreement import NormMode, unequal_depth
from fusion_core.growth.linear import FusionMap
from fusion_core.models.mlp import MLPConfig
from fusion_core.models.registry import parameter_shapes

FIRST = {"weight": operators.dense_in, "bias": operators.bias}
HIDDEN = {"weight": operators.dense, "bias": operators.bias}
LAST = {"weight": operators.dense_out, "bias": operators.bias_out}


def fused_mlp_config(configs: Sequence[MLPConfig], norm: NormMode = "plain") -> MLPConfig:
    """Hidden widths add up; depth, input and output must agree. There are no norms, so their mode does not matter.

    Raises:
      InputError: they do not.
    """
    first = configs[0].sizes
    for i, config in enumerate(configs[1:], start=2):
        sizes = config.sizes
        if len(sizes) != len(first):
            deepest = max(len(first), len(sizes)) - 3  # hidden-to-hidden layers
            deepen = f'"net2net_depth", depth={deepest}) keeps the function of a network of ReLU layers'
            raise unequal_depth((len(first) - 1, len(sizes) - 1), i, deepen=deepen)
        if (sizes[0], sizes[-1]) != (first[0], first[-1]):
            raise InputError(
                f"cannot fuse networks 1 and {i}: input and output widths are {(first[0], first[-1])} and "
                f"{(sizes[0], sizes[-1])}; the networks must read and write the same spaces"
            )
    hidden = tuple(sum(widths) for widths in zip(*(c.sizes[1:-1] for c in configs), strict=True))
    return MLPConfig((first[0], *hidden, first[-1]))


def mlp_map(configs: Sequence[MLPConfig], weights: tuple[float, ...]) -> FusionMap:
    """First layer: rows concatenated; hidden ones: block-diagonal; last: columns times wᵢ, its bias averaged.

    Source: Mazzawi et al. (2024); theory.md, section 3.
    """
    tables = [FIRST, *[HIDDEN] * (len(configs[0].sizes) - 3), LAST]
    return FusionMap(
        rules={"layers": [{name: operator(weights) for name, operator in table.items()} for table in tables]},
        shapes=tuple(parameter_shapes(config) for config in configs),
        weights=weights,
    )
