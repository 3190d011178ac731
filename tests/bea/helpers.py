"""What the tests of bea share: errors between trees, slopes, exact flows."""

import jax
import jax.numpy as jnp

import bea
from bea.pytrees import norm, subtract

EXACT = {"rtol": 1e-13, "atol": 1e-14}


def distance(x, y):
    return norm(subtract(x, y))


def slope(error, largest: float = 0.08, halvings: int = 4) -> float:
    """The order of ``h -> error``, jitted once, over h halved a few times."""
    jitted = jax.jit(error)
    return bea.measured_order(jitted, [largest / 2**k for k in range(halvings + 1)]).slope


def slopes(errors, largest: float = 0.08, halvings: int = 4) -> dict[str, float]:
    """The orders of ``h -> {formula: error}``, in one compilation."""
    jitted = jax.jit(errors)
    table = {h: jitted(h) for h in (largest / 2**k for k in range(halvings + 1))}
    names = next(iter(table.values()))
    return {name: bea.measured_order(lambda h, name=name: table[h][name], list(table)).slope for name in names}


def euler(field, params, h, steps=1):
    for _ in range(steps):
        params = jax.tree.map(lambda p, v: p + jnp.asarray(h) * v, params, field(params))
    return params
