"""Small smooth problems, shared by the tests: two losses on a tanh network, cubic fields, quadratics.

Build them inside a test that computes in float64 (the ``x64`` fixtures): arrays take the precision of the moment.
"""

import jax
import jax.numpy as jnp
import numpy as np


def array(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape))


def tanh_network(seed: int = 0):
    """A tanh network ``2 → 3 → 1`` as a nested dict."""
    rng = np.random.default_rng(seed)
    return {
        "hidden": {"weight": array(rng, 3, 2), "bias": 0.3 * array(rng, 3)},
        "out": {"weight": array(rng, 1, 3), "bias": 0.3 * array(rng, 1)},
    }


def tanh_loss(seed: int):
    """Mean squared error of the network on 5 random samples; each seed is another task."""
    rng = np.random.default_rng(100 + seed)
    x, y = array(rng, 5, 2), array(rng, 5, 1)

    def loss(params):
        hidden = jnp.tanh(x @ params["hidden"]["weight"].T + params["hidden"]["bias"])
        return jnp.mean((hidden @ params["out"]["weight"].T + params["out"]["bias"] - y) ** 2)

    return loss


def cubic_field(seed: int = 0):
    """A field on {"a": (2,), "b": ()} that is not a gradient, with constant to cubic terms."""
    rng = np.random.default_rng(200 + seed)
    c, A, B, C = (array(rng, *(3,) * rank) * 0.5**rank for rank in (1, 2, 3, 4))

    def field(params):
        z = jnp.concatenate([params["a"], params["b"][None]])
        v = c + A @ z + jnp.einsum("ijk,j,k->i", B, z, z) + jnp.einsum("ijkl,j,k,l->i", C, z, z, z)
        return {"a": v[:2], "b": v[2]}

    return field


def cubic_point():
    return {"a": jnp.asarray([0.4, -0.7]), "b": jnp.asarray(0.9)}


def quadratic(dimension: int, seed: int = 0):
    """A positive definite Hessian with spectrum in [0.5, 2], and a point."""
    rng = np.random.default_rng(300 + seed)
    basis = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    hessian = jnp.asarray(basis @ np.diag(np.linspace(0.5, 2.0, dimension)) @ basis.T)
    return hessian, array(rng, dimension)


def modified_hessian(hessian, step_size):
    """``−log(1 − hH)/h``: the Hessian of the loss whose gradient flow descent on a quadratic follows exactly."""
    values, basis = jnp.linalg.eigh(hessian)
    return (basis * (-jnp.log1p(-step_size * values) / step_size)) @ basis.T
