r"""How copies part: the flow of their difference, off the parameters that the exchange of the copies leaves alone.

A network that holds k copies of one network has a symmetry: exchanging the copies, all units of one at once, permutes
parameters and changes no output. With Π the mean over the exchanges, Π is the projection on symmetric parameters; training
commutes with it, so that symmetric parameters stay symmetric for ever, and ``δ = (1 − Π) Θ`` follows to first order

.. math:: \delta' = -(1 - \Pi)\, M H(\Pi\Theta)\, (1 - \Pi)\, \delta .

The Hessian has no block between the two parts. The grown network stands near a saddle: the most negative eigenvalue −λ of
``M^½ H M^½`` in the antisymmetric part is the rate ``δ ~ e^{λt}`` at which copies part, t = step size × steps.

The cyclic exchanges of k copies are enough. Parameters that only they leave alone (block-circulant, ``W_{a−b}`` from copy b
into copy a) still make all copies equal, and the function has only the sums ``Σ_c W_c`` in it: on what the larger group would
add to the antisymmetric part, the Hessian is zero. Source: theory.md, section 8.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from bea.krylov import Tridiagonal, lanczos, metric_root
from bea.pytrees import (
    Field,
    Loss,
    Number,
    Params,
    axpy,
    check_floating,
    check_positive,
    check_step_size,
    is_traced,
    norm,
    scale,
    subtract,
)

Exchange = Callable[[Params], Sequence[Params]]
"""``params -> images of params under every element of the group``, params itself among them: ``GrowthMap.exchanges``."""


class Separation(NamedTuple):
    r"""How fast copies part at a symmetric point.

    Attributes:
      rate: λ, minus the least eigenvalue of the antisymmetric block, in units of loss per params² (per metric), which is
        one over step size × steps; if it is not positive, the point is no saddle and copies do not part.
      uncertainty: residual of λ by Lanczos, which approaches λ from below: some eigenvalue lies within it.
      drift: λ', the change of λ along the flow ``Θ' = −M ∇E`` of the symmetric part, per step size × steps.
      rates: the leading rates, largest first, (directions,).
      directions: the directions that belong to them, ``M^½ u``, each of norm 1: a tree like params with a first axis more.
      products: number of Hessian-vector products.
    """

    rate: Array
    uncertainty: Array
    drift: Array
    rates: Float[Array, " directions"]
    directions: Params
    products: int

    def direction(self, number: int = 0) -> Params:
        """Return one of the leading directions, a tree like params of norm 1."""
        return jax.tree.map(lambda leaf: leaf[number], self.directions)

    def modified(self, step_size: Number) -> "Separation":
        r"""Return the separation with the rate of steps of length h in the place of the flow's, to first order in h.

        .. math:: \tilde\lambda = \lambda - \frac h2 \left(\lambda^2 + \lambda'\right)

        The steps follow the flow of ``Ẽ = E + (h/4) ⟨∇E, M∇E⟩`` (``modified_loss``), whose Hessian is ``H + (h/2) (H M H +
        H'[M∇E])``; its second term is ``λ²`` along the direction, its third the drift. At a point at rest ``λ̃`` is
        ``ln(1 + hλ)/h``, the logarithm of a step's factor on δ, to O(h²).

        Raises:
          ValueError: the step size is not positive and finite.

        Source: theory.md, (8.2).
        """
        check_step_size(step_size)
        half = jnp.asarray(0.5 * step_size, self.rate.dtype)
        return self._replace(rate=self.rate - half * (self.rate**2 + self.drift))

    def steps_until(self, share: float, start: float, step_size: float) -> float:
        """Return ``ln(share / start) / (h λ)``: steps until the copies' difference has grown from ``start`` to ``share``.

        Args:
          share, start: sizes of the difference in one unit, along the leading direction.
          step_size: h; 1 if the metric has the learning rates in it.

        Returns:
          Steps, infinite if λ is not positive. λ changes on the way: this holds while it does not.

        Raises:
          ValueError: an argument is not positive and finite.
        """
        for value, name in ((share, "share"), (start, "start"), (step_size, "step_size")):
            check_positive(value, name, "pass sizes of the difference, and the learning rate")
        rate = float(self.rate)
        return math.log(share / start) / (step_size * rate) if rate > 0 else math.inf

    def steps_gained(self, more: float, less: float, step_size: float) -> float:
        """Return ``ln(σ₂/σ₁) / (h λ)``: how many steps sooner noise σ₂ = more parts the copies than σ₁ = less."""
        return self.steps_until(more, less, step_size)

    @property
    def reason(self) -> str:
        """One sentence on the rate and on where it does not hold."""
        rate, error = float(self.rate), float(self.uncertainty)
        said = f"λ = {rate:.4g} ± {error:.1g} by {self.products} steps of Lanczos"
        if rate <= error:
            return f"{said}: no direction was found in which copies part; look with more steps, or more text"
        if error > 0.1 * rate:
            return f"{said}, a lower bound: the residual is above a tenth, raise steps"
        return f"{said}; it holds at this point, and changes while training"


def symmetric_part(exchange: Exchange, params: Params) -> Params:
    """Return Π Θ, the mean of the images of Θ under the exchanges."""
    first, *others = exchange(params)
    for image in others:
        first = axpy(1.0, image, first)
    return scale(1 / (1 + len(others)), first)


def antisymmetric_part(exchange: Exchange, params: Params) -> Params:
    """Return ``(1 − Π) Θ``: by how much copies differ; its norm is zero as long as they are equal."""
    return subtract(params, symmetric_part(exchange, params))


def separation_field(field: Field, exchange: Exchange) -> Field:
    r"""Return the flow of symmetric parameters together with that of a small difference of the copies.

    .. math:: (\Theta, \delta)' = \big(f(\Pi\Theta),\; (1 - \Pi)\, f'(\Pi\Theta)\, (1 - \Pi)\, \delta\big)

    With ``modified_field(f, h, order=p)`` as the field, δ after the time h · steps is that of gradient descent to O(h^p),
    as long as it is small; ``bea.flow`` solves it.

    Args:
      field: f, which commutes with the exchange: ``gradient_field(loss)``, preconditioned or modified or not.
      exchange: of the copies.

    Returns:
      A field on ``(params, difference)``. One evaluation costs one Jacobian-vector product of f.

    Source: theory.md, (8.1).
    """

    def tangent(point: tuple[Params, Params]) -> tuple[Params, Params]:
        params, difference = point
        at, along = symmetric_part(exchange, params), antisymmetric_part(exchange, difference)
        velocity, change = jax.jvp(field, (at,), (along,))
        return symmetric_part(exchange, velocity), antisymmetric_part(exchange, change)

    return tangent


def separation_rate(
    loss: Loss,
    exchange: Exchange,
    params: Params,
    metric: Params | None = None,
    *,
    steps: int = 40,
    directions: int = 1,
    seed: int = 0,
) -> Separation:
    r"""Return the rate at which copies part: minus the least eigenvalue of the Hessian's antisymmetric block, by Lanczos.

    .. math:: \lambda = -\min_{u = (1 - \Pi) u} \frac{\langle u, M^{1/2} H(\Pi\Theta) M^{1/2} u\rangle}{\langle u, u\rangle}

    Args:
      loss: E, of the network that holds the copies.
      exchange: params -> images of params under the exchanges of the copies, params itself among them; for a grown network
        ``fusion_core.GrowthMap.exchanges``. The cyclic exchanges are enough.
      params: Θ; λ is that at ΠΘ, so that noise that has parted the copies already does not matter.
      metric: M, a tree like params of nonnegative rates (a frozen preconditioner), symmetrised as the parameters are; if
        None, M = 1.
      steps: Lanczos steps, each one Hessian-vector product; static. Memory is as many trees of parameters.
      directions: number of leading directions to return.
      seed: seed of the random start.

    Returns:
      ``Separation``; it can be jitted. Costs ``steps`` Hessian-vector products, and about three more for the drift.

    Raises:
      ValueError: steps or directions are not positive integers; the images are not those of a whole group; the loss
        changes under an exchange (both checked outside jit alone); or metric has another tree than params.
      TypeError: a leaf is not floating.

    Source: theory.md, (8.1).
    """
    check_floating(params)
    for value, name in ((steps, "steps"), (directions, "directions")):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{name} is {value!r}, but it has to be a positive whole number: 40 steps are a good start"
            )
    if directions > steps:
        raise ValueError(
            f"directions is {directions}, but {steps} steps of Lanczos find at most that many: raise steps"
        )
    _check_exchange(loss, exchange, params)
    point, unravel = ravel_pytree(symmetric_part(exchange, params))
    rates = jnp.square(metric_root(metric, params))
    root = jnp.sqrt(jnp.maximum(ravel_pytree(symmetric_part(exchange, unravel(rates)))[0], 0.0))
    project = lambda v: ravel_pytree(antisymmetric_part(exchange, unravel(v)))[0]
    gradient = jax.grad(lambda flat: loss(unravel(flat)))
    product = lambda at, v: jax.jvp(gradient, (at,), (v,))[1]
    start = project(jax.random.normal(jax.random.key(seed), point.shape, point.dtype))
    steps = min(steps, point.size)
    tridiagonal = lanczos(lambda v: -project(root * product(point, root * project(v))), start, steps)
    values, vectors = _within(tridiagonal).eigh()
    found = (vectors[:, ::-1][:, :directions].T @ tridiagonal.basis) * root
    lengths = jnp.sqrt(jnp.sum(found * found, axis=1, keepdims=True))
    leading = (root * (vectors[:, -1] @ tridiagonal.basis)).astype(point.dtype)
    curvature = lambda at: jnp.vdot(leading, product(at, leading))
    drift = jax.jvp(curvature, (point,), (root * root * gradient(point),))[1]
    return Separation(
        rate=values[-1],
        uncertainty=jnp.abs(tridiagonal.remainder * vectors[-1, -1]),
        drift=drift,
        rates=values[::-1][:directions],
        directions=jax.vmap(unravel)((found / jnp.where(lengths > 0, lengths, 1.0)).astype(point.dtype)),
        products=steps,
    )


def _within(found: Tridiagonal) -> Tridiagonal:
    """Return T without the zero eigenvalues of vectors beyond a smaller Krylov space: they are moved below all others."""
    dead = jnp.sum(found.basis * found.basis, axis=1) == 0
    lowest = -(jnp.max(jnp.abs(found.diagonal)) + 2 * jnp.max(jnp.abs(found.off_diagonal), initial=0.0))
    return found._replace(diagonal=jnp.where(dead, lowest, found.diagonal))


def _check_exchange(loss: Loss, exchange: Exchange, params: Params) -> None:
    """Raise ValueError if the images are not those of a whole group, or the loss changes under one of them."""

    @jax.jit
    def probe(params: Params) -> tuple[Array, list[Array]]:
        flat, unravel = ravel_pytree(params)
        size = jnp.sqrt(jnp.mean(flat * flat))
        drawn = unravel(flat + 0.5 * size * jax.random.normal(jax.random.key(1), flat.shape, flat.dtype))
        once = symmetric_part(exchange, drawn)
        misfit = norm(subtract(symmetric_part(exchange, once), once)) / norm(once)
        return misfit, [loss(image) for image in exchange(drawn)]

    misfit, losses = probe(params)
    if any(is_traced(value) for value in (misfit, *losses)):
        return
    if not float(misfit) <= 1e-3:
        raise ValueError(
            "the mean of the exchanges is no projection: exchange has to return the images of params under every element "
            "of a group, params itself among them, such as [params, swapped]"
        )
    values = [float(value) for value in losses]
    tolerance = float(jnp.sqrt(jnp.finfo(losses[0].dtype).eps))
    if not max(values) - min(values) <= tolerance * max(abs(value) for value in values):
        raise ValueError(
            f"the loss changes under an exchange, from {min(values):.6g} to {max(values):.6g}: exchange all units of a copy "
            "at once, in every array that makes or reads them"
        )
