"""Exact flows of fields, and the order of accuracy that a formula has against them."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from bea.pytrees import Field, Number, Params, check_params, checked, is_traced


class FlowError(RuntimeError):
    """The solver did not reach the end of the interval."""


def flow(field: Field, params: Params, time: Number, *, rtol: float, atol: float, max_steps: int = 10_000) -> Params:
    r"""Return the exact flow of a field, by an adaptive Runge–Kutta method of order 8 (Dormand–Prince).

    .. math:: \theta(0) = \text{params}, \quad \dot\theta = f(\theta), \quad \text{returns } \theta(\text{time})

    Args:
      field: f; ``params -> velocity``.
      params: start of the flow; any pytree of floating arrays.
      time: length of the flow, in units of step size; if negative, the flow is backwards.
      rtol, atol: tolerated error per solver step, relative and absolute (in units of params). To measure orders of
        accuracy, use float64 and about 1e-12.
      max_steps: largest number of solver steps.

    Returns:
      θ(time), a tree like params. If the solver fails INSIDE jit, where nothing can be raised, every entry is NaN.

    Raises:
      FlowError: the solver fails (the field blows up, is stiff or not finite); the message has the remedy.
      ValueError: time or an entry of params is not finite, a tolerance is not positive, or is finer than the dtype of
        params resolves.
      TypeError: a leaf is not floating.
    """
    check_params(params)
    if not is_traced(time) and not math.isfinite(float(time)):
        raise ValueError(f"time is {float(time)!r}, but a flow needs a finite time")
    dtype = jnp.result_type(*jax.tree.leaves(params))
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise ValueError(f"{name} is {tolerance!r}, but has to be positive and finite: try 1e-6, in float64 1e-12")
    if rtol < jnp.finfo(dtype).eps:
        raise ValueError(
            f"rtol is {rtol!r}, finer than {dtype} resolves ({float(jnp.finfo(dtype).eps):.1e}): raise it, or "
            "compute in float64 (with jax.enable_x64(True): ...)"
        )
    if not is_traced(time) and float(time) == 0:
        return params
    velocity = checked(field)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda _, y, args: velocity(y)),
        diffrax.Dopri8(),
        t0=jnp.zeros((), dtype),
        t1=jnp.asarray(time, dtype),
        dt0=None,
        y0=jax.tree.map(jnp.asarray, params),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        throw=False,
    )
    success = solution.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda y: y[-1], solution.ys)
    if is_traced(success):
        return jax.tree.map(lambda y: jnp.where(success, y, jnp.nan), end)
    if not success:
        raise FlowError(
            f"the flow did not reach time {float(time):g} in {int(solution.stats['num_steps'])} solver steps "
            f"(max_steps {max_steps}, rtol {rtol:g}): the field blows up, is stiff, or is not finite; follow it for a "
            "shorter time, loosen rtol, or raise max_steps"
        )
    return end


@dataclasses.dataclass(frozen=True)
class MeasuredOrder:
    """The straight line fitted to log error against log step size.

    Attributes:
      slope: the order; ``error ≈ C h^slope``.
      residual: root mean square distance of log(error) from the line; 0.1 is about 10 % of an error.
      points: the measured (step size, error) pairs, in the order given.
    """

    slope: float
    residual: float
    points: tuple[tuple[float, float], ...]


def measured_order(
    error_of_step_size: Callable[..., object], step_sizes: Sequence[float] | np.ndarray
) -> MeasuredOrder:
    """Return the order at which an error falls with the step size, by least squares in the logarithms.

    Args:
      error_of_step_size: ``h -> error``, a positive scalar.
      step_sizes: at least three different positive sizes, small enough for the leading term to dominate and large enough
        for the error to exceed rounding.

    Returns:
      A ``MeasuredOrder``: slope, residual and points.

    Raises:
      ValueError: fewer than three different step sizes, one that is not positive and finite, or an error that is zero,
        negative or not finite (named with its step size).
    """
    sizes = [float(h) for h in step_sizes]
    for h in sizes:
        if not (math.isfinite(h) and h > 0):
            raise ValueError(f"step_sizes has {h!r}, but step sizes have to be positive and finite")
    if len(set(sizes)) < 3:
        raise ValueError(
            f"step_sizes has {len(set(sizes))} different sizes {sizes}, but a slope with a residual needs at least 3: "
            "halve the first a few times"
        )
    errors = [float(error_of_step_size(h)) for h in sizes]  # type: ignore[arg-type]
    for h, error in zip(sizes, errors, strict=True):
        if not math.isfinite(error) or error < 0:
            raise ValueError(f"the error at step size {h:g} is {error!r}, not a finite norm: use smaller step sizes")
        if error == 0:
            raise ValueError(
                f"the error at step size {h:g} is 0, which has no logarithm: use larger step sizes, "
                "unless the formula is exact"
            )
    x, y = np.log(sizes), np.log(errors)
    slope, intercept = np.polyfit(x, y, 1)
    residual = float(np.sqrt(np.mean((y - slope * x - intercept) ** 2)))
    return MeasuredOrder(slope=float(slope), residual=residual, points=tuple(zip(sizes, errors, strict=True)))
