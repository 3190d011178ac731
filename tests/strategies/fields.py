"""Hypothesis strategies: polynomial fields with integer coefficients, on which float64 arithmetic is exact."""

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

DIMENSION = 3
small_integers = st.integers(-3, 3)


def integer_arrays(*shape: int):
    size = int(np.prod(shape))
    return st.lists(small_integers, min_size=size, max_size=size).map(lambda v: np.reshape(v, shape).astype(np.float64))


@st.composite
def quadratic_fields(draw):
    """``θ ↦ c + Aθ + B(θ, θ)`` on R³; its repr shows the coefficients."""
    c, A, B = (draw(integer_arrays(*(DIMENSION,) * rank)) for rank in (1, 2, 3))

    def field(theta):
        return jnp.asarray(c) + jnp.asarray(A) @ theta + jnp.einsum("ijk,j,k->i", jnp.asarray(B), theta, theta)

    return field


points = integer_arrays(DIMENSION)
