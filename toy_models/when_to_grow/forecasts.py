"""Growth now and growth later, forecast from one look: the small networks are followed ahead, and grown on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import bea

Params = Any


class GrowthForecasts(NamedTuple):
    """Forecast final losses of growing now and at some later steps.

    Attributes:
      losses: one for each growth step, growth now first.
      uncertainty: largest stated uncertainty of a grown phase, over its loss.
      sharpness: largest h λ that a grown phase met.
      small_gradients: cost in gradients of one small network, all sources and stretches together.
      grown_gradients: cost in gradients of the grown network.
    """

    losses: Array
    uncertainty: Array
    sharpness: Array
    small_gradients: int
    grown_gradients: int


def forecast_growth(
    loss: Callable[[Params], Array],
    grow: Callable[[tuple[Params, ...]], Params],
    sources: Sequence[Params],
    *,
    step_size: Any,
    factors: Params,
    small_steps: Array,
    grown_steps: Array,
    relinearisations: int = 12,
    **settings: Any,
) -> GrowthForecasts:
    r"""Forecast the final losses of growing now, and after each of several more stretches of training the small networks.

    .. math:: \hat\ell(n) = L\big( F_2^{\,n_2} ( J F_1^{\,n} \theta ) \big)

    with both phases F by ``bea.look_ahead``: the small flow goes on from one stretch's end to the next, so that each is
    followed once, with half as many re-linearisations as a grown phase.

    Args:
      loss: loss of small and of grown params.
      grow: ``sources -> grown params``; J, and what growth adds to it.
      sources: params of the small networks.
      step_size: learning rate of the small networks; the grown one's is this times ``factors``.
      factors: a tree like the grown params.
      small_steps: k stretches, in small steps, each from the growth step before.
      grown_steps: k + 1 numbers of steps that the budget leaves after growing now, and after each stretch.
      relinearisations: number of re-linearisations of each grown phase.
      settings: ``ratio`` and ``krylov`` of every ``look_ahead``.

    Source: theory.md, section 6.
    """
    cost = {"small": 0, "grown": 0}

    def follow(params: Params, steps: Array, count: int, metric: Params | None = None) -> bea.LookAhead:
        return bea.look_ahead(
            loss, params, step_size=step_size, steps=steps, metric=metric, relinearisations=count, **settings
        )

    def grown(small: tuple[Params, ...], steps: Array) -> tuple[Array, Array, Array]:
        ahead = follow(grow(small), steps, relinearisations, factors)
        cost["grown"] = ahead.gradients
        return ahead.loss, ahead.uncertainty / ahead.loss, ahead.sharpness

    def advance(
        small: tuple[Params, ...], case: tuple[Array, Array]
    ) -> tuple[tuple[Params, ...], tuple[Array, Array, Array]]:
        stretch, left = case
        followed = [follow(params, stretch, max(1, relinearisations // 2)) for params in small]
        cost["small"] = sum(one.gradients for one in followed)
        there = tuple(one.params for one in followed)
        return there, grown(there, left)

    here = tuple(sources)
    now = grown(here, grown_steps[0])
    _, later = jax.lax.scan(advance, here, (small_steps, grown_steps[1:]))
    losses, errors, sharpness = (jnp.append(first, rest) for first, rest in zip(now, later, strict=True))
    gradients = cost["small"] * small_steps.size, cost["grown"] * grown_steps.size
    return GrowthForecasts(losses, jnp.max(errors), jnp.max(sharpness), *gradients)
