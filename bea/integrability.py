"""The distance of a field from gradients, estimated by random probes of its Jacobian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bea.pytrees import Field, Params, check_params, checked, inner, subtract


class IntegrabilityDefect(NamedTuple):
    """An estimate of ``‖A‖_F / ‖J‖_F``, with ``A = (J − Jᵀ)/2`` the antisymmetric part of a Jacobian J.

    Attributes:
      value: the estimate, in [0, 1] up to its error: 0 for a gradient, 1 for a pure rotation.
      standard_error: standard error of ``value``, from the spread of the probes (to first order in it).
      antisymmetric: the estimate of ``‖A‖_F``.
      jacobian: the estimate of ``‖J‖_F``.
    """

    value: Array
    standard_error: Array
    antisymmetric: Array
    jacobian: Array


def integrability_defect(field: Field, params: Params, *, probes: int, key: Array) -> IntegrabilityDefect:
    r"""Return how far a field is from a gradient at a point; it is 0 all around it if and only if there is a potential.

    .. math:: \frac{\|A\|_F}{\|J\|_F}, \qquad A = \tfrac12 (J - J^T), \qquad
              \|A\|_F^2 = \mathbb E\, \|A z\|^2, \quad \|J\|_F^2 = \mathbb E\, \tfrac12 (\|J z\|^2 + \|J^T z\|^2)

    over vectors z of independent signs (Hutchinson). With the squares a_i, b_i of the probes and the ratio of their means
    ``r = ā/b̄``, the value is √r and its standard error ``√(Σ (a_i − r b_i)² / (k (k − 1))) / (2 b̄ √r)``.

    Args:
      field: ``params -> velocity``; for a modified field pass the correction alone, whose defect is its distance from
        modified losses.
      params: θ, the point of J.
      probes: k ≥ 2 random vectors; each costs one ``jvp`` and one ``vjp`` of the field, one after the other in memory.
      key: random key of the vectors, ``jax.random.key(seed)``.

    Returns:
      An ``IntegrabilityDefect``. A constant field (J = 0) has the value 0.

    Raises:
      ValueError: fewer than two probes, an entry of params that is not finite, or a field that returns another tree.
      TypeError: a leaf is not floating.

    Source: theory.md, (1.9); Hutchinson (1990) for the probes.
    """
    if not isinstance(probes, int) or isinstance(probes, bool) or probes < 2:
        raise ValueError(f"probes is {probes!r}, but a standard error needs at least 2 random vectors: try 32")
    check_params(params)
    _, push = jax.linearize(checked(field), params)
    pull = jax.linear_transpose(push, params)

    def probe(key: Array) -> tuple[Array, Array]:
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(k, jnp.shape(leaf), jnp.result_type(leaf))
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        z = jax.tree.unflatten(tree, signs)
        forward, (backward,) = push(z), pull(z)
        twist = subtract(forward, backward)
        return inner(twist, twist) / 4, (inner(forward, forward) + inner(backward, backward)) / 2

    a, b = jax.lax.map(probe, jax.random.split(key, probes))
    mean_a, mean_b = jnp.mean(a), jnp.mean(b)
    safe_b = jnp.where(mean_b > 0, mean_b, 1.0)
    ratio = mean_a / safe_b
    value = jnp.sqrt(ratio)
    spread = jnp.sqrt(jnp.sum((a - ratio * b) ** 2) / (probes * (probes - 1)))
    error = jnp.where(ratio > 0, spread / (2 * safe_b * jnp.where(ratio > 0, value, 1.0)), 0.0)
    return IntegrabilityDefect(value, error, jnp.sqrt(mean_a), jnp.sqrt(mean_b))
