"""A convolutional classifier: convolutions, the mean over the image, one linear map to the classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from fusion_core.errors import InputError
from fusion_core.models.mlp import chain, from_scratch
from fusion_core.models.units import Layout, Params, Space, Stack


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    """Shape of a convolutional classifier.

    The parameters are ``{"convolutions": [{"weight": out × in × side × side, "bias": out}, ...], "head": {"weight":
    classes × channels, "bias": classes}}``. The forward pass is the caller's: fusion is exact for any elementwise
    activation, stride, and pooling that treats all channels alike.

    Attributes:
      channels: channels of the image and of every convolution's output.
      kernel: side of the kernels in pixels.
      classes: number of classes.

    Raises:
      InputError: there is no convolution, or a size is below 1.
    """

    channels: tuple[int, ...]
    kernel: int
    classes: int

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(*self.channels, self.kernel, self.classes) < 1:
            raise InputError(
                f"{self} has no convolution or a size below 1; give (image, first, ...) channels and sizes"
            )


def arrays(config: ConvConfig) -> Params:
    """Return the layout of every array."""
    widths, side = config.channels, (config.kernel, config.kernel)
    last = Space(f"channels.{len(widths) - 2}", widths[-1], "channels", len(widths) - 1)
    return {
        "convolutions": chain("channels", "channels", widths, range(1, len(widths)), side),
        "head": {"weight": Layout((config.classes, last.reads())), "bias": Layout((config.classes,))},
    }


def stacks(config: ConvConfig) -> tuple[Stack, ...]:
    """Return the convolutions, of which all but the first may be repeated."""
    layers = len(config.channels) - 1
    return (Stack("channels", "convolutions", layers, range(1, layers)),)


def init(config: ConvConfig, seed: int, *, dtype: Any = jnp.float32) -> Params:
    """Return random parameters (``fusion_core.models.mlp.from_scratch``)."""
    return from_scratch(arrays(config), seed, dtype)
