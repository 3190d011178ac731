"""Modified fields and losses that a discrete step follows, from derivatives of the field or from iterates."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from bea.differentials import Differentials
from bea.pytrees import (
    Field,
    Loss,
    Number,
    Params,
    axpy,
    check_floating,
    check_like,
    check_params,
    check_step_size,
    checked,
    inner,
    is_traced,
    number_in,
    subtract,
    weighted_sum,
)
from bea.symbolic.equation import modified_equation, with_symmetry
from bea.taylor import modified_field_by_taylor

HIGHEST_ORDER_BY_TREES = 4
"""Largest order for which the sum over trees is used: it is cheaper than Taylor arithmetic, and needs no Taylor rules."""


def modified_field(field: Field, step_size: Number, order: int = 2) -> Field:
    r"""Return the field whose exact time-h flow is the explicit Euler step ``θ ↦ θ + h f(θ)``.

    .. math:: \tilde f = f - \frac{h}{2} f'f + h^2 \Big( \frac13 f'f'f + \frac1{12} f''(f, f) \Big)
              - h^3 \Big( \frac14 f'f'f'f + \frac1{12} f'f''(f, f) + \frac1{12} f''(f, f'f) \Big) + O(h^4)

    Args:
      field: f; ``params -> velocity`` (``gradient_field(loss)`` for gradient descent).
      step_size: h > 0, the learning rate.
      order: p ≥ 1: ``h f̃`` is exact through h^p, so that the time-h flow differs from the step by O(h^(p+1)). Order 1 is
        f itself. To order 4 the value is the truncated series above; from order 5 on it is the fixed point of
        ``bea.taylor``, which agrees with the series through h^p and has further terms.

    Returns:
      ``params -> f̃``; it can be jitted, and then costs about 2, 5 and 12 evaluations of f for order 2, 3, 4 and
      O(p³) beyond (``python -m benchmarks.bea_cost`` measures them).

    Raises:
      ValueError: step_size is not positive and finite, or order is not a positive integer; when evaluated, params has
        an entry that is not finite.
      NotImplementedError, when evaluated: order is 5 or more and JAX has no Taylor rule for an operation of the field.

    Source: theory.md, (1.1); Hairer, Lubich & Wanner (2006), section IX.1;
    the coefficients are ``bea.symbolic.modified_equation``'s.
    """
    check_step_size(step_size)
    if not isinstance(order, int) or isinstance(order, bool) or order < 1:
        raise ValueError(
            f"order is {order!r}, but has to be a positive integer, the highest power of the step size that is right: "
            "1 is the field itself, 2 the first correction"
        )
    if order > HIGHEST_ORDER_BY_TREES:
        return modified_field_by_taylor(field, step_size, order)
    coefficients = with_symmetry(modified_equation("euler", order))
    weights = {tree: float(c) * step_size ** (tree.order - 1) for tree, c in coefficients.items() if c}
    return lambda params: Differentials([field], params).combination(weights)


def modified_loss(
    loss: Loss, step_size: Number, momentum: Number = 0.0, *, metric: Params | None = None
) -> Callable[[Params], Array]:
    r"""Return the loss whose gradient flow gradient descent on ``loss`` follows, to first order in the step size.

    .. math:: \tilde E = E + \frac{\eta}{4}\,\frac{1+\beta}{1-\beta}\,\langle \nabla E, M \nabla E \rangle,
              \qquad \eta = \frac{h}{1 - \beta}

    The step is ``v ← βv − h M∇E; θ ← θ + v`` and one step follows ``dθ/dt = −M∇Ẽ`` for the time η, on the slow manifold
    of the momentum. With M = 1 and β = 0 this is ``E + (h/4)‖∇E‖²``. For a constant M the field ``f = −M∇E`` has
    ``f'f = M H M ∇E = M ∇(½⟨∇E, M∇E⟩)``: in the metric of M the correction is a gradient again.

    Args:
      loss: ``params -> scalar`` E; params is any pytree of floating arrays.
      step_size: h > 0, the learning rate, in units of params² per loss (per M).
      momentum: heavy-ball coefficient β in [0, 1); with β = 0 this is plain gradient descent.
      metric: M, a tree like params of nonnegative rates per entry (a frozen preconditioner); if None, M = 1.

    Returns:
      ``params -> Ẽ``; the loss is traced, and has all its derivatives, in what it closes over too. One evaluation costs
      one gradient; its gradient costs one Hessian-vector product more, about three gradients, and keeps what both of
      these do: it is the fast way. Blocks that the loss rematerialises (``jax.checkpoint``) are computed again in
      ``modified_field(gradient_field(loss), h)`` alone, the same vector's negative for M = 1 and β = 0.

    Raises:
      ValueError: step_size is not positive and finite, momentum is outside [0, 1), metric has a negative or non-finite
        entry, or (when evaluated) another tree than params.
      TypeError: a leaf is not floating.

    Source: theory.md, (1.3), (1.4), (1.5); Barrett & Dherin (2021), implicit gradient regularization.
    """
    check_step_size(step_size)
    _check_momentum(momentum)
    if metric is not None:
        _check_metric(metric)
    eta = step_size / (1 - momentum)
    weight = eta * (1 + momentum) / (4 * (1 - momentum))

    def modified(params: Params) -> Array:
        check_params(params)
        if metric is not None:
            check_like(metric, params, what="metric")
        pure, constants = jax.closure_convert(loss, params)
        dtype = jax.eval_shape(pure, params, *constants).dtype
        return _with_steepness(pure, params, number_in(weight, dtype), metric, constants)

    return modified


def _steepness(
    loss: Callable[..., Array], params: Params, weight: Array, metric: Params | None, constants: Any
) -> Array:
    """Return ``E + w ⟨∇E, M∇E⟩``; ``constants`` are the loss's further arguments."""
    value, gradient = jax.value_and_grad(loss)(params, *constants)
    return value + weight * inner(gradient, _moved(gradient, metric)).astype(value.dtype)


def _moved(gradient: Params, metric: Params | None) -> Params:
    return gradient if metric is None else jax.tree.map(jnp.multiply, metric, gradient)


_with_steepness = jax.custom_jvp(_steepness, nondiff_argnums=(0,))
"""``_steepness``, whose derivative in params is ``⟨∇E + 2w H M ∇E, u⟩`` with one Hessian-vector product, forward over
reverse, which shares the gradient's linearisation. JAX's own derivative, reverse over reverse, has as many operations and
takes a quarter longer on a CPU (a T5 of t5-small's size)."""


def _slope_with_steepness(
    loss: Callable[..., Array], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    params, weight, metric, constants = primals
    is_zero = lambda t: isinstance(t, SymbolicZero)
    gradient_of = lambda p: jax.value_and_grad(loss)(p, *constants)
    (value, gradient), derivative = jax.linearize(gradient_of, params)
    moved = _moved(gradient, metric)
    _, turned = derivative(moved)
    total = value + weight * inner(gradient, moved).astype(value.dtype)
    filled = jax.tree.map(
        lambda t, p: jnp.zeros_like(p) if is_zero(t) else t, tangents, primals, is_leaf=lambda t: is_zero(t)
    )
    slope = inner(axpy(2 * weight, turned, gradient), filled[0]).astype(value.dtype)
    if not all(map(is_zero, jax.tree.leaves(tangents[1:], is_leaf=is_zero))):
        rest = lambda *others: _steepness(loss, params, *others)
        slope = slope + jax.jvp(rest, (weight, metric, constants), filled[1:])[1]
    return total, slope


_with_steepness.defjvp(_slope_with_steepness, symbolic_zeros=True)


def log_map(step: Callable[[Params], Params], params: Params, order: int) -> Params:
    r"""Return the modified displacement of a black-box step, from its iterates alone.

    .. math:: h \tilde f(\theta_0) = \sum_{k=1}^{p} \frac{(-1)^{k+1}}{k}\, \Delta^k \theta_0 + O(h^{p+1})

    with forward differences ``Δ^k`` of the iterates ``θ_0, θ_1 = step(θ_0), …``: the logarithm of the shift operator.
    It needs no derivative of the step, and no formula: an independent check of both.

    Args:
      step: one step of any near-identity, autonomous map ``params -> params`` (optimizer step, epoch, pair of phases).
      params: θ_0.
      order: p ≥ 1. The differences cancel: once h^p is of the size of rounding, a higher order adds noise.

    Returns:
      ``h f̃``, a tree like params: the field whose time-ONE flow is the step. Runs p steps.

    Raises:
      ValueError: order is not a positive integer, or the step returns another tree than it was given.
      TypeError: a leaf is not floating.

    Source: theory.md, (1.6).
    """
    if not isinstance(order, int) or isinstance(order, bool) or order < 1:
        raise ValueError(f"order is {order!r}, but has to be a positive integer: it is the number of steps to run")
    advance = checked(step, "step")
    iterates = [params]
    for _ in range(order):
        iterates.append(advance(iterates[-1]))
    differences, terms = iterates, []
    for _ in range(order):
        differences = [subtract(after, before) for before, after in itertools.pairwise(differences)]
        terms.append(differences[0])
    return weighted_sum([(-1.0) ** (k + 1) / k for k in range(1, order + 1)], terms)


def _check_momentum(momentum: Number) -> None:
    if not is_traced(momentum) and not 0 <= float(momentum) < 1:
        raise ValueError(
            f"momentum is {float(momentum)!r}, but the heavy-ball coefficient has to be in [0, 1): "
            "at 1 nothing is damped and there is no slow manifold"
        )


def _check_metric(metric: Params) -> None:
    check_floating(metric, "metric")
    for path, leaf in jax.tree_util.tree_leaves_with_path(metric):
        if is_traced(leaf):
            continue
        entries = np.asarray(leaf, np.float64)
        if entries.size and not (np.isfinite(entries).all() and entries.min() >= 0):
            raise ValueError(
                f"metric{jax.tree_util.keystr(path)} has an entry {float(entries.min())!r}, but rates have to be "
                "nonnegative and finite: pass the preconditioner itself, such as 1 / (sqrt(v) + eps)"
            )
