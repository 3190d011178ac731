"""The costate: the derivative of the loss at the end of the budget in the parameters at the growth event."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bea.phases import Phase
from bea.pytrees import Loss, Params, axpy, check_floating, checked


class Costate(NamedTuple):
    """The end of a phase and its derivative in the start.

    Attributes:
      final_loss: ℓ, the loss after the phase.
      costate: λ = ∂ℓ/∂Θ at the start of the phase, a tree like params.
    """

    final_loss: Array
    costate: Params


def run_phase(phase: Phase, params: Params) -> Params:
    """Return the params after all steps of a phase; differentiable in reverse mode with memory for about 2√n points.

    The steps are run in groups of ⌊√n⌋. Reverse mode keeps the start of every group, and recomputes the points of one
    group at a time: about one run of the phase more.
    """
    field = checked(phase.field)
    group = max(1, int(phase.steps**0.5))
    groups, rest = divmod(phase.steps, group)

    def step(point: Params, _: None) -> tuple[Params, None]:
        return axpy(phase.step_size, field(point), point), None

    def several(length: int) -> Callable[[Params, None], tuple[Params, None]]:
        run: Callable[[Params], Params] = lambda point: jax.lax.scan(step, point, length=length)[0]
        kept = jax.checkpoint(run)
        return lambda point, _: (kept(point), None)

    params = jax.lax.scan(several(group), params, length=groups)[0]
    return several(rest)(params, None)[0] if rest else params


def costate(phase: Phase, loss: Loss, params: Params) -> Costate:
    r"""Return the derivative of the loss after a phase in the params before it, by reverse mode.

    .. math:: \lambda = \frac{\partial\, \ell}{\partial \Theta}, \qquad \ell = L\big( (1 + h f)^n (\Theta) \big)

    Args:
      phase: the grown phase, n steps of size h along f.
      loss: L, of a batch or of held-out data.
      params: Θ at the event.

    Returns:
      ``Costate``; it can be jitted. Costs about 4 evaluations of f a step, and memory for 2√n copies of params.

    Raises:
      TypeError: a leaf is not floating.

    Source: theory.md, (4.3).
    """
    check_floating(params)
    final, slope = jax.value_and_grad(lambda point: loss(run_phase(phase, point)))(params)
    return Costate(jnp.asarray(final), slope)
