"""When to grow and how far to step: predictions from the present gradient and curvature."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bea.pytrees import Loss, Number, Params, check_floating, check_like, inner


class QuadraticModel(NamedTuple):
    r"""The loss along a direction u, to second order: ``E(θ + h u) ≈ E(θ) + h ⟨g, u⟩ + ½ h² uᵀHu``.

    Attributes:
      slope: ⟨g, u⟩.
      curvature: uᵀHu.

    Source: theory.md, section 4.
    """

    slope: Array
    curvature: Array

    def decrease(self, step_size: Number | Array = 1.0) -> Array:
        """Return ``−(h ⟨g, u⟩ + ½ h² uᵀHu)``, in units of the loss; positive is a decrease."""
        h = jnp.asarray(step_size, self.slope.dtype)
        return -(h * self.slope + 0.5 * h**2 * self.curvature)

    def best_step_size(self) -> Array:
        r"""Return ``h* = −⟨g, u⟩ / uᵀHu``, where the model is lowest.

        Two cases have no positive finite optimum: the value is 0 if u does not descend (⟨g, u⟩ ≥ 0), else inf if the
        curvature is not positive and the model is unbounded below.
        """
        positive = self.curvature > 0
        best = jnp.where(positive, -self.slope / jnp.where(positive, self.curvature, 1.0), jnp.inf)
        return jnp.where(self.slope < 0, best, jnp.where(jnp.isnan(self.slope), self.slope, 0.0))


def quadratic_model(loss: Loss, params: Params, direction: Params) -> QuadraticModel:
    """Return the quadratic model of a loss along a direction, by one Hessian-vector product.

    Args:
      loss: E; for an unbiased prediction on another batch than the one that the direction was computed from.
      params: θ.
      direction: u, a tree like params.

    Raises:
      ValueError, TypeError: direction is not a tree like params.

    Source: theory.md, (4.1).
    """
    check_floating(params)
    check_like(direction, params, what="direction")
    gradient, product = jax.jvp(jax.grad(loss), (params,), (direction,))
    return QuadraticModel(inner(gradient, direction), inner(direction, product))


def predicted_decrease(loss: Loss, params: Params, displacement: Params) -> Array:
    r"""Return how much one step lowers the loss, to second order in the step.

    .. math:: -\big( \langle g, \Delta \rangle + \tfrac12\, \Delta^T H \Delta \big)
              \approx E(\theta) - E(\theta + \Delta)

    ``displacement`` is the whole update Δ, learning rate and preconditioner included. See ``quadratic_model``.

    Source: theory.md, (4.1).
    """
    return quadratic_model(loss, params, displacement).decrease()


def best_step_size(loss: Loss, params: Params, direction: Params) -> Array:
    r"""Return the step along a direction u that lowers the quadratic model of the loss most, ``h* = −⟨g, u⟩ / uᵀHu``.

    For ``u = −g`` this is ``|g|² / gᵀHg``, the greedy best learning rate; a stable one is below ``2/λ_max`` too.
    If there is no best step it is 0 or inf, see ``QuadraticModel.best_step_size``.

    Source: theory.md, (4.2).
    """
    return quadratic_model(loss, params, direction).best_step_size()


@dataclasses.dataclass(frozen=True)
class GreedyDecision:
    """The greedy rule's decision when to grow.

    Attributes:
      step: the training step; None if it is not within this record.
      reason: one sentence with the numbers that decided.
    """

    step: int | None
    reason: str


def greedy_growth_step(
    steps: Sequence[int] | np.ndarray,
    small_rates: Sequence[float] | np.ndarray,
    grown_rates: Sequence[float] | np.ndarray,
    *,
    window: int = 1,
) -> GreedyDecision:
    """Return the first recorded step at which the grown network is predicted to learn faster per FLOP than the small ones.

    The rule is to grow if ``grown rate ≥ small rate`` and the grown rate is positive, both as medians over the last
    ``window`` records. It uses present rates only, hence "greedy", and tends to grow early (theory.md, sections 4 and 6).

    Args:
      steps: training steps of the records, increasing.
      small_rates, grown_rates: predicted loss decrease per FLOP at these steps, of the small networks and of their
        fusion (``predicted_decrease`` over FLOPs per step).
      window: number of records in the median; rates from single batches are noisy. No decision is before the first full
        window.

    Returns:
      A ``GreedyDecision``, whose step is None if the grown rate never passes.

    Raises:
      ValueError: the records differ in length, are empty, do not increase in step or are not finite, or window is not a
        positive integer.

    Source: theory.md, (4.1).
    """
    records = _checked_records(steps, small_rates, grown_rates)
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(
            f"window is {window!r}, but has to be a positive number of records: 1 takes the rates as they are"
        )
    count = len(records)
    over = f"medians over {window} records" if window > 1 else "single records"
    if count < window:
        return GreedyDecision(None, f"Not within this record: it has {count} records, and a decision needs {window}.")
    small = grown = math.nan
    for last in range(window - 1, count):
        step = records[last][0]
        small, grown = (float(np.median([r[i] for r in records[last - window + 1 : last + 1]])) for i in (1, 2))
        if grown >= small and grown > 0:
            when = "already at the first decision" if last == window - 1 else "for the first time"
            return GreedyDecision(
                step,
                f"Grow at step {step}: there the predicted loss decrease per FLOP of the grown network ({grown:.3g}) "
                f"{when} reaches the small networks' ({small:.3g}; {over}).",
            )
    first, final = records[0][0], records[-1][0]
    return GreedyDecision(
        None,
        f"Not within this record: from step {first} to {final} the predicted loss decrease per FLOP of the grown "
        f"network stays below the small networks' or is not positive "
        f"(at the end {grown:.3g} against {small:.3g}; {over}).",
    )


def _checked_records(steps: object, small: object, grown: object) -> list[tuple[int, float, float]]:
    columns = [np.asarray(column) for column in (steps, small, grown)]
    lengths = [column.shape for column in columns]
    if len(set(lengths)) != 1 or columns[0].ndim != 1 or not columns[0].size:
        raise ValueError(
            f"steps, small_rates and grown_rates have shapes {lengths[0]}, {lengths[1]} and {lengths[2]}, but have "
            "to be equally long, with one record at least: pass one rate of each kind for every recorded step"
        )
    records = [(int(s), float(a), float(b)) for s, a, b in zip(*columns, strict=True)]
    for before, after in itertools.pairwise(records):
        if after[0] <= before[0]:
            raise ValueError(
                f"steps goes from {before[0]} to {after[0]}, but has to increase: sort the records by step"
            )
    for step, *rates in records:
        for name, rate in zip(("small_rates", "grown_rates"), rates, strict=True):
            if not math.isfinite(rate):
                raise ValueError(
                    f"{name} is {rate!r} at step {step}, but rates have to be finite: leave that record out"
                )
    return records
