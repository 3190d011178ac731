"""Measurements of growth that several tests judge, made once a session."""

import functools
from typing import Any

from toy_models.when_to_grow import derivative

_compute = derivative.compute


@functools.cache
def derivative_at(largest: float = 0.08, halvings: int = 3, seed: int = 3) -> dict[str, Any]:
    """``toy_models.when_to_grow.derivative.compute``."""
    return _compute(largest, halvings, seed)
