"""A multi-layer perceptron as a plain dict of arrays, its losses, and what a gradient step costs.

Parameters are ``{"layers": [{"weight": (out, in), "bias": (out,)}, ...]}``: PyTorch's orientation, the layout that
``fusion_core.fuse`` takes.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

Params = dict[str, list[dict[str, Array]]]
Activation = Callable[[Array], Array]
Loss = Callable[[Params], Float[Array, ""]]

ACTIVATIONS: dict[str, Activation] = {"tanh": jnp.tanh, "gelu": jax.nn.gelu, "relu": jax.nn.relu}


def init(sizes: Sequence[int], *, seed: int, dtype: DTypeLike = jnp.float32) -> Params:
    """Return random parameters: weights of variance 1 / fan-in, biases zero.

    Args:
      sizes: widths (in, hidden, ..., out), two at least.
      seed: seed of the draw; equal seeds give equal networks in every dtype, up to rounding.
      dtype: float64 needs ``jax.enable_x64``.

    Raises:
      ValueError: fewer than two sizes, or one that is not positive.
    """
    sizes = tuple(sizes)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"sizes is {sizes}, but a network needs an input and an output width, all positive: (2, 16, 1)"
        )
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    layers = []
    for key, n_in, n_out in zip(keys, sizes[:-1], sizes[1:], strict=True):
        weight = jax.random.normal(key, (n_out, n_in), jnp.float32) / n_in**0.5
        layers.append({"weight": weight.astype(dtype), "bias": jnp.zeros(n_out, dtype)})
    return {"layers": layers}


def forward(
    params: Params, inputs: Float[Array, "batch in"], activation: Activation = jnp.tanh
) -> Float[Array, "batch out"]:
    """Return the network's outputs: affine layers with ``activation`` between them (none after the last)."""
    *hidden, last = params["layers"]
    x = inputs
    for layer in hidden:
        x = activation(x @ layer["weight"].T + layer["bias"])
    return x @ last["weight"].T + last["bias"]


def mse_loss(
    inputs: Float[Array, "batch in"], targets: Float[Array, "targets out"], activation: Activation = jnp.tanh
) -> Callable[[Params], Float[Array, ""]]:
    """Return ``params -> mean (output − target)²``, the mean over samples and outputs. Convex in the outputs.

    Raises:
      ValueError: inputs and targets have different numbers of samples.
    """
    _check_samples(inputs, targets)
    return lambda params: jnp.mean((forward(params, inputs, activation) - targets) ** 2)


def softmax_loss(
    inputs: Float[Array, "batch in"], labels: Int[Array, " labels"], activation: Activation = jnp.tanh
) -> Callable[[Params], Float[Array, ""]]:
    """Return ``params -> mean −log softmax(output)[label]`` in nats. Convex in the outputs.

    Raises:
      ValueError: inputs and labels have different numbers of samples.
    """
    _check_samples(inputs, labels)

    def loss(params: Params) -> Float[Array, ""]:
        log_probability = jax.nn.log_softmax(forward(params, inputs, activation))
        return -jnp.mean(jnp.take_along_axis(log_probability, labels[:, None], axis=1))

    return loss


def gradient_flops(sizes: Sequence[int], batch: int) -> int:
    """Return the floating-point operations of one gradient on ``batch`` samples, in its matrix products.

    A product of (batch, in) and (in, out) costs ``2 · batch · in · out``. Each layer has three: forward, gradient of
    the weight, gradient of the input; the first layer does without the last. Elementwise work is left out.
    """
    pairs = list(itertools.pairwise(sizes))
    return batch * (sum(6 * n_in * n_out for n_in, n_out in pairs) - 2 * pairs[0][0] * pairs[0][1])


def _check_samples(inputs: Any, targets: Any) -> None:
    if inputs.shape[0] != targets.shape[0]:
        raise ValueError(
            f"there are {inputs.shape[0]} inputs and {targets.shape[0]} targets: pass one target for each input"
        )
