"""Lanczos: a small tridiagonal matrix in place of a large symmetric one, from products with it alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from bea.pytrees import Loss, Params, check_floating, check_like

Operator = Callable[[Float[Array, " dim"]], Float[Array, " dim"]]
"""``v -> A v`` of a symmetric A, on flat vectors."""


class Tridiagonal(NamedTuple):
    r"""Orthonormal vectors V, the first along the start, and a tridiagonal matrix T with ``A V ≈ V T``.

    Attributes:
      basis: V as rows, (steps, dim).
      diagonal: diagonal of T, (steps,).
      off_diagonal: entries of T beside the diagonal, (steps − 1,).
      remainder: the next off-diagonal entry; 0 if the space is invariant and T exact.
    """

    basis: Float[Array, "steps dim"]
    diagonal: Float[Array, " steps"]
    off_diagonal: Float[Array, " less"]
    remainder: Float[Array, ""]

    def eigh(self) -> tuple[Float[Array, " steps"], Float[Array, "steps steps"]]:
        """Return the eigenvalues of T, ascending, and its eigenvectors as columns."""
        matrix = jnp.diag(self.diagonal) + jnp.diag(self.off_diagonal, 1) + jnp.diag(self.off_diagonal, -1)
        return jnp.linalg.eigh(matrix)


def lanczos(operator: Operator, start: Float[Array, " dim"], steps: int) -> Tridiagonal:
    """Tridiagonalise A by ``steps`` products with it.

    Each new vector is made orthogonal to all before it twice, against rounding. If the Krylov space is smaller (the start
    has few different eigenvalues of A) the further vectors are zero, which changes no function of A applied to the start.

    Args:
      operator: ``v -> A v``, symmetric.
      start: first vector of the Krylov space, of any length (a zero start gives zeros).
      steps: number of vectors m ≥ 1, static; memory is m vectors.

    Returns:
      V and T in float32 or the dtype of ``start``, if that is wider; products are with vectors of the dtype of ``start``.

    Source: Golub & Van Loan (2013), section 10.1.
    """
    narrow, eps = start.dtype, jnp.finfo(start.dtype).eps
    start = start.astype(jnp.promote_types(narrow, jnp.float32))
    eps = eps.astype(start.dtype)

    def normalised(vector: Array, scale: Array) -> tuple[Array, Array]:
        length = jnp.sqrt(jnp.vdot(vector, vector))
        alive = length > 10 * eps * scale
        return jnp.where(alive, vector / jnp.where(alive, length, 1.0), 0.0), jnp.where(alive, length, 0.0)

    def step(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        basis, vector, scale = carry
        basis = basis.at[i].set(vector)
        product = operator(vector.astype(narrow)).astype(start.dtype)
        diagonal = jnp.vdot(vector, product)
        scale = jnp.maximum(scale, jnp.sqrt(jnp.vdot(product, product)))
        for _ in range(2):
            product = product - (basis @ product) @ basis
        following, length = normalised(product, scale)
        return (basis, following, scale), (diagonal, length)

    first, _ = normalised(start, jnp.zeros((), start.dtype))
    empty = jnp.zeros((steps, start.size), start.dtype)
    (basis, _, _), (diagonal, lengths) = jax.lax.scan(step, (empty, first, jnp.zeros_like(eps)), jnp.arange(steps))
    return Tridiagonal(basis, diagonal, lengths[:-1], lengths[-1])


class Eigenvalue(NamedTuple):
    """An eigenvalue by Lanczos.

    Attributes:
      value: the eigenvalue, in units of loss per params² (per metric).
      uncertainty: the residual |Av − λv|: some eigenvalue of A lies within it. Lanczos approaches the largest eigenvalue
        from below, so its error is one-sided as a rule.
      products: number of Hessian-vector products.
    """

    value: Array
    uncertainty: Array
    products: int

    @property
    def reason(self) -> str:
        """One sentence on how the eigenvalue was obtained and where it does not hold."""
        value, error = float(self.value), float(self.uncertainty)
        sentence = f"The largest curvature is {value:.4g} ± {error:.1g} by {self.products} steps of Lanczos"
        if error > 0.1 * abs(value):
            return sentence + "; that is not converged (the residual is above a tenth): raise steps."
        return sentence + "; it holds at this point and on this batch, and curvature moves while training."


def largest_eigenvalue(
    loss: Loss, params: Params, *, steps: int = 20, metric: Params | None = None, seed: int = 0
) -> Eigenvalue:
    r"""Return the largest eigenvalue of the Hessian, or of ``M^½ H M^½``: gradient descent is stable if ``h λ_max < 2``.

    Args:
      loss: E.
      params: θ.
      steps: Lanczos steps, each one Hessian-vector product; static.
      metric: M, a tree like params of nonnegative rates (a preconditioner, or block factors); if None, M = 1.
      seed: seed of the random start.

    Returns:
      ``Eigenvalue`` with its residual; it can be jitted.

    Raises:
      ValueError: steps is not a positive integer, or metric has another tree than params.
      TypeError: a leaf is not floating.

    Source: theory.md, (4.4).
    """
    check_floating(params)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps is {steps!r}, but Lanczos takes a positive whole number of steps: 20 is a good start")
    point, unravel = ravel_pytree(params)
    steps = min(steps, point.size)
    root = metric_root(metric, params)
    gradient = jax.grad(lambda flat: loss(unravel(flat)))
    product: Operator = lambda v: root * jax.jvp(gradient, (point,), (root * v,))[1]
    start = jax.random.normal(jax.random.key(seed), point.shape, point.dtype)
    tridiagonal = lanczos(product, start, steps)
    values, vectors = tridiagonal.eigh()
    return Eigenvalue(values[-1], jnp.abs(tridiagonal.remainder * vectors[-1, -1]), steps)


def metric_root(metric: Params | None, params: Params) -> Float[Array, " dim"]:
    """Return ``M^½`` as one flat vector; a leaf of M may be one number for a whole array of params.

    Raises:
      ValueError: metric has another tree or other shapes than params.
    """
    if metric is None:
        return jnp.ones_like(ravel_pytree(params)[0])
    found: object = jax.tree.structure(metric)
    wanted: object = jax.tree.structure(params)
    if found == wanted:
        fill: Any = lambda rate, leaf: (
            jnp.full(leaf.shape, rate, leaf.dtype) if jnp.ndim(rate) == 0 else jnp.asarray(rate, leaf.dtype)
        )
        metric = jax.tree.map(fill, metric, params)
    check_like(metric, params, what="metric")
    return jnp.sqrt(ravel_pytree(metric)[0])
