"""A convolutional classifier: convolutions, the mean over the image, one linear map to the classes."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from fusion_core.errors import InputError


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    """Channels of the image and of every convolution, the kernels' side in pixels, and the number of classes.

    The parameters are ``{"convolutions": [{"weight": out × in × side × side, "bias": out}, ...], "head": {"weight":
    classes × channels, "bias": classes}}``. Activations, strides, and pooling that treats channels alike are the
    caller's: fusion holds whatever they are.
    """

    channels: tuple[int, ...]
    kernel: int
    classes: int

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(*self.channels, self.kernel, self.classes) < 1:
            raise InputError(
                f"{self} has no convolution or a size below 1; give (image, first, ...) channels and sizes"
            )


def parameter_shapes(config: ConvConfig) -> dict[str, Any]:
    side = (config.kernel, config.kernel)
    pairs = itertools.pairwise(config.channels)
    return {
        "convolutions": [{"weight": (n_out, n_in, *side), "bias": (n_out,)} for n_in, n_out in pairs],
        "head": {"weight": (config.classes, config.channels[-1]), "bias": (config.classes,)},
    }
