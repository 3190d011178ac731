r"""Two-layer linear networks, whose gradient flow from a balanced start is known in closed form.

.. math:: E = \frac1{n_{out}} \|W_2 W_1 - S\|_F^2, \qquad S = U\, \mathrm{diag}(s)\, V^T

is the mean squared error on whitened inputs (mean 0, covariance 1) with the targets ``S x``. From ``W_1 = Q diag(w) Vᵀ``,
``W_2 = U diag(w) Qᵀ`` the modes never mix, and the strength ``a = w²`` of each follows

.. math:: \dot a = 2 c\, a (s - a), \quad c = \frac{2}{n_{out}}, \qquad
          a(t) = \frac{s}{1 + (s/a_0 - 1)\, e^{-2 c s t}}

Source: Saxe, McClelland & Ganguli (2014), Exact solutions to the nonlinear dynamics of learning in deep linear networks.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from toy_models import mlp
from toy_models.teacher import Samples


def identity(x: Array) -> Array:
    """Return the activation of a linear network."""
    return x


class DeepLinearTask(NamedTuple):
    """Whitened samples of a linear map, and its singular value decomposition ``S = U diag(s) Vᵀ``.

    Attributes:
      samples: inputs of mean 0 and covariance 1, and targets ``S x``.
      left: U, orthonormal columns.
      strengths: s > 0, one a mode.
      right: V, orthonormal columns.
    """

    samples: Samples
    left: Float[Array, "out modes"]
    strengths: Float[Array, " modes"]
    right: Float[Array, "in modes"]

    def loss(self) -> mlp.Loss:
        """Return ``params -> E`` for the parameters of an MLP, any width."""
        return mlp.mse_loss(*self.samples, identity)

    def start(self, width: int, strength: float, seed: int) -> mlp.Params:
        """Return a balanced network with this hidden width, every mode at the strength a_0; Q is drawn by the seed.

        Raises:
          ValueError: the width is below the number of modes, or strength is not positive.
        """
        modes = len(self.strengths)
        if width < modes or not strength > 0:
            raise ValueError(
                f"width is {width} and strength {strength}: a balanced start needs a width of at least {modes}, one "
                "unit a mode, and a positive strength"
            )
        mixing = _orthonormal(np.random.default_rng(seed), width, modes, self.strengths.dtype)
        return self._network(mixing, jnp.full(modes, strength, self.strengths.dtype))

    def flow(self, start: mlp.Params, time: float | Array) -> mlp.Params:
        """Return the exact gradient flow from a balanced ``start`` after a time (in units of step size)."""
        first = start["layers"][0]["weight"] @ self.right  # Q diag(w)
        w = jnp.sqrt(jnp.sum(first**2, axis=0))
        rate = 4.0 / self.left.shape[0]  # 2 c
        s = self.strengths
        return self._network(first / w, s / (1 + (s / w**2 - 1) * jnp.exp(-rate * s * time)))

    def _network(self, mixing: Array, strengths: Array) -> mlp.Params:
        root, (n_out, _), width = jnp.sqrt(strengths), self.left.shape, mixing.shape[0]
        weights = [(mixing * root) @ self.right.T, (self.left * root) @ mixing.T]
        biases = [jnp.zeros(width, root.dtype), jnp.zeros(n_out, root.dtype)]
        return {"layers": [{"weight": w, "bias": b} for w, b in zip(weights, biases, strict=True)]}


def deep_linear_task(
    n_in: int, n_out: int, *, strengths: tuple[float, ...], samples: int, seed: int, dtype: DTypeLike = jnp.float32
) -> DeepLinearTask:
    """Return a linear map with the given singular values, on whitened inputs.

    Args:
      n_in, n_out: widths of input and output, each at least the number of modes.
      strengths: s, positive, one a mode.
      samples: number of inputs, more than n_in.
      seed: seed of the map and the inputs.
      dtype: dtype of all arrays; float64 needs ``jax.enable_x64``.

    Raises:
      ValueError: too many modes, one that is not positive, or too few samples to be whitened.
    """
    modes = len(strengths)
    if not 0 < modes <= min(n_in, n_out) or min(strengths) <= 0:
        raise ValueError(
            f"strengths is {strengths}: a map from {n_in} to {n_out} dimensions has 1 to {min(n_in, n_out)} modes, all "
            "positive"
        )
    if samples <= n_in:
        raise ValueError(f"samples is {samples}, but whitening {n_in} inputs needs more than {n_in} of them")
    rng = np.random.default_rng(seed)
    left, right = (_orthonormal(rng, n, modes, dtype) for n in (n_out, n_in))
    drawn = rng.standard_normal((samples, n_in))
    inputs = jnp.asarray(np.linalg.qr(drawn - drawn.mean(axis=0))[0] * samples**0.5, dtype)
    s = jnp.asarray(strengths, dtype)
    return DeepLinearTask(Samples(inputs, inputs @ right * s @ left.T), left, s, right)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int, dtype: DTypeLike) -> Array:
    return jnp.asarray(np.linalg.qr(rng.standard_normal((rows, columns)))[0], dtype)
