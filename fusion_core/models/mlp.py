"""A multi-layer perceptron: ``{"layers": [{"weight": out × in, "bias": out}, ...]}``."""

from __future__ import annotations

import dataclasses
from typing import Any

from fusion_core.errors import InputError


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Widths of a multi-layer perceptron, input and output included: (in, hidden, ..., out)."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) < 3 or min(self.sizes) < 1:
            raise InputError(f"MLPConfig.sizes is {self.sizes}; it needs input, at least one hidden and output width")


def parameter_shapes(config: MLPConfig) -> dict[str, Any]:
    pairs = zip(config.sizes[:-1], config.sizes[1:], strict=True)
    return {"layers": [{"weight": (n_out, n_in), "bias": (n_out,)} for n_in, n_out in pairs]}
