"""Fusion rules of a convolutional classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fusion_core.errors import InputError
from fusion_core.growth import operators
from fusion_core.growth.agreement import NormMode, unequal_depth
from fusion_core.growth.linear import FusionMap
from fusion_core.models.conv import ConvConfig
from fusion_core.models.registry import parameter_shapes

FIRST = {"weight": operators.dense_in, "bias": operators.bias}
HIDDEN = operators.CONVOLUTION
HEAD = {"weight": operators.dense_out, "bias": operators.bias_out}


def fused_conv_config(configs: Sequence[ConvConfig], norm: NormMode = "plain") -> ConvConfig:
    """Channels add up; depth, kernel, image channels and classes must agree.

    Raises:
      InputError: they do not.
    """
    first = configs[0]
    for i, config in enumerate(configs[1:], start=2):
        if len(config.channels) != len(first.channels):
            raise unequal_depth((len(first.channels) - 1, len(config.channels) - 1), i)
        for name, ours, theirs in (
            ("channels[0]", first.channels[0], config.channels[0]),
            ("kernel", first.kernel, config.kernel),
            ("classes", first.classes, config.classes),
        ):
            if ours != theirs:
                raise InputError(f"cannot fuse networks 1 and {i}: {name} is {ours} and {theirs}; it must agree")
    hidden = (sum(widths) for widths in zip(*(c.channels[1:] for c in configs), strict=True))
    return dataclasses.replace(first, channels=(first.channels[0], *hidden))


def conv_map(configs: Sequence[ConvConfig], weights: tuple[float, ...]) -> FusionMap:
    """First convolution: output channels stacked; hidden ones: block-diagonal in the channels; head: columns times wᵢ."""
    tables = [FIRST, *[HIDDEN] * (len(configs[0].channels) - 2)]
    rules = [{name: operator(weights) for name, operator in table.items()} for table in tables]
    return FusionMap(
        rules={"convolutions": rules, "head": {name: operator(weights) for name, operator in HEAD.items()}},
        shapes=tuple(parameter_shapes(config) for config in configs),
        weights=weights,
    )
