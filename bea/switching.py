"""The switching function, the change of the final loss with a later growth, and the best growth step."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from bea.costates import costate
from bea.growth import GrowthEvent
from bea.modified import modified_field
from bea.phases import Phase
from bea.pytrees import Loss, Number, Params, axpy, check_positive, inner

ORDERS = (1, 2, 3)


class Switching(NamedTuple):
    r"""The switching function at one growth step, with its parts.

    Attributes:
      value: S, the change of the final loss per FLOP by growing later; if negative, growing later is better.
      uncertainty: uncertainty of S: the sum of the sizes of the first terms of the modified fields that were left out (of
        the last ones kept, for order 3).
      derivative: dℓ/dn₁ = c₁ S, per small step.
      final_loss: final loss ℓ of growing at this step.
      order: order of the modified fields.
    """

    value: Array
    uncertainty: Array
    derivative: Array
    final_loss: Array
    order: int

    @property
    def reason(self) -> str:
        """One sentence on how the value was obtained and where it does not hold."""
        value, error = float(self.value), float(self.uncertainty)
        says = "a later growth ends lower" if value < 0 else "a later growth ends higher"
        kind = "unmodified fields" if self.order == 1 else f"modified fields of order {self.order}"
        sentence = (
            f"S = {value:.3g} ± {error:.1g} per FLOP ({says}), by reverse mode through the grown phase and {kind}"
        )
        if abs(value) <= error:
            return sentence + "; its sign is not resolved: take a higher order, or a smaller step size."
        return sentence + "; it holds for this run and its batches, and for fields smooth over a step."


def switching_function(
    event: GrowthEvent,
    small: Phase,
    grown: Phase,
    loss: Loss,
    small_params: Params,
    *,
    costs: tuple[Number, Number],
    order: int = 2,
    offset: Params | None = None,
) -> Switching:
    r"""Return Pontryagin's switching function of the growth step, at a fixed budget ``n₁ c₁ + n₂ c₂``.

    .. math:: S = \frac{\langle \lambda, h_1 J \tilde f_1(\theta) \rangle}{c_1}
                - \frac{\langle \lambda, h_2 \tilde f_2(J\theta) \rangle}{c_2}, \qquad
              \frac{d\ell}{dn_1} = c_1 S

    Args:
      event: J.
      small: f₁ on the small space and h₁; its number of steps does not matter.
      grown: f₂, h₂, and the n₂ steps that the budget leaves.
      loss: loss at the end, on the grown space.
      small_params: θ at the event, after n₁ steps.
      costs: (c₁, c₂), FLOPs of one step of the whole small phase (all sources) and of the grown one.
      offset: constant that growth adds to Jθ, such as the noise that breaks symmetry; if None, zero.
      order: order of the modified fields: S has the error O(h) with order 1 (the bare fields), O(h²) with 2, O(h³) with 3.

    Returns:
      ``Switching``; it can be jitted. Costs ``costate`` of the grown phase, and less than 20 gradients for the fields.

    Raises:
      ValueError: a cost is not positive and finite, or order is not 1, 2 or 3.

    Source: theory.md, (4.3).
    """
    c1, c2 = costs
    for value, name in ((c1, "costs[0]"), (c2, "costs[1]")):
        check_positive(value, name, "pass the FLOPs of one step of the small phase and of one of the grown phase")
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, but the switching function takes modified fields of order 1, 2 or 3")
    params = event.embed(small_params)
    if offset is not None:
        params = axpy(1.0, offset, params)
    final_loss, slope = costate(grown, loss, params)
    pulled = event.transpose(slope)  # ⟨λ, J f⟩ = ⟨Jᵀλ, f⟩

    def terms(p: int) -> tuple[Array, Array]:
        first = inner(pulled, modified_field(small.field, small.step_size, order=p)(small_params))
        second = inner(slope, modified_field(grown.field, grown.step_size, order=p)(params))
        return jnp.asarray(small.step_size / c1) * first, jnp.asarray(grown.step_size / c2) * second

    first, second = terms(order)
    other = terms(order + 1 if order < max(ORDERS) else order - 1)
    value = first - second
    # term by term: the two may cancel at one growth step and not at the next
    uncertainty = jnp.abs(first - other[0]) + jnp.abs(second - other[1])
    return Switching(value, uncertainty, jnp.asarray(c1, value.dtype) * value, final_loss, order)


@dataclasses.dataclass(frozen=True)
class OptimalGrowth:
    """The growth step with the lowest final loss.

    Attributes:
      step: the small step to grow at; None if it is not within this budget.
      bracket: the neighbouring evaluated steps between which the optimum lies.
      final_loss: interpolated final loss of growing at that step.
      evaluated: (step, final loss, derivative) of all evaluations, by step.
      reason: one sentence with the numbers.
    """

    step: int | None
    bracket: tuple[int, int]
    final_loss: float
    evaluated: tuple[tuple[int, float, float], ...]
    reason: str


def optimal_growth_step(
    evaluate: Callable[[int], Switching],
    last_step: int,
    *,
    evaluations: int = 8,
    start: Sequence[float] = (0.0, 0.1, 0.3, 0.6, 1.0),
) -> OptimalGrowth:
    """Return the root of the switching function at which the final loss is lowest.

    Every evaluation gives the final loss and its slope in the growth step, so between the steps evaluated the curve is
    a cubic. The next evaluation is at the cubics' minimum; S = 0 there unless it is an end of the run. (A plain
    search for a root of S would stop at the first of several.)

    Args:
      evaluate: ``n₁ -> Switching`` for ``0 ≤ n₁ ≤ last_step``, the small phase having been run that far.
      last_step: largest growth step, at which the grown network has no steps left, or as few as are of interest.
      evaluations: number of evaluations of the switching function.
      start: shares of last_step that are evaluated first, 0 and 1 among them.

    Raises:
      ValueError: last_step is not a positive integer, there are fewer evaluations than starts, start lacks an end, or an
        evaluation is not finite.

    Source: theory.md, (4.3).
    """
    if not isinstance(last_step, int) or isinstance(last_step, bool) or last_step < 1:
        raise ValueError(f"last_step is {last_step!r}, but has to be a positive number of small steps")
    shares = sorted(set(start))
    if not shares or shares[0] != 0 or shares[-1] != 1:
        raise ValueError(f"start is {tuple(start)}, but has to hold the ends 0 and 1 of the run")
    if evaluations < len(shares):
        raise ValueError(f"{evaluations} evaluations do not reach for the {len(shares)} starts: raise evaluations")
    known: dict[int, tuple[float, float]] = {}

    def add(step: int) -> None:
        found = evaluate(step)
        loss, slope = float(found.final_loss), float(found.derivative)
        if not np.isfinite([loss, slope]).all():
            raise ValueError(f"growing at step {step} ends at loss {loss} with slope {slope}: that run diverged")
        known[step] = loss, slope

    for share in shares:
        step = round(share * last_step)
        if step not in known:
            add(step)
    while len(known) < evaluations:
        step, _ = _lowest(known)
        if step in known:
            break
        add(step)
    step, loss = _lowest(known)
    steps = sorted(known)
    below, above = (
        max((s for s in steps if s < step), default=0),
        min((s for s in steps if s > step), default=last_step),
    )
    how = f"{len(known)} evaluations of the switching function"
    evaluated = tuple((s, *known[s]) for s in steps)
    if step == last_step:
        reason = f"Not within this budget: the final loss still falls towards growing last ({loss:.4g}; {how})."
        return OptimalGrowth(None, (below, above), loss, evaluated, reason)
    reason = (
        f"Grow at step {step}, between {below} and {above}, to end at {loss:.4g} ({how}; for this run and its data)."
    )
    return OptimalGrowth(step, (below, above), loss, evaluated, reason)


def _lowest(known: dict[int, tuple[float, float]]) -> tuple[int, float]:
    """Return the minimum, on whole steps, of the piecewise cubic through losses and slopes: (step, loss)."""
    steps = sorted(known)
    best = min(steps, key=lambda s: known[s][0])
    lowest = (best, known[best][0])
    for a, b in itertools.pairwise(steps):
        inside = np.unique(np.linspace(a, b, 65).round().astype(int))
        values = _cubic(a, b, known, inside)
        i = int(values.argmin())
        if values[i] < lowest[1]:
            lowest = int(inside[i]), float(values[i])
    return lowest


def _cubic(a: int, b: int, known: dict[int, tuple[float, float]], at: np.ndarray) -> np.ndarray:
    """Return Hermite's cubic on [a, b]."""
    (y0, d0), (y1, d1), width = known[a], known[b], b - a
    t = (at - a) / width
    h00, h10 = (1 + 2 * t) * (1 - t) ** 2, t * (1 - t) ** 2
    h01, h11 = t * t * (3 - 2 * t), t * t * (t - 1)
    return h00 * y0 + h10 * width * d0 + h01 * y1 + h11 * width * d1
