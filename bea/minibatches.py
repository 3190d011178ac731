"""The term of minibatches in the modified loss, exactly over given batches and estimated from a sample of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bea.pytrees import Number, Params, axpy, check_params, check_step_size, inner, scale, subtract, zeros_like

BatchLoss = Callable[[Params, Any], Any]
"""``(params, batch) -> scalar``."""


def minibatch_modified_loss(batch_loss: BatchLoss, batches: Any, step_size: Number) -> Callable[[Params], Array]:
    r"""Return the loss whose gradient flow an epoch of minibatch descent follows, averaged over the orders of the batches.

    .. math:: \tilde E = E + \frac h4 \|\nabla E\|^2 + \frac h{4m} \sum_{k=1}^m \|\nabla E_k - \nabla E\|^2,
              \qquad E = \frac1m \sum_k E_k

    One epoch visits each of the m batches once (without replacement) with steps of size h, and follows ``−∇Ẽ`` for the
    time m h. Together the two terms are ``(h/4m) Σ_k ‖∇E_k‖²``.

    Args:
      batch_loss: ``(params, batch) -> E_k``.
      batches: all m batches: a tree of arrays whose leading axis counts batches. They are visited one after the other,
        so that memory holds one batch's activations.
      step_size: h > 0, the learning rate.

    Returns:
      ``params -> Ẽ``. One evaluation costs m gradients of a batch; its gradient m Hessian-vector products more.

    Raises:
      ValueError: step_size is not positive and finite, or batches have no common leading axis; when evaluated, an entry
        of params is not finite.
      TypeError: a leaf of params is not floating.

    Source: theory.md, (1.7); Smith, Dherin, Barrett & De (2021).
    """
    check_step_size(step_size)
    count = _count(batches)

    def modified(params: Params) -> Array:
        check_params(params)

        def one(batch: Any) -> Array:
            value, gradient = jax.value_and_grad(batch_loss)(params, batch)
            return value + jnp.asarray(0.25 * step_size, value.dtype) * inner(gradient, gradient).astype(value.dtype)

        return jnp.sum(jax.lax.map(one, batches)) / count

    return modified


class MinibatchTerm(NamedTuple):
    """An estimate of the minibatch term of the modified loss.

    Attributes:
      value: ``(h/4m) Σ_k ‖∇E_k − ∇E‖²``, in units of the loss.
      standard_error: standard error of ``value``, by the jackknife over the sampled batches.
    """

    value: Array
    standard_error: Array


def minibatch_term(
    batch_loss: BatchLoss, batches: Any, params: Params, step_size: Number, *, total: int | None = None
) -> MinibatchTerm:
    r"""Return the minibatch term of the modified loss from a random sample of n batches, without bias.

    .. math:: \frac h{4m} \sum_{k=1}^m \|\nabla E_k - \nabla E\|^2 \approx
              \frac h4 \Big(1 - \frac1m\Big) S^2, \qquad S^2 = \frac1{n-1} \sum_{k=1}^n \|g_k - \bar g\|^2

    (S² estimates the variance with divisor m − 1 of m batches drawn from without replacement.) The standard error is the
    jackknife's, ``h/4 (1 − 1/m) √(1 − n/m) √((n−1)/n Σ (S²_{−k} − mean)²)``: leaving batch k out changes S² by
    ``−n/((n−1)(n−2)) (d_k − d̄)`` with ``d_k = ‖g_k − ḡ‖²``. If the sample is all batches, n = m, the value is exact and
    the error 0.

    Args:
      batch_loss: ``(params, batch) -> E_k``.
      batches: the sample: a tree of arrays whose leading axis counts the n ≥ 3 batches.
      params: θ.
      step_size: h > 0.
      total: number of batches m in an epoch, at least n; if None, 1/m is 0.

    Returns:
      A ``MinibatchTerm``. Costs 2 n gradients of a batch, and memory for two trees, for any n.

    Raises:
      ValueError: fewer than three batches, total below them, step_size not positive and finite, no common leading axis,
        or an entry of params that is not finite.
      TypeError: a leaf of params is not floating.

    Source: theory.md, (1.7); Efron (1982) for the jackknife.
    """
    check_step_size(step_size)
    check_params(params)
    n = _count(batches)
    if n < 3:
        raise ValueError(f"batches holds {n} batches, but a standard error of a variance needs at least 3: pass more")
    if total is not None and total < n:
        raise ValueError(f"total is {total}, below the {n} batches of the sample: it counts the batches of an epoch")
    gradient = jax.grad(batch_loss)
    add = lambda sum_, batch: (axpy(1.0, gradient(params, batch), sum_), None)
    mean = scale(1.0 / n, jax.lax.scan(add, zeros_like(params), batches)[0])

    def distance(batch: Any) -> Array:
        gap = subtract(gradient(params, batch), mean)
        return inner(gap, gap)

    d = jax.lax.map(distance, batches)
    variance = jnp.sum(d) / (n - 1)
    left_out = -n / ((n - 1) * (n - 2)) * (d - jnp.mean(d))
    error = jnp.sqrt((n - 1) / n * jnp.sum(left_out**2))
    share, unseen = (1.0, 1.0) if total is None else (1 - 1 / total, 1 - n / total)
    factor = jnp.asarray(0.25 * step_size * share, variance.dtype)
    return MinibatchTerm(factor * variance, factor * unseen**0.5 * error)


def _count(batches: Any) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    counts = {shape[0] if shape else None for shape in shapes}
    if len(counts) != 1 or None in counts or 0 in counts:
        raise ValueError(
            f"batches has arrays of shapes {shapes}, but their first axes have to agree and count the batches: stack "
            "equal batches with jnp.stack"
        )
    (count,) = counts
    assert count is not None
    return count
