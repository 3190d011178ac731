"""The product of activations and a weight matrix, ``x wᵀ``, and three ways to its gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Product = Callable[[Array, Array], Array]  # (activations [..., in], weights [out, in]) -> [..., out]


def product(x: Float[Array, "... in"], weight: Float[Array, "out in"]) -> Float[Array, "... out"]:
    """Return ``x wᵀ``; for bf16 activations and a float32 weight with bf16 factors and a float32 sum."""
    return x @ weight.T if x.dtype == weight.dtype else _half_product(x, weight)


def weight_gradient(x: Array, cotangent: Array, dtype: jnp.dtype) -> Array:
    """Return ``cotangentᵀ x``, summed over all leading axes: [out, in].

    On a CPU XLA first transposes the left factor, element by element, which takes up to half of the product's time. If
    it is cheaper, the smaller factor is put left and the result, ``xᵀ cotangent``, is transposed instead.
    """
    left, right = cotangent.reshape(-1, cotangent.shape[-1]), x.reshape(-1, x.shape[-1])
    (n, outputs), inputs = left.shape, right.shape[1]
    summed_rows = (((0,), (0,)), ((), ()))
    if jax.default_backend() == "cpu" and n * outputs > n * inputs + outputs * inputs:
        swapped = jax.lax.dot_general(right, left, summed_rows, preferred_element_type=dtype)
        # without the barrier XLA would turn the transposed product back into the other one
        return jax.lax.optimization_barrier(swapped).T
    return jax.lax.dot_general(left, right, summed_rows, preferred_element_type=dtype)


@jax.custom_vjp
def reverse_product(x: Float[Array, "... in"], weight: Float[Array, "out in"]) -> Float[Array, "... out"]:
    """Return ``product``, with ``weight_gradient`` as the gradient of the weight; JAX has no forward mode of it.

    Forward over reverse (a Hessian-vector product) works; ``jax.jvp`` of it, and so Gauss-Newton products, do not.
    """
    return product(x, weight)


@jax.custom_vjp
def _half_product(x: Array, weight: Array) -> Array:
    # JAX's own gradient would multiply by the float32 cotangent, at a fraction of a GPU's speed; so this one has a
    # gradient of its own, in reverse mode only
    return jnp.einsum("...i,oi->...o", x, weight.astype(x.dtype), preferred_element_type=jnp.float32)


def _keep(multiply: Product) -> Callable[[Array, Array], tuple[Array, tuple[Array, Array]]]:
    return lambda x, weight: (multiply(x, weight), (x, weight))


def _backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, weight = kept
    narrow = cotangent.astype(x.dtype)
    return narrow @ weight.astype(x.dtype), weight_gradient(x, narrow, weight.dtype)


reverse_product.defvjp(_keep(product), _backward)
_half_product.defvjp(_keep(_half_product), _backward)
