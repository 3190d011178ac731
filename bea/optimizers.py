"""Optimizers with a state: the logarithm of their step, and the field that Adam and RMSProp follow."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bea.modified import log_map
from bea.pytrees import Field, Loss, Number, Params, check_params, check_step_size, is_traced

Point = tuple[Params, Any]
"""Parameters and optimizer state, as one point of a common space."""


def optimizer_step(optimizer: Any, loss: Loss) -> Callable[[Point], Point]:
    """Return one step of an optax optimizer as a map of ``(params, state)``.

    Args:
      optimizer: anything with optax's ``update(gradients, state, params) -> (updates, state)``.
      loss: ``params -> scalar``; a batch is closed over.
    """

    def step(point: Point) -> Point:
        params, state = point
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, u: p + jnp.asarray(u, jnp.result_type(p)), params, updates), state

    return step


def optimizer_log(optimizer: Any, loss: Loss, params: Params, state: Any, order: int) -> Point:
    r"""Return the modified displacement of any optax optimizer's step, from its iterates: ``log_map`` of the whole state.

    .. math:: F(z_0) = \sum_{k=1}^{p} \frac{(-1)^{k+1}}{k}\, \Delta^k z_0, \qquad z = (\theta, \text{state})

    Parameters and floating state (momenta, second moments) are coordinates of one point. Integer state, such as step
    counts, is a coordinate too: it goes through the optimizer unchanged and its log is taken in the floating dtype of
    the parameters, so a count has the displacement 1. That makes the step autonomous in z. Boolean leaves and random
    keys cannot be expanded and raise.

    Decaying state is not near the identity: a momentum decays by β a step, and its differences do not fall with h. The
    series holds on the SLOW MANIFOLD, where the state is a function of θ: run the optimizer for ``n ≫ 1/(1 − β)`` steps
    first and take the log there. Bias correction depends on the count and decays likewise.

    Args:
      optimizer: as for ``optimizer_step``.
      loss: ``params -> scalar``.
      params, state: point at which the log is taken; ``optimizer.init(params)`` is off the slow manifold.
      order: p ≥ 1; p steps are run.

    Returns:
      ``(displacement of params, displacement of state)``; integer leaves of the state have floating displacements. The
      first over the learning rate is the optimizer's modified field.

    Raises:
      ValueError: order is not a positive integer, an entry is not finite, or the step changes the tree.
      TypeError: a leaf of params is not floating, or one of the state is neither floating nor integer.

    Source: theory.md, (1.6).
    """
    check_params(params)
    tree: Any = jax.tree.structure((params, state))
    kinds = [_dtype(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)] + kinds
    wide = jnp.result_type(*jax.tree.leaves(params))
    step = optimizer_step(optimizer, loss)

    def as_coordinates(point: Point) -> list[Any]:
        return [
            jnp.asarray(x, d if jnp.issubdtype(d, jnp.floating) else wide)
            for x, d in zip(jax.tree.leaves(point), dtypes, strict=True)
        ]

    def advance(coordinates: list[Any]) -> list[Any]:
        whole = [
            x if jnp.issubdtype(d, jnp.floating) else jnp.round(x).astype(d)
            for x, d in zip(coordinates, dtypes, strict=True)
        ]
        after = step(jax.tree.unflatten(tree, whole))
        if jax.tree.structure(after) != tree:
            raise ValueError(
                f"the optimizer's state has the tree\n  {tree}\nbefore a step and\n  {jax.tree.structure(after)}\nafter "
                "it: a log needs a map of one space into itself"
            )
        return as_coordinates(after)

    return jax.tree.unflatten(tree, log_map(advance, as_coordinates((params, state)), order))


def _dtype(path: Any, leaf: Any) -> Any:
    dtype = getattr(leaf, "dtype", None) or np.result_type(leaf)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(
            f"state{jax.tree_util.keystr(path)} has dtype {dtype}, but the log of a step needs floating or integer "
            "state: use an optimizer without random keys and switches"
        )
    return dtype


def _positive(dtype: Any, eps: Number, eps_root: Number) -> bool:
    """Return whether a zero gradient is divided by a positive number in a dtype."""
    return any(float(np.asarray(value).astype(dtype)) >= float(jnp.finfo(dtype).tiny) for value in (eps, eps_root))


def adam_modified_field(
    loss: Loss, step_size: Number, *, b1: Number, b2: Number, eps: Number, eps_root: Number = 0.0
) -> Field:
    r"""Return the field that Adam follows on its slow manifold, to first order in the step size; RMSProp's with ``b1 = 0``.

    .. math:: \tilde f = -\frac{g}{R} - \frac{h}{2} \Big( \frac{1+\beta}{1-\beta} \frac1R
              - \frac{1+\rho}{1-\rho} \frac{g^2}{s R^2} \Big) H \frac gR,
              \qquad s = \sqrt{g^2 + \epsilon_r}, \quad R = s + \epsilon

    entry by entry, with g = ∇E, its Hessian H, β = b1, ρ = b2. With ε = 0 the bracket is ``(1/R) [(1+β)/(1−β) −
    (1+ρ)/(1−ρ) + (1+ρ)/(1−ρ) ε_r/(g² + ε_r)]`` and ``H g/R`` the gradient of the perturbed one-norm ``Σ √(g² + ε_r)``:
    for the usual ρ > β and small ε_r the bracket is negative, and the correction acts against a penalty on that norm.

    Derived here: along the flow ``g_{t−k} = g − k h H f_0 + O(h²)`` with ``f_0 = −g/R``, hence ``m = g − β/(1−β) h H
    f_0`` and ``v = g² − 2ρ/(1−ρ) h g H f_0``; the step ``−h m/R(v)`` is expanded in h, and ``(h/2) f_0'f_0`` subtracted.
    Bias correction is left out: it has decayed after ``n ≫ 1/(1 − ρ)`` steps. g² must be large against its change in
    1/(1 − ρ) steps.

    Args:
      loss: E; ``params -> scalar``.
      step_size: h > 0, the learning rate.
      b1, b2: β and ρ, decay of the first and second moment, in [0, 1).
      eps, eps_root: ε outside and ε_r inside the root, as in optax, at least one positive.

    Returns:
      ``params -> f̃``, whose time-h flow is one step to O(h³). Costs one gradient and one Hessian-vector product.

    Raises:
      ValueError: step_size is not positive and finite, a decay is outside [0, 1), or eps and eps_root are negative or
        both zero; when evaluated, an entry of params is not finite, or both are too small for its dtype.
      TypeError: a leaf is not floating.

    Source: theory.md, (1.8); Cattaneo, Klusowski & Shigida (2024), On the implicit bias of Adam, whose
    correction with ε_r alone this is.
    """
    check_step_size(step_size)
    for name, decay in (("b1", b1), ("b2", b2)):
        if not is_traced(decay) and not 0 <= float(decay) < 1:
            raise ValueError(
                f"{name} is {float(decay)!r}, but a decay has to be in [0, 1): at 1 the moment never moves"
            )
    if not is_traced(eps) and not is_traced(eps_root) and not (eps >= 0 and eps_root >= 0 and eps + eps_root > 0):
        raise ValueError(
            f"eps is {float(eps)!r} and eps_root is {float(eps_root)!r}, but both have to be nonnegative and one "
            "positive: 1e-8 is usual"
        )
    first, second = (1 + b1) / (1 - b1), (1 + b2) / (1 - b2)

    def modified(params: Params) -> Params:
        check_params(params)
        gradient = jax.grad(loss)
        for leaf in jax.tree.leaves(params):
            if not is_traced(eps) and not is_traced(eps_root) and not _positive(jnp.result_type(leaf), eps, eps_root):
                raise ValueError(
                    f"eps is {float(eps)!r} and eps_root is {float(eps_root)!r}, which are 0 in {jnp.result_type(leaf)}: take "
                    "larger ones, or convert params to float32"
                )
        g = gradient(params)
        s = jax.tree.map(lambda x: jnp.sqrt(x * x + jnp.asarray(eps_root, x.dtype)), g)
        R = jax.tree.map(lambda x: x + jnp.asarray(eps, x.dtype), s)
        scaled = jax.tree.map(jnp.divide, g, R)
        product = jax.jvp(gradient, (params,), (scaled,))[1]

        def entry(g: Any, s: Any, R: Any, scaled: Any, product: Any) -> Any:
            number = lambda x: jnp.asarray(x, g.dtype)
            bent = jnp.where(s > 0, g * g / jnp.where(s > 0, s, 1.0), 0.0)
            return -scaled - number(0.5 * step_size) * (number(first) / R - number(second) * bent / (R * R)) * product

        return jax.tree.map(entry, g, s, R, scaled, product)

    return modified
