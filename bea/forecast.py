"""Forecast of the loss at the end of a phase, from a dozen linearisations instead of all its steps."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Float

from bea.growth_law import LARGEST_ERROR
from bea.krylov import lanczos, metric_root
from bea.pytrees import Loss, Number, Params, check_floating, check_step_size, is_traced

Curvature: TypeAlias = Callable[[Params], tuple[Params, Callable[[Params], Params]]]
"""``params -> (gradient, v -> A v)`` with the symmetric matrix A that is, or replaces, the Hessian at params."""


class LookAhead(NamedTuple):
    """The forecast of a phase.

    Attributes:
      loss: loss at its end.
      uncertainty: uncertainty of that loss: root of the sum of the squared relative errors of the quadratic models at their
        steps' ends, times the loss. Each new linearisation corrects part of these errors, so it is an overestimate.
      params: params at the end.
      times: steps done at every re-linearisation, 0 first and the whole phase last.
      losses: losses at these times.
      gradients: cost of the forecast, in gradients of the loss (a product with the curvature counts as two).
      sharpness: h times the largest curvature (with the metric) that Lanczos met at the linearisations: from 2 on descent is
        at the edge of stability. A lower bound, as Ritz values are.
    """

    loss: Array
    uncertainty: Array
    params: Params
    times: Float[Array, " points"]
    losses: Float[Array, " points"]
    gradients: int
    sharpness: Array

    @property
    def holds(self) -> bool:
        """Whether a rule may plan by it: the loss is finite, and its stated uncertainty is at most 10 % of it."""
        return bool(np.isfinite(self.loss) and self.uncertainty <= LARGEST_ERROR * self.loss)

    @property
    def reason(self) -> str:
        """One sentence on how the forecast was obtained and where it does not hold."""
        loss, error, steps = float(self.loss), float(self.uncertainty), float(self.times[-1])
        count = len(self.times) - 1
        sentence = (
            f"{steps:.0f} steps from here end at loss {loss:.4g} ± {error:.1g}, by {count} re-linearisations of the flow "
            f"at {self.gradients} gradients"
        )
        if not np.isfinite(loss):
            return sentence + "; the flow blew up: the step size is too large for this point."
        if error > 0.5 * loss:
            return sentence + "; the models missed by half of it or more: it may order growth steps, it is not a loss."
        return sentence + "; it follows ONE batch, so it holds as far as the loss on fresh batches does."


def hessian(loss: Loss) -> Curvature:
    """Return the Hessian as a curvature: forecasts of second order, for smooth activations."""
    return lambda params: jax.linearize(jax.grad(loss), params)


def gauss_newton(predict: Callable[[Params], Array], output_loss: Callable[[Array], Array]) -> Curvature:
    """Return ``G = JᵀH_outJ`` of ``output_loss(predict(params))`` as a curvature: nonnegative if that is convex in the outputs.

    Forecasts are of first order, since G leaves out the derivative of J; for networks with ReLU, whose Hessian is of
    little use.
    """
    slope = jax.grad(output_loss)

    def at(params: Params) -> tuple[Params, Callable[[Params], Params]]:
        outputs, forward = jax.linearize(predict, params)
        backward = jax.linear_transpose(forward, params)
        curve = lambda vector: jax.jvp(slope, (outputs,), (vector,))[1]
        return backward(slope(outputs))[0], lambda vector: backward(curve(forward(vector)))[0]

    return at


def look_ahead(
    loss: Loss,
    params: Params,
    *,
    step_size: Number,
    steps: Number,
    metric: Params | None = None,
    curvature: Curvature | None = None,
    evaluate: Loss | None = None,
    relinearisations: int = 12,
    ratio: float = 1.5,
    krylov: int = 16,
) -> LookAhead:
    r"""Return a forecast of the loss after ``steps`` steps of (preconditioned) gradient descent.

    .. math:: \Theta \leftarrow \Theta - h M^{1/2} q_\tau(h M^{1/2} A M^{1/2}) M^{1/2} g, \qquad
              q_\tau(x) = \frac{1 - (1 - x)^\tau}{x}

    Each update is τ steps of descent on the quadratic model of curvature A at once; τ grows by ``ratio`` and g and A are
    computed anew each time, so that the number of linearisations does not grow with the phase. With the Hessian for A this
    is the exponential Rosenbrock-Euler method of second order (negative curvature adds half to q at most, since the loss
    bends up again along it), with Gauss-Newton's matrix an exponential Euler method. q is applied by Lanczos, started from
    g. If such a step would raise the loss (far from a minimum the model does not hold over τ steps), the best of it, of the
    same step with |A| for A, and of that with τ/10 is taken.

    Args:
      loss: E, of the batch that the flow follows.
      params: Θ at the start of the phase; to forecast growth, just after the event.
      step_size: h.
      steps: number of steps n ≥ 0; may be traced.
      metric: M, a tree like params of rates (block factors, or a frozen preconditioner), a number or an array a leaf;
        if None, M = 1.
      curvature: function that returns g and A, such as ``gauss_newton(predict, output_loss)``; if None,
        ``hessian(loss)``.
      evaluate: loss that is reported, of fresh data for an unbiased forecast; if None, the loss itself. ``losses`` and the
        uncertainty are always of the loss that is followed.
      relinearisations: number of linearisations; static.
      ratio: ratio of each τ to the one before.
      krylov: number of Lanczos vectors for each linearisation; static.

    Returns:
      ``LookAhead``; it can be jitted and vmapped.

    Raises:
      ValueError: step_size is not positive and finite, a count is not a positive integer, ratio is below 1, steps is
        negative, or metric has another tree than params.
      TypeError: a leaf is not floating.

    Source: theory.md, (6.1); Hochbruck & Ostermann (2010), Exponential integrators, section 2.4.
    """
    check_floating(params)
    check_step_size(step_size)
    for name, count in (("relinearisations", relinearisations), ("krylov", krylov)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} is {count!r}, but has to be a positive whole number")
    if not ratio >= 1:
        raise ValueError(f"ratio is {ratio!r}, but the steps have to grow (1.5), or to be equal (1)")
    if not is_traced(steps) and not float(steps) >= 0:
        raise ValueError(f"steps is {float(steps)!r}, but a phase that ends before it begins has no forecast")
    point, unravel = ravel_pytree(params)
    if point.dtype.itemsize < 4:
        raise ValueError(f"params are of dtype {point.dtype}, too coarse for a forecast: convert them to float32")
    root, krylov = metric_root(metric, params), min(krylov, point.size)
    flatten: Callable[[Params], Array] = lambda tree: ravel_pytree(tree)[0]
    at = hessian(loss) if curvature is None else curvature
    h = jnp.asarray(step_size, point.dtype)

    def advance(flat: Array, tau: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        here = unravel(flat)
        value = loss(here)
        slope, curve = at(here)
        start = root * flatten(slope)
        tridiagonal = lanczos(lambda v: root * flatten(curve(unravel(root * v))), start, krylov)
        values, vectors = tridiagonal.eigh()
        length = jnp.sqrt(jnp.vdot(start, start))
        weights = length * vectors[0]  # of the start in the eigenvectors of T
        # the second try takes the absolute value of the curvature, the third is a tenth as long
        tries = [(h * values, tau), (h * jnp.abs(values), tau), (h * jnp.abs(values), jnp.round(tau / 10))]
        moves = jnp.stack([h * decayed_steps(x, t) * weights for x, t in tries])
        ends = flat - root * ((moves @ vectors.T) @ tridiagonal.basis)
        reached = jnp.stack([loss(unravel(end)) for end in ends])
        reached = jnp.where(jnp.isfinite(reached), reached, jnp.inf)
        chosen = jnp.where(reached[0] <= value, 0, jnp.argmin(reached))
        moved = moves[chosen]
        model = value - jnp.vdot(weights, moved) + 0.5 * jnp.vdot(moved, values * moved)
        return ends[chosen], (value, model, h * values[-1])

    times = step_times(steps, relinearisations, ratio, point.dtype)
    end, (losses, models, sharpness) = jax.lax.scan(advance, point, jnp.diff(times))
    last = unravel(end)
    losses = jnp.append(losses, loss(last))
    misses = losses[1:] - models
    relative = misses / jnp.maximum(jnp.abs(losses[1:]), jnp.finfo(point.dtype).tiny)
    return LookAhead(
        losses[-1] if evaluate is None else evaluate(last),
        jnp.sqrt(jnp.vdot(relative, relative)) * jnp.abs(losses[-1]),
        last,
        times,
        losses,
        relinearisations * (2 + 2 * krylov) + 1,
        jnp.max(sharpness),
    )


def decayed_steps(x: Array, tau: Array) -> Array:
    """Return ``q_τ(x) = (1 − (1 − x)^τ) / x`` for whole τ ≥ 0, with ``q_τ(0) = τ``, bounded outside of [0, 2].

    Beyond x = 2 descent on the model diverges, but a network soon leaves that region: ``|1 − x|`` is bounded by 1. Below
    0 the value is ``τ (1 + ½ min(|x| τ, 1))``.
    """
    positive = jnp.where(x > 0, x, 1.0)
    # log1p, because 1 − x would round a small x away
    near = jnp.log1p(-jnp.clip(positive, 0.0, 0.5))
    far = jnp.log(jnp.clip(jnp.abs(1 - positive), jnp.finfo(x.dtype).tiny, 1.0))
    logarithm = jnp.where(positive < 0.5, near, far)
    alternates = (positive > 1) & (jnp.mod(tau, 2) == 1)
    done = jnp.where(alternates, 1.0 + jnp.exp(tau * logarithm), -jnp.expm1(tau * logarithm))
    return jnp.where(x > 0, done / positive, tau * (1 + 0.5 * jnp.minimum(-x * tau, 1.0)))


def step_times(steps: Number, count: int, ratio: float, dtype: DTypeLike) -> Float[Array, " points"]:
    """Return 0, then ``count`` whole times at which geometrically growing intervals end, the last at ``steps``."""
    shares = np.concatenate([[0.0], np.cumsum(ratio ** np.arange(count))])
    return jnp.round(jnp.asarray(steps, dtype) * jnp.asarray(shares / shares[-1], dtype))
