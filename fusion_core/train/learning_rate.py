"""Learning-rate schedules: factors of peak 1 on the rates of the training state, as functions of the step.

A step's learning rate is ``TrainState.rates`` times the schedule at that step (``step.displacement``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from fusion_core.errors import InputError

Schedule = Callable[[Any], Any]


def t5_schedule(warmup: int = 10_000) -> Schedule:
    r"""Return T5's schedule, constant and then the inverse square root of the step.

    .. math:: s(n) = \sqrt{w / \max(n, w)}

    With a rate of 0.01 and w = 10⁴ it is T5's own ``1 / √max(n, 10⁴)``, in Adafactor's unit: relative to each parameter's
    root mean square. Source: Raffel et al. (2020), section 3.1.2.

    Raises:
      InputError: the warmup w is below 1.
    """
    if warmup < 1:
        raise InputError(f"the schedule's warmup is {warmup} steps; it must be at least 1")
    return lambda n: jnp.sqrt(warmup / jnp.maximum(n, warmup))


def _warmed(after: Schedule, warmup: int) -> Schedule:
    """Return ``(n + 1) / warmup`` for the first steps, so that the first one moves already, then ``after(n - warmup)``."""
    if warmup < 0:
        raise InputError(f"the schedule's warmup is {warmup} steps; it must be at least 0")
    if warmup < 2:
        return lambda n: after(n - warmup)
    return optax.join_schedules([optax.linear_schedule(1 / warmup, 1.0, warmup - 1), after], [warmup])


def constant_schedule(warmup: int = 0) -> Schedule:
    """Return a schedule that rises linearly to 1 over ``warmup`` steps and stays there.

    Raises:
      InputError: warmup is negative.
    """
    return _warmed(lambda n: jnp.ones_like(n, jnp.float32), warmup)


def cosine_schedule(steps: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """Return a schedule that rises linearly to 1, then falls as half a cosine to ``end`` at ``steps``, where it stays.

    Raises:
      InputError: warmup is negative or not below steps, or end is not between 0 and 1.
    """
    if warmup >= steps:
        raise InputError(f"the schedule's warmup of {warmup} steps must be below its {steps} steps")
    if not 0 <= end <= 1:
        raise InputError(f"the schedule ends at {end} of its peak; it must be between 0 and 1")
    decay = optax.cosine_decay_schedule(1.0, steps - warmup, alpha=end)
    return _warmed(lambda n: decay(jnp.maximum(n, 0)), warmup)
