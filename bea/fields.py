"""Vector fields on pytrees: gradients, directional derivatives, Lie brackets.

A field is a function ``params -> velocity`` whose value has the tree of its argument. Fields are never jitted here:
the outermost caller does that.
"""

import jax

from bea.pytrees import Field, Loss, Params, check_like, check_params, checked, scale, subtract


def gradient_field(loss: Loss) -> Field:
    r"""Return the field of gradient descent.

    .. math:: f(\theta) = -\nabla E(\theta)

    Args:
      loss: ``params -> scalar`` E; params is any pytree of floating arrays.

    Returns:
      ``params -> −∇E``, in units of loss per params. One evaluation costs one gradient.

    Raises:
      TypeError, when the field is evaluated: a leaf of params is not floating.
      ValueError, when it is evaluated outside jit: an entry of params is NaN or infinite.
    """
    gradient = jax.grad(loss)

    def field(params: Params) -> Params:
        check_params(params)
        return scale(-1.0, gradient(params))

    return field


def directional_derivative(field: Field, params: Params, direction: Params) -> Params:
    r"""Return the derivative of a field along a direction.

    .. math:: f'u = Df(\theta)[u] = \frac{d}{dt} f(\theta + t u) \Big|_{t=0}

    Args:
      field: f; ``params -> velocity``.
      params: θ, where the derivative is taken.
      direction: u, a tree like params.

    Returns:
      f'u, a tree like params. Costs about two evaluations of f (forward mode; no matrix is formed).

    Raises:
      TypeError: a leaf is not floating, or dtypes differ.
      ValueError: direction or the value of the field has another tree or other shapes than params, or (outside jit) an
        entry of params is NaN or infinite.
    """
    check_params(params)
    check_like(direction, params, what="direction")
    return jax.jvp(checked(field), (params,), (direction,))[1]


def linearized(field: Field, params: Params) -> tuple[Params, Field]:
    r"""Return a field's value and its derivative, ``f(θ)`` and ``u ↦ f'(θ) u``, which share the evaluation of f.

    For derivatives along directions that depend on the value: one evaluation of f, and two more for each direction
    (``directional_derivative`` evaluates f again, and the compiler merges the two only in part). What the evaluation kept
    is held until the last direction: blocks that f rematerialises are not computed again.

    Raises:
      As ``directional_derivative``; the direction is not checked.
    """
    check_params(params)
    value, derivative = jax.linearize(checked(field), params)
    return value, derivative


def lie_bracket(f: Field, g: Field) -> Field:
    r"""Return the Lie bracket of two fields, which measures how far their flows are from commuting.

    .. math:: [f, g] = g' f - f' g

    For gradient fields ``f = −∇E_1``, ``g = −∇E_2`` this is ``H_2 g_1 − H_1 g_2``, the conflict term of continual
    learning. Following f and then g ends ahead of following g and then f by ``h² [f, g] + O(h³)``.

    Args:
      f, g: fields on the same space.

    Returns:
      ``params -> [f, g]``. Costs one evaluation and one directional derivative of each field.

    Raises:
      As ``directional_derivative``, when the bracket is evaluated.

    Source: theory.md, (2.2); Hairer, Lubich & Wanner (2006), section III.5 (commutator of Lie derivatives).
    """

    def bracket(params: Params) -> Params:
        (velocity_f, along_f), (velocity_g, along_g) = linearized(f, params), linearized(g, params)
        return subtract(along_g(velocity_f), along_f(velocity_g))

    return bracket
