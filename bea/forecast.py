"""Growth now and growth later, forecast from one look: the small networks are followed ahead, and grown on the way."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bea.look_ahead import look_ahead
from bea.pytrees import Loss, Number, Params


class GrowthForecast(NamedTuple):
    """What one look says of growing now and at some later steps.

    Attributes:
      after: small steps from now to each growth, 0 first.
      losses: forecast final losses, growth now first.
      uncertainties: of these, those of the grown phases (``LookAhead.uncertainty``); the small phases' are not in them.
      small_gradients: cost, in gradients of one small network (all sources and segments together).
      grown_gradients: cost, in gradients of the grown network.
    """

    after: Array
    losses: Array
    uncertainties: Array
    small_gradients: int
    grown_gradients: int

    @property
    def reason(self) -> str:
        """One sentence: the lowest forecast against growing now, what it cost, and where it is out of its domain."""
        best = int(jnp.argmin(self.losses))
        say = lambda i: f"{float(self.losses[i]):.4g} ± {float(self.uncertainties[i]):.1g}"
        cost = f"{self.small_gradients} small and {self.grown_gradients} grown gradients"
        domain = "it follows ONE batch, smooth activations and step sizes below the edge of stability"
        if not bool(jnp.isfinite(self.losses).all()):
            return f"A forecast is not finite: the step size is too large for this point ({cost})."
        if best == 0:
            later = min(range(1, len(self.losses)), key=lambda i: float(self.losses[i]))
            lowest = (
                f"no later growth looked at is below (the lowest {say(later)}, {float(self.after[later]):.0f} steps on)"
            )
        else:
            lowest = f"growing {float(self.after[best]):.0f} small steps later at {say(best)}"
        return f"Growing now is forecast to end at {say(0)}, {lowest}; by {cost}; {domain}."


def forecast_growth(
    small_losses: Sequence[Loss],
    grown_loss: Loss,
    sources: Sequence[Params],
    grow: Callable[[tuple[Params, ...]], Params],
    *,
    step_sizes: tuple[Number, Number],
    small_steps: Any,
    grown_steps: Any,
    metrics: tuple[Sequence[Params] | None, Params | None] = (None, None),
    evaluate: Loss | None = None,
    small_relinearisations: int | None = None,
    relinearisations: int = 12,
    **settings: Any,
) -> GrowthForecast:
    r"""Forecast final losses of growing now, and after each of several more stretches of training the small networks.

    .. math:: \hat\ell(n) = L\big( F_2^{\,n_2} ( J F_1^{\,n} \theta ) \big)

    with both phases F by ``look_ahead``: the small flow goes on from one stretch's end to the next, so that each is
    followed once.

    Args:
      small_losses, sources: one loss and params each.
      grown_loss: of the grown network.
      grow: ``sources -> grown params``; J, and what growth adds to it.
      step_sizes: (h₁, h₂).
      small_steps: an array of k stretches, in small steps, each from the growth step before.
      grown_steps: k + 1 numbers: the grown steps that the budget leaves after growing now, and after each stretch.
      metrics: of ``look_ahead``: one per source, or None, and the grown network's.
      evaluate: the grown loss that is reported, of fresh data; None is ``grown_loss``.
      small_relinearisations: of each stretch of a small network; None is half of ``relinearisations``.
      relinearisations: of each grown phase.
      settings: ``ratio`` and ``krylov`` of every ``look_ahead``.

    Raises:
      ValueError: the lengths do not fit each other, or what ``look_ahead`` raises.

    Source: theory.md, section 6.
    """
    segments, left = jnp.asarray(small_steps), jnp.asarray(grown_steps)
    if segments.ndim != 1 or left.shape != (segments.size + 1,):
        raise ValueError(
            f"small_steps and grown_steps have shapes {segments.shape} and {left.shape}, but are k stretches and k + 1 rests"
        )
    if not sources or len(small_losses) != len(sources):
        raise ValueError(f"there are {len(sources)} sources and {len(small_losses)} losses: pass one loss for each")
    small_metrics = metrics[0] if metrics[0] is not None else [None] * len(sources)
    if len(small_metrics) != len(sources):
        raise ValueError(
            f"there are {len(sources)} sources and {len(small_metrics)} metrics: pass one for each, or None"
        )
    if small_relinearisations is None:
        small_relinearisations = max(1, relinearisations // 2)
    small_settings = settings | {"relinearisations": small_relinearisations}
    grown_settings = settings | {"relinearisations": relinearisations}
    cost = {"small": 0, "grown": 0}

    def grown(small: tuple[Params, ...], steps: Array) -> tuple[Array, Array]:
        ahead = look_ahead(
            grown_loss,
            grow(small),
            step_size=step_sizes[1],
            steps=steps,
            metric=metrics[1],
            evaluate=evaluate,
            **grown_settings,
        )
        cost["grown"] = ahead.gradients
        return ahead.loss, ahead.uncertainty

    def advance(small: tuple[Params, ...], case: tuple[Array, Array]) -> tuple[tuple[Params, ...], tuple[Array, Array]]:
        stretch, steps = case
        followed = [
            look_ahead(loss, p, step_size=step_sizes[0], steps=stretch, metric=metric, **small_settings)
            for loss, p, metric in zip(small_losses, small, small_metrics, strict=True)
        ]
        cost["small"] = sum(one.gradients for one in followed)
        there = tuple(one.params for one in followed)
        return there, grown(there, steps)

    here = tuple(sources)
    now = grown(here, left[0])
    _, later = jax.lax.scan(advance, here, (segments, left[1:]))
    losses, uncertainties = (jnp.append(a, b) for a, b in zip(now, later, strict=True))
    after = jnp.append(0, jnp.cumsum(segments))
    return GrowthForecast(after, losses, uncertainties, cost["small"] * segments.size, cost["grown"] * left.size)
