r"""The quadratic loss, on which gradient descent has a modified loss in closed form.

.. math:: E(\theta) = \tfrac12\, \theta^T H \theta, \qquad
          \theta \mapsto (1 - h H)\,\theta = e^{-h \tilde H} \theta, \qquad
          \tilde H = -\tfrac1h \log(1 - h H) = H + \tfrac h2 H^2 + \tfrac{h^2}3 H^3 + \dots
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def loss(hessian: Float[Array, "dim dim"]) -> Callable[[Float[Array, " dim"]], Float[Array, ""]]:
    """``θ ↦ ½ θᵀHθ`` for a symmetric H.

    Raises:
      ValueError: H is not symmetric to rounding.
    """
    if not isinstance(hessian, jax.core.Tracer):
        scale, eps = float(jnp.abs(hessian).max()), float(jnp.finfo(hessian.dtype).eps)
        gap = float(jnp.abs(hessian - hessian.T).max())
        if gap > 10 * eps * scale:
            raise ValueError(
                f"hessian differs from its transpose by {gap:.3g}, but a Hessian is symmetric: pass (A + A.T) / 2"
            )
    return lambda theta: 0.5 * theta @ (hessian @ theta)


def modified_hessian(hessian: Float[Array, "dim dim"], step_size: float | Float[Array, ""]) -> Float[Array, "dim dim"]:
    r"""Hessian of the loss whose gradient flow gradient descent follows exactly.

    .. math:: \tilde H = -\frac1h \log(1 - h H)

    Args:
      hessian: H, symmetric.
      step_size: h > 0. Traced inside jit, it cannot be checked: eigenvalues of H at or above 1/h then give NaN or inf.

    Returns:
      H̃, with the eigenvectors of H.

    Raises:
      ValueError: step_size is not positive, or h λ_max ≥ 1. From there on a step jumps over the minimum, which no
        flow on the
        line does: the logarithm is not real, though descent still converges up to h λ_max = 2.
    """
    eigenvalues, basis = jnp.linalg.eigh(hessian)
    scaled = step_size * eigenvalues
    if not isinstance(scaled, jax.core.Tracer):
        if not float(step_size) > 0:
            raise ValueError(f"step_size is {float(step_size)!r}, but has to be positive: pass the learning rate")
        if float(scaled[-1]) >= 1:
            raise ValueError(
                f"step_size {float(step_size):g} times the largest curvature {float(eigenvalues[-1]):g} is "
                f"{float(scaled[-1]):.3g}, but has to be below 1 for a real modified Hessian: use a step size below "
                f"{1 / float(eigenvalues[-1]):.3g}"
            )
    return (basis * (-jnp.log1p(-scaled) / step_size)) @ basis.T
