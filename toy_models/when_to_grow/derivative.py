"""The derivative of the final loss in the growth step: predicted with modified and unmodified fields, and measured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import bea
from bea.pytrees import Number
from fusion_core import growth as fc
from toy_models import mlp, teacher

SIZES, SAMPLES = (3, 6, 6, 1), 32
COSTS = (1.0, 2.0)  # a step of both sources, and one of the grown network
TIMES = (4.0, 8.0)  # of the two phases, whatever the step size
LARGEST, HALVINGS = 0.16, 4
NAMES = ("unmodified (order 1)", "modified, order 2", "modified, order 3")


def switching(
    event: bea.GrowthEvent,
    small: bea.Field,
    grown: bea.Field,
    loss: Callable[[Any], jax.Array],
    params: Any,
    *,
    step_size: Any,
    steps: Any,
    most: int,
    costs: tuple[Number, Number],
    order: int = 2,
    offset: Any = None,
) -> bea.Switching:
    """Return ``bea.switching_function`` with a traced number of grown steps: a clock in the params stops the grown field.

    Args:
      event, small, grown, loss, params, costs, order, offset: as ``bea.switching_function`` takes them, the phases as fields.
      step_size: of both phases.
      steps: grown steps that the budget leaves, traced or not.
      most: an upper bound on them, which is what is computed.
    """

    def stopped(state: Any) -> Any:
        alive = jnp.where(state["clock"] < steps - 0.5, 1.0, 0.0)
        velocity = jax.tree.map(lambda v: alive.astype(v.dtype) * v, grown(state["net"]))
        return {"net": velocity, "clock": jnp.full_like(state["clock"], 1 / step_size)}

    clock: Callable[[Any], Any] = lambda net: {"net": net, "clock": jnp.zeros(())}
    clocked = bea.GrowthEvent(
        embed=lambda theta: clock(event.embed(theta)),
        transpose=lambda state: event.transpose(state["net"]),
        pinv=lambda state: event.pinv(state["net"]),
    )
    return bea.switching_function(
        clocked,
        bea.Phase(small, step_size),
        bea.Phase(stopped, step_size, most),
        lambda state: loss(state["net"]),
        params,
        costs=costs,
        order=order,
        offset=None if offset is None else clock(offset),
    )


def compute(largest: float = LARGEST, halvings: int = HALVINGS, seed: int = 3) -> dict[str, Any]:
    r"""Return the relative errors of dℓ/dn₁ at step sizes h, h/2, ..., and their orders, in float64.

    Measured by moving the event by one and two units of equal cost either way (five points: off by O(h⁴)).
    """
    with jax.enable_x64(True):
        task = teacher.teacher_task((SIZES[0], 16, 1), seed=seed, train=SAMPLES, validation=1, dtype=jnp.float64)
        loss, config = mlp.mse_loss(*task.train), fc.MLPConfig(SIZES)
        mapping = fc.fusion_map([config, config])
        start = tuple(mlp.init(SIZES, seed=seed + i, dtype=jnp.float64) for i in range(2))
        event = bea.GrowthEvent.from_linear(mapping.embed, start)
        factors = fc.rate_factors(start[0], config, 2, "sgd")
        descent = bea.gradient_field(loss)
        small = lambda sources: tuple(descent(p) for p in sources)
        grown = lambda params: jax.tree.map(lambda f, v: f * v, factors, descent(params))

        def run(field: Any, params: Any, steps: Any, h: Any) -> Any:
            step = lambda _, p: jax.tree.map(lambda a, v: a + h * v, p, field(p))
            return jax.lax.fori_loop(0, steps, step, params)

        final = jax.jit(lambda n1, n2, h: loss(run(grown, event.embed(run(small, start, n1, h)), n2, h)))

        most = round(TIMES[1] / largest * 2**halvings)

        @jax.jit
        def predicted(n1: Any, n2: Any, h: Any) -> list[bea.Switching]:
            here = run(small, start, n1, h)
            by_order = functools.partial(
                switching, event, small, grown, loss, here, step_size=h, steps=n2, most=most, costs=COSTS
            )
            return [by_order(order=order)._replace(order=0) for order in (1, 2, 3)]

        rows = []
        for k in range(halvings + 1):
            h = largest / 2**k
            n1, n2 = round(TIMES[0] / h), round(TIMES[1] / h)
            ends = {m: float(final(n1 + 2 * m, n2 - m, h)) for m in (-2, -1, 1, 2)}
            measured = (8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / 12 / 2
            found = predicted(n1, n2, h)
            errors = [abs(float(p.derivative) / measured - 1) for p in found]
            claimed = [float(p.uncertainty / abs(p.value)) for p in found]
            rows.append({"step_size": h, "measured": measured, "errors": errors, "claimed": claimed})
    orders = {}
    for i, name in enumerate(NAMES):
        by_size = {row["step_size"]: row["errors"][i] for row in rows}
        order = bea.measured_order(by_size.__getitem__, list(by_size))
        orders[name] = {"slope": order.slope, "residual": order.residual}
    return {"rows": rows, "orders": orders}
