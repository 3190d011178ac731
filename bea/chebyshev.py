r"""Runge–Kutta–Chebyshev: an explicit method for stiff fields with a real spectrum.

s stages reach as far as ``0.65 (s² − 1) / λ_max`` where Euler's method reaches ``2 s / λ_max``: the flow for a time T
costs about ``√(T λ_max)`` evaluations, and it needs no matrix.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bea.fields import gradient_field
from bea.modified import modified_field
from bea.pytrees import Field, Loss, Number, Params, check_floating, check_positive, check_step_size, checked

DAMPING = 2 / 13


def chebyshev_step(field: Field, params: Params, time: Number, stages: int) -> Params:
    """One step of the second-order method with s ≥ 2 stages, damped; error of order time³.

    Source: Sommeijer, Shampine & Verwer (1998), RKC: an explicit solver for parabolic PDEs, section 2.
    """
    weights = _weights(stages)
    add: Callable[..., Params] = lambda coefficients, trees: jax.tree.map(
        lambda *leaves: sum(jnp.asarray(c, leaf.dtype) * leaf for c, leaf in zip(coefficients, leaves, strict=True)),
        *trees,
    )
    first = field(params)
    before, now = params, add([1.0, weights.first * time], [params, first])

    def stage(carry: tuple[Params, Params], c: Array) -> tuple[tuple[Params, Params], None]:
        before, now = carry
        mu, nu, mu_time, gamma_time = c
        terms = [params, now, before, field(now), first]
        following = add([1 - mu - nu, mu, nu, mu_time * time, gamma_time * time], terms)
        return (now, following), None

    table = jnp.asarray(weights.table, jnp.result_type(*jax.tree.leaves(params)))
    return jax.lax.scan(stage, (before, now), table)[0][1]


def stages_for(time: float, spectral_radius: float) -> int:
    """The fewest stages with which a step of this length is stable."""
    return max(2, math.ceil(math.sqrt(1 + time * spectral_radius / 0.65)))


class _Weights(NamedTuple):
    first: float
    table: np.ndarray


def _weights(stages: int) -> _Weights:
    w0 = 1 + DAMPING / stages**2
    t, dt, ddt = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, stages + 1):  # Chebyshev's polynomials and their derivatives at w0
        t, dt, ddt = (
            [*t, 2 * w0 * t[-1] - t[-2]],
            [*dt, 2 * t[-1] + 2 * w0 * dt[-1] - dt[-2]],
            [*ddt, 4 * dt[-1] + 2 * w0 * ddt[-1] - ddt[-2]],
        )
    w1 = dt[-1] / ddt[-1]
    b = [ddt[j] / dt[j] ** 2 if j > 1 else ddt[2] / dt[2] ** 2 for j in range(stages + 1)]
    rows = []
    for j in range(2, stages + 1):
        mu, nu = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
        mu_time = 2 * b[j] * w1 / b[j - 1]
        rows.append((mu, nu, mu_time, -(1 - b[j - 1] * t[j - 1]) * mu_time))
    return _Weights(b[1] * w1, np.asarray(rows))


def chebyshev_look_ahead(
    loss: Loss,
    params: Params,
    *,
    step_size: float,
    steps: int,
    spectral_radius: float,
    metric: Params | None = None,
    order: int = 1,
    pieces: int = 8,
    ratio: float = 2.0,
) -> tuple[Params, int]:
    """The params after ``steps`` steps, by the flow of their modified field: the second way to look ahead.

    Args:
      loss: E.
      params: Θ.
      step_size, steps: h and n, known (the number of stages follows from them).
      spectral_radius: the largest eigenvalue of ``M^½ H M^½`` along the way (``bea.largest_eigenvalue`` now, and a margin
        for its growth: 1.5 is a good one).
      metric: M, a tree like params of rates; None is M = 1.
      order: of the modified field; 1 is the field itself, 2 costs three gradients a stage. Where ``h λ_max`` is near 2 the
        expansion of the modified field does not converge, and the field itself is the better choice.
      pieces: steps of the method; ``ratio``: of each one's length to the one before.

    Returns:
      The params, and the gradients spent. It can be jitted.

    Raises:
      ValueError: a number is not positive and finite, or order is none of ``modified_field``.

    Source: theory.md, section 6.
    """
    check_floating(params)
    check_step_size(step_size)
    check_positive(steps, "steps", "pass how many steps the phase has")
    check_positive(spectral_radius, "spectral_radius", "pass bea.largest_eigenvalue(loss, params, metric=metric).value")
    descent = gradient_field(loss)
    if metric is not None:
        plain = descent
        descent = lambda point: jax.tree.map(lambda m, v: jnp.asarray(m, v.dtype) * v, metric, plain(point))
    field = checked(modified_field(descent, step_size, order=order))
    stiffness = spectral_radius * (1 + (0.5 * step_size * spectral_radius if order > 1 else 0.0))
    lengths = ratio ** np.arange(pieces)
    gradients = 0
    for length in lengths / lengths.sum() * (steps * step_size):
        stages = stages_for(float(length), stiffness)
        params = chebyshev_step(field, params, float(length), stages)
        gradients += stages * (1 if order == 1 else 1 + 2 * (order - 1))
    return params, gradients
