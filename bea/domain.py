r"""Where a forecast by flows holds: what of discrete training on minibatches the flow leaves out, in three numbers.

One step of descent on a minibatch, :math:`\theta' = \theta - h M (g + \xi)` with noise ξ of covariance Σ, changes the loss by

.. math:: E[\ell(\theta')] - \ell(\theta) = -h\, g^T M g + \tfrac{h^2}{2} g^T M H M g
          + \tfrac{h^2}{2} \mathrm{tr}(M H M \Sigma) + O(h^3)

The flow of ``look_ahead`` has the first two terms, at every power of h on its quadratic models. It leaves out

* the noise, the third one. Its share of what descent takes, ``noise_share``, is 1 where the loss stops falling, however long
  one trains on;
* the edge of stability: where :math:`h \lambda \ge 2` the quadratic model diverges and the network does not, so that the
  models are bounded by hand;
* features that move between two linearisations faster than a quadratic model bends. ``LookAhead.uncertainty`` states it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bea.forecast import LookAhead
from bea.krylov import metric_root
from bea.minibatches import BatchLoss
from bea.pytrees import Number, Params, check_floating, check_step_size, is_traced

LARGEST_NOISE = 0.1  # share of the descent: forecasts were off by half of it (docs/when_to_grow.md, why flows fail)
EDGE = 2.0  # h λ
LARGEST_UNCERTAINTY = (
    0.05  # of the loss: over 18,000 steps a stated 7 % was an error of 39 %, and stated 0.4 % one of 0.8 %
)


class Domain(NamedTuple):
    """Whether a forecast may plan.

    Attributes:
      holds: whether all three numbers are within their limits.
      sharpness, noise, uncertainty: h λ, the share of the noise, the stated uncertainty over the loss.
      reason: one sentence on what is beyond its limit, and what to ask instead.
    """

    holds: bool
    sharpness: float
    noise: float
    uncertainty: float
    reason: str


def noise_share(
    batch_loss: BatchLoss, batches: Any, params: Params, step_size: Number, *, metric: Params | None = None
) -> Array:
    r"""Return what the noise of minibatches adds to the loss in a step, over what descent takes from it.

    .. math:: \frac{\tfrac{h^2}{2}\,\frac1m \sum_k \delta_k^T M H M \delta_k}{h\, g^T M g}, \qquad
              \delta_k = g_k - g, \quad g = \frac1m \sum_k g_k

    with the Hessian H of the mean loss.

    Args:
      batch_loss: ``(params, batch) -> E_k``.
      batches: a tree of arrays whose leading axis counts the m batches.
      params: where a forecast ends, which is where the noise weighs most: ``LookAhead.params``.
      step_size: h.
      metric: M, as ``look_ahead`` takes it.

    Returns:
      The share, at the cost of m gradients of a batch and m products with the Hessian of all of them; it can be jitted.

    Raises:
      ValueError: step_size is not positive and finite, or metric has another tree than params.
      TypeError: a leaf is not floating.

    Source: theory.md, (6.2).
    """
    check_floating(params)
    check_step_size(step_size)
    point, unravel = ravel_pytree(params)
    root = metric_root(metric, params)
    scaled: Callable[[Array, Any], Array] = lambda flat, batch: batch_loss(unravel(point + root * flat), batch)
    slope = lambda flat: jax.lax.map(lambda batch: jax.grad(scaled)(flat, batch), batches)
    mean = lambda flat: jnp.mean(slope(flat), axis=0)
    here = jnp.zeros_like(point)
    slopes = slope(here)
    descent = jnp.mean(slopes, axis=0)
    # jvp of the mean gradient: m batches for each product
    product = lambda vector: jax.jvp(mean, (here,), (vector,))[1]
    added = jnp.mean(jax.lax.map(lambda g: jnp.vdot(g - descent, product(g - descent)), slopes))
    return jnp.asarray(0.5 * step_size, point.dtype) * added / jnp.vdot(descent, descent)


def forecast_domain(ahead: LookAhead, noise: Any = 0.0) -> Domain:
    """Return whether a forecast is within the domain of flows.

    Args:
      ahead: the forecast, its numbers known (not traced).
      noise: ``noise_share`` where it ends; 0 for full batches.

    Raises:
      ValueError: a number is traced.
    """
    if any(map(is_traced, (ahead.loss, ahead.uncertainty, ahead.sharpness, noise))):
        raise ValueError("the forecast is traced, but a domain is a decision: call it outside of jit")
    relative = float(ahead.uncertainty) / max(abs(float(ahead.losses[-1])), 1e-300)
    return domain_of(float(ahead.sharpness), float(noise), relative if math.isfinite(float(ahead.loss)) else math.inf)


def domain_of(sharpness: float, noise: float, uncertainty: float) -> Domain:
    """Return whether forecasts of these three numbers, the largest of several for one decision, are within the domain."""
    found = []
    if not sharpness < EDGE:
        found.append(f"h times the largest curvature is {sharpness:.2f}, at the edge of stability ({EDGE:g})")
    if not noise <= LARGEST_NOISE:
        limit = f"({LARGEST_NOISE:.0%} is the limit)"
        found.append(f"the noise of minibatches gives back {noise:.0%} of what a step takes where it ends {limit}")
    if not uncertainty <= LARGEST_UNCERTAINTY:
        found.append(f"its models missed the loss by {uncertainty:.0%} ({LARGEST_UNCERTAINTY:.0%} is the limit)")
    if not found:
        return Domain(True, sharpness, noise, uncertainty, "The forecast is within the domain of flows.")
    reason = f"No plan from this forecast: {'; '.join(found)}. Ask a law of growth (fit_growth_law, head_start_step) instead."
    return Domain(False, sharpness, noise, uncertainty, reason)
