"""Looking ahead: the loss that a phase ends with, from a dozen linearisations instead of all its steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from bea.krylov import lanczos, metric_root
from bea.pytrees import Loss, Number, Params, check_floating, check_step_size, is_traced


class LookAhead(NamedTuple):
    """The forecast of a phase.

    Attributes:
      loss: at its end.
      uncertainty: of that loss: how far the quadratic models missed the loss where they led, root of the sum of the
        squares over the re-linearisations. Of what re-linearising corrected it counts all, so it is cautious.
      params: at the end, a tree like params.
      times: steps done at every re-linearisation, 0 first and the whole phase last.
      losses: at these times.
      gradients: what the forecast cost, in gradients of the loss (a Gauss-Newton product counts as two).
    """

    loss: Array
    uncertainty: Array
    params: Params
    times: Float[Array, " points"]
    losses: Float[Array, " points"]
    gradients: int

    @property
    def reason(self) -> str:
        """One sentence: how it was obtained and where it is out of its domain."""
        loss, error, steps = float(self.loss), float(self.uncertainty), float(self.times[-1])
        count = len(self.times) - 1
        sentence = (
            f"{steps:.0f} steps from here end at loss {loss:.4g} ± {error:.1g}, by {count} re-linearisations of the flow "
            f"at {self.gradients} gradients"
        )
        if not np.isfinite(loss):
            return sentence + "; the flow blew up: the step size is too large for this point."
        if error > 0.5 * loss:
            return sentence + "; the models missed by half of it or more: it orders growth steps, it is not a loss."
        return sentence + "; it follows ONE batch, so it holds as far as the loss on fresh batches does."


def look_ahead(
    predict: Callable[[Params], Array],
    output_loss: Callable[[Array], Array],
    params: Params,
    *,
    step_size: Number,
    steps: Number,
    metric: Params | None = None,
    evaluate: Loss | None = None,
    relinearisations: int = 12,
    ratio: float = 1.5,
    krylov: int = 16,
) -> LookAhead:
    r"""Forecast of the loss after ``steps`` steps of (preconditioned) gradient descent.

    .. math:: \Theta \leftarrow \Theta - h M^{1/2} q_\tau(h M^{1/2} G M^{1/2}) M^{1/2} g, \qquad
              q_\tau(x) = \frac{1 - (1 - x)^\tau}{x}

    τ steps of descent on the quadratic model of curvature ``G = JᵀH_outJ`` (Gauss-Newton: nonnegative where the loss
    is convex in the outputs, so that nothing explodes) at once, with τ growing by ``ratio`` and g and G taken anew each
    time: an exponential Euler method whose number of steps does not grow with the phase. q is applied by Lanczos,
    started from g.

    Args:
      predict: params -> outputs on the batch, any shape.
      output_loss: outputs -> scalar; ``output_loss(predict(params))`` is the loss that is trained.
      params: Θ now: for growing now, just after the event.
      step_size: h.
      steps: n ≥ 0, how many; may be traced.
      metric: M, a tree like params of rates (block factors, or a frozen preconditioner); None is M = 1.
      evaluate: loss that is reported, of fresh data for an honest forecast; None: the loss itself. ``uncertainty`` and
        the flow are always of the loss itself.
      relinearisations: static.
      ratio: of each τ to the one before.
      krylov: Lanczos vectors a linearisation, static.

    Returns:
      ``LookAhead``; it can be jitted and vmapped.

    Raises:
      ValueError: step_size is not positive and finite, a count is not a positive integer, ratio is below 1, steps is
        negative, or metric has another tree than params.
      TypeError: a leaf is not floating.

    Source: theory.md, section 6; Hochbruck & Ostermann (2010), section 2 for exponential Euler.
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
    root, krylov = metric_root(metric, params), min(krylov, point.size)
    outputs: Callable[[Array], Array] = lambda flat: predict(unravel(flat))
    out_gradient = jax.grad(output_loss)
    h = jnp.asarray(step_size, point.dtype)

    def advance(flat: Array, tau: Array) -> tuple[Array, tuple[Array, Array]]:
        out, forward = jax.linearize(outputs, flat)
        backward = jax.linear_transpose(forward, flat)
        loss, slope = output_loss(out), out_gradient(out)
        curve = lambda v: jax.jvp(out_gradient, (out,), (v,))[1]
        start = root * backward(slope)[0]
        product = lambda v: root * backward(curve(forward(root * v)))[0]
        tridiagonal = lanczos(product, start, krylov)
        values, vectors = tridiagonal.eigh()
        length = jnp.sqrt(jnp.vdot(start, start))
        # in the eigenbasis of T: start is length · weights
        weights = vectors[0]
        moved = h * decayed_steps(h * values, tau) * weights * length
        model = loss - length * jnp.vdot(weights, moved) + 0.5 * jnp.vdot(moved, values * moved)
        return flat - root * ((vectors @ moved) @ tridiagonal.basis), (loss, model)

    times = step_times(steps, relinearisations, ratio, point.dtype)
    end, (losses, models) = jax.lax.scan(advance, point, jnp.diff(times))
    of_end = output_loss(outputs(end))
    misses = jnp.append(losses[1:], of_end) - models
    final = of_end if evaluate is None else evaluate(unravel(end))
    cost = relinearisations * (1 + 2 * krylov) + 1
    return LookAhead(
        jnp.asarray(final),
        jnp.sqrt(jnp.vdot(misses, misses)),
        unravel(end),
        times,
        jnp.append(losses, of_end),
        cost,
    )


def decayed_steps(x: Array, tau: Array) -> Array:
    """``q_τ(x) = (1 − (1 − x)^τ) / x`` for a whole number τ, with ``q_τ(0) = τ``.

    Beyond x = 2 descent diverges on the model, and the loss keeps a network out of there: ``|1 − x|`` counts as 1 at
    most.
    """
    small = jnp.abs(x) < 1e-12
    safe = jnp.where(small, 1.0, x)
    size = jnp.clip(jnp.abs(1 - safe), jnp.finfo(x.dtype).tiny, 1.0)
    sign = jnp.where((safe > 1) & (jnp.mod(tau, 2) == 1), -1.0, 1.0)
    # log1p where 1 − x would round away what is left of a small x
    logarithm = jnp.where(jnp.abs(safe) < 0.5, jnp.log1p(-jnp.clip(safe, -0.5, 0.5)), jnp.log(size))
    logarithm = jnp.minimum(logarithm, 0.0)
    decay = jnp.where(sign > 0, -jnp.expm1(tau * logarithm), 1.0 + jnp.exp(tau * logarithm))
    return jnp.where(small, tau, decay / safe)


def step_times(steps: Number, count: int, ratio: float, dtype: jnp.dtype) -> Float[Array, " points"]:
    """0, then ``count`` whole times at which geometrically growing intervals end, the last at ``steps``."""
    shares = np.concatenate([[0.0], np.cumsum(ratio ** np.arange(count))])
    return jnp.round(jnp.asarray(steps, dtype) * jnp.asarray(shares / shares[-1], dtype))
