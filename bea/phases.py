"""Several phases of training in a row, as the flow of one field."""

import dataclasses
import math
from collections.abc import Sequence

from bea.differentials import Differentials
from bea.fields import directional_derivative
from bea.pytrees import Field, Number, Params, axpy, check_step_size, checked, weighted_sum, zeros_like
from bea.symbolic.equation import modified_equation, with_symmetry
from bea.symbolic.methods import Step
from bea.trees import Tree


@dataclasses.dataclass(frozen=True)
class Phase:
    """``steps`` Euler steps of one size along one field: ``θ ↦ θ + h f(θ)``, n times.

    Attributes:
      field: f; ``params -> velocity``.
      step_size: h > 0, the learning rate.
      steps: number of steps n ≥ 1.

    Raises:
      TypeError: field cannot be called.
      ValueError: step_size is not positive and finite, or steps is not a positive integer.
    """

    field: Field
    step_size: Number
    steps: int = 1

    def __post_init__(self) -> None:
        if not callable(self.field):
            raise TypeError(
                f"field is {self.field!r}: pass a function params -> velocity, such as gradient_field(loss)"
            )
        check_step_size(self.step_size)
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}, but a phase has a positive whole number of steps: leave it out")

    @property
    def duration(self) -> Number:
        """T = n h, the time that the phase takes in units of its step size."""
        return self.steps * self.step_size


def compose(phases: Sequence[Phase], order: int = 2) -> Field:
    r"""Return the field whose time-ONE flow equals the phases, one after the other.

    .. math:: F = \sum_i T_i f_i - \frac12 \sum_i n_i h_i^2 f_i'f_i + \frac12 \sum_{i<j} T_i T_j [f_i, f_j] + O(T^3),
              \qquad T_i = n_i h_i

    The first sum is order 1; the self terms (the effect of discretisation) and the conflict terms (the effect of the
    phases' order) are order 2. Order 3 adds all elementary differentials of three nodes, coloured by the phases, with the
    exact coefficients of ``bea.symbolic.modified_equation``: for two phases the sum of ``1/12 [X, [X, Y]] + 1/12 [Y, [Y,
    X]]`` and the second-order terms of X and Y. ``compose([phase])`` has the self term alone. The expansion is in the total
    time: it holds for a few steps around an event, not for long phases, which follow ``modified_field`` one after the other.

    Args:
      phases: at least one, in the order in which they are run; all on the same space.
      order: p ≥ 1: F is exact through this order of the total time.

    Returns:
      ``params -> F``, a displacement (the step sizes are inside); it can be jitted. One evaluation costs one
      evaluation of each field, and with order 2 one directional derivative of each: the terms are gathered by the field
      differentiated,

      .. math:: F = \sum_i T_i f_i + \frac12 \sum_i f_i' \Big[ T_i \Big(\sum_{j<i} T_j f_j - \sum_{j>i} T_j f_j\Big)
                - n_i h_i^2 f_i \Big].

      Order 3 costs about k² first and k² second derivatives for k phases, higher orders a power of k more each.

    Raises:
      ValueError: there is no phase, order is not a positive integer, or so high that there would be too many terms.

    Source: theory.md, (2.1); Baker–Campbell–Hausdorff on the modified fields; Dherin (2023) for the conflict term.
    """
    phases = tuple(phases)
    if not phases:
        raise ValueError("phases is empty: pass at least one Phase(field, step_size)")
    if not isinstance(order, int) or isinstance(order, bool) or order < 1:
        raise ValueError(
            f"order is {order!r}, but has to be a positive integer, the highest power of the total time that is right: "
            "2 has the conflict terms"
        )
    if order > 2:
        return _by_trees(phases, order)
    fields = [checked(phase.field, f"the field of phase {i}") for i, phase in enumerate(phases)]
    durations = [phase.duration for phase in phases]

    def composite(params: Params) -> Params:
        velocities = [field(params) for field in fields]
        total = weighted_sum(durations, velocities)
        if order == 1:
            return total
        before, after = zeros_like(params), total
        for phase, field, duration, velocity in zip(phases, fields, durations, velocities, strict=True):
            after = axpy(-1.0 * duration, velocity, after)
            others = weighted_sum([0.5 * duration, -0.5 * duration], [before, after])
            direction = axpy(-0.5 * duration * phase.step_size, velocity, others)
            total = axpy(1.0, directional_derivative(field, params, direction), total)
            before = axpy(duration, velocity, before)
        return total

    return composite


def _by_trees(phases: tuple[Phase, ...], order: int) -> Field:
    steps = [Step("euler", field=colour, steps=phase.steps) for colour, phase in enumerate(phases)]
    coefficients = with_symmetry(modified_equation(steps, order))
    weights: dict[Tree, Number] = {}
    for tree, coefficient in coefficients.items():
        if coefficient:
            weights[tree] = math.prod((phases[c].step_size for c in tree.colours), start=float(coefficient))
    fields = [phase.field for phase in phases]
    return lambda params: Differentials(fields, params, names="the field of phase {}").combination(weights)
