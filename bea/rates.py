"""The common learning rate after growth: where one step lowers the loss most, and where descent is no longer stable."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bea.krylov import largest_eigenvalue
from bea.pytrees import Loss, Params, check_floating
from bea.schedule import quadratic_model


class CommonRate(NamedTuple):
    """A learning rate's two marks, in its own unit.

    Attributes:
      best: h*, the best of one step; far below the best of a long run as a rule.
      limit: 2/λ_max, where gradient descent stops being stable.
      uncertainty: of the limit, from Lanczos' residual.
    """

    best: Array
    limit: Array
    uncertainty: Array

    @property
    def reason(self) -> str:
        """One sentence: how it was obtained and where it is out of its domain."""
        best, limit, error = float(self.best), float(self.limit), float(self.uncertainty)
        sentence = (
            f"One step lowers the loss most at rate {best:.3g}, and descent is stable below {limit:.3g} ± {error:.1g} "
            "(largest curvature by Lanczos)"
        )
        if error > 0.1 * limit:
            return sentence + "; Lanczos has not converged: raise steps."
        return sentence + "; both are of this point and batch: a run's best rate lies between the two, and moves."


def common_rate(loss: Loss, params: Params, *, metric: Params | None = None, steps: int = 20) -> CommonRate:
    r"""The common rate h of ``Θ ← Θ − h M g``, with the block factors of growth in M.

    .. math:: h^* = \frac{g^T M g}{g^T M H M g}, \qquad h < \frac{2}{\lambda_{max}(M^{1/2} H M^{1/2})}

    Args:
      loss: L, on the grown space.
      params: Θ, just after the event.
      metric: M, a tree like params of factors, a number or an array a leaf; None is M = 1.
      steps: of Lanczos, static.

    Returns:
      ``CommonRate``; it can be jitted. Costs steps + 1 Hessian-vector products.

    Raises:
      As ``largest_eigenvalue``.

    Source: theory.md, sections 4 and 5.
    """
    check_floating(params)
    top = largest_eigenvalue(loss, params, steps=steps, metric=metric)
    direction = jax.tree.map(jnp.negative, jax.grad(loss)(params))
    if metric is not None:
        direction = jax.tree.map(lambda m, g: jnp.asarray(m, g.dtype) * g, metric, direction)
    best = quadratic_model(loss, params, direction).best_step_size()
    curved = jnp.maximum(top.value, jnp.finfo(top.value.dtype).tiny)
    return CommonRate(best, 2 / curved, 2 * top.uncertainty / curved**2)
