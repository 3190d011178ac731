"""Arithmetic on pytrees of floating arrays, and checks of arguments.

All trees are vectors of one space here: ``params``, a direction and a field's value. Dtypes and shapes are known while
tracing, so the checks cost nothing inside ``jax.jit``.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Params: TypeAlias = Any
"""A pytree whose leaves are floating arrays."""
Field: TypeAlias = Callable[[Params], Params]
"""``params -> velocity``; the velocity has the tree, shapes and dtypes of params."""
Loss: TypeAlias = Callable[[Params], Any]
"""``params -> scalar``."""
Number: TypeAlias = float | int | np.number | np.ndarray | Array


def inner(x: Params, y: Params) -> Array:
    """Return ⟨x, y⟩, summed over all entries of all leaves, in float32 or the leaves' dtype if that is wider."""

    def product(a: Array, b: Array) -> Array:
        wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
        return jnp.vdot(jnp.asarray(a, wide), jnp.asarray(b, wide), precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(product, x, y)), start=jnp.zeros((), jnp.float32))


def norm(x: Params) -> Array:
    """Return √⟨x, x⟩."""
    return jnp.sqrt(inner(x, x))


def number_in(a: Number, dtype: Any) -> Array:
    """Return a scalar in a floating dtype. Raises ValueError if it is known and finite, and infinite in that dtype."""
    if not is_traced(a) and float(jnp.finfo(dtype).max) < abs(float(a)) < math.inf:
        raise ValueError(
            f"the number {float(a):.3g}, of step sizes or weights, is more than {jnp.dtype(dtype)} holds: take smaller ones, "
            "or wider params"
        )
    return jnp.asarray(a, dtype)


def scale(a: Number, x: Params) -> Params:
    """Return a·x for a scalar a, in the dtypes of x. Raises ValueError as ``number_in``."""
    return jax.tree.map(lambda leaf: number_in(a, jnp.result_type(leaf)) * leaf, x)


def axpy(a: Number, x: Params, y: Params) -> Params:
    """Return a·x + y for a scalar a, in the dtypes of y. Raises ValueError as ``number_in``."""
    return jax.tree.map(lambda u, v: number_in(a, jnp.result_type(v)) * u + v, x, y)


def subtract(x: Params, y: Params) -> Params:
    """Return x − y."""
    return jax.tree.map(jnp.subtract, x, y)


def zeros_like(x: Params) -> Params:
    """Return a tree of zeros like x."""
    return jax.tree.map(jnp.zeros_like, x)


def weighted_sum(weights: list[Any], trees: list[Params]) -> Params:
    """Return Σ w_i x_i; at least one term."""
    total = scale(weights[0], trees[0])
    for weight, tree in zip(weights[1:], trees[1:], strict=True):
        total = axpy(weight, tree, total)
    return total


def check_floating(params: Params, name: str = "params") -> None:
    """Raise an error if one cannot differentiate in the tree.

    Raises:
      TypeError: a leaf is not a floating array (integers, booleans, complex numbers, strings); the message names it.
      ValueError: there is no leaf at all.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name} is {params!r}, a tree without arrays: pass a pytree with at least one floating array")
    for path, leaf in leaves:
        try:
            dtype = jnp.result_type(leaf)
        except (TypeError, ValueError):
            dtype = None
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            what = f"dtype {dtype}" if dtype is not None else f"type {type(leaf).__name__}"
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} has {what}, but flows need floating arrays: convert it with "
                f"jnp.asarray(leaf, jnp.float32), or close over it in the loss instead of passing it in {name}"
            )


def check_params(params: Params, name: str = "params") -> None:
    """Raise the errors of ``check_floating``, and another if an entry is known (outside jit) and not finite.

    Raises:
      TypeError: a leaf is not floating.
      ValueError: there is no leaf, or an entry is NaN or infinite; the message names the leaf.
    """
    check_floating(params, name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if is_traced(leaf):
            continue
        finite = np.isfinite(np.asarray(leaf, np.float32 if jnp.result_type(leaf).itemsize < 4 else None))
        if not finite.all():
            bad = int(finite.size - np.count_nonzero(finite))
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has {bad} of {finite.size} entries that are NaN or infinite: "
                "training has diverged before this point; go back to a finite one, or lower the step size"
            )


def check_like(value: Params, params: Params, *, what: str, name: str = "params") -> None:
    """Raise an error if ``value`` is no vector of the space of ``params``.

    Raises:
      ValueError: the trees differ (the message has both), or a leaf's shape does.
      TypeError: a leaf's dtype differs.
    """
    structure: object = jax.tree.structure(value)
    expected: object = jax.tree.structure(params)
    if structure != expected:
        raise ValueError(
            f"{what} has the tree\n  {structure}\nbut {name} has the tree\n  {expected}\n"
            f"return one array for each leaf of {name}, in the same containers"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(value), jax.tree.leaves(params), strict=True)
    for (path, leaf), like in pairs:
        where = jax.tree_util.keystr(path)
        if jnp.shape(leaf) != jnp.shape(like):
            raise ValueError(
                f"{what}{where} has shape {jnp.shape(leaf)}, but {name}{where} has shape {jnp.shape(like)}: "
                f"return an array of the shape of {name}"
            )
        if jnp.result_type(leaf) != jnp.result_type(like):
            raise TypeError(
                f"{what}{where} has dtype {jnp.result_type(leaf)}, but {name}{where} has dtype "
                f"{jnp.result_type(like)}: convert one of them with .astype"
            )


def checked(field: Field, name: str = "field") -> Field:
    """Return the field with its argument and value checked whenever it is called or traced."""

    def checked_field(params: Params) -> Params:
        check_params(params)
        velocity = field(params)
        check_like(velocity, params, what=f"the value of {name}")
        return velocity

    return checked_field


def is_traced(value: Any) -> bool:
    """Return whether a value is traced, and so not known before the program runs."""
    return isinstance(value, jax.core.Tracer)


def check_positive(value: Number, name: str, remedy: str) -> None:
    """Raise an error if a scalar is not positive and finite; traced values pass.

    Raises:
      TypeError: value is not a real scalar.
      ValueError: value is not positive and finite.
    """
    if is_traced(value):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, not a real scalar: {remedy}") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} is {number!r}, but has to be positive and finite: {remedy}")


def check_step_size(step_size: Number, name: str = "step_size") -> None:
    """Raise an error if a learning rate is not positive and finite (``check_positive``)."""
    check_positive(step_size, name, "pass the learning rate, such as 0.01 (the sign of the descent is in the field)")
