"""Schedules of the learning rate: factors of peak 1 on ``TrainState.rates``, as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from fusion_core.errors import InputError

Schedule = Callable[[Any], Any]


def t5_schedule(warmup: int = 10_000) -> Schedule:
    """T5's schedule ``√(warmup / max(n, warmup))`` at step n: constant, then the inverse square root; its peak is 1.

    Times the learning rate (``TrainState.rates``): with 0.01 it is T5's own ``1 / √max(n, 10⁴)``. The unit is
    Adafactor's: relative to each parameter's root mean square. Source: Raffel et al. (2020), section 3.1.2.

    Raises:
      InputError: warmup is below 1.
    """
    if warmup < 1:
        raise InputError(f"the schedule's warmup is {warmup} steps; it must be at least 1")

    def schedule(n: Any) -> Any:
        return jnp.sqrt(warmup / jnp.maximum(n, warmup))

    return schedule


def _warmed(n: Any, warmup: int) -> Any:
    """``min(1, (n + 1) / warmup)``: the first step moves already."""
    return jnp.minimum(1.0, (n + 1) / max(warmup, 1))


def constant_schedule(warmup: int = 0) -> Schedule:
    """Linear to 1 over ``warmup`` steps, then 1. Raises InputError where warmup is negative."""
    _check(warmup)
    return lambda n: _warmed(n, warmup)


def cosine_schedule(steps: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """Linear to 1 over ``warmup`` steps, then half a cosine down to ``end`` at ``steps``, where it stays.

    Raises:
      InputError: warmup is negative or not below steps, or end is not between 0 and 1.
    """
    _check(warmup)
    if warmup >= steps:
        raise InputError(f"the schedule's warmup of {warmup} steps must be below its {steps} steps")
    if not 0 <= end <= 1:
        raise InputError(f"the schedule ends at {end} of its peak; it must be between 0 and 1")

    def schedule(n: Any) -> Any:
        along = jnp.clip((n - warmup) / (steps - warmup), 0.0, 1.0)
        return _warmed(n, warmup) * (end + (1 - end) * 0.5 * (1 + jnp.cos(math.pi * along)))

    return schedule


def jump_schedule(before: Schedule, at: int, after: Schedule, factor: float = 1.0) -> Schedule:
    """``before`` until step ``at``, the growth; from there on ``factor · after(n − at)``: it may jump, and warm up anew.

    Raises:
      InputError: at is negative, or the factor not positive and finite.
    """
    if at < 0 or not (math.isfinite(factor) and factor > 0):
        raise InputError(f"the schedule jumps at step {at} by {factor}; the step is 0 or more, the factor positive")
    return lambda n: jnp.where(n < at, before(jnp.minimum(n, at)), factor * after(jnp.maximum(n - at, 0)))


def _check(warmup: int) -> None:
    if warmup < 0:
        raise InputError(f"the schedule's warmup is {warmup} steps; it must be at least 0")
