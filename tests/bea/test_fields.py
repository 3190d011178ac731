import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.flatten_util import ravel_pytree

import bea
from tests.strategies.fields import points, quadratic_fields
from tests.strategies.problems import tanh_loss, tanh_network

few = settings(derandomize=True, deadline=None, max_examples=8)


def test_gradient_field_is_minus_the_gradient_and_keeps_the_tree():
    params, loss = tanh_network(), tanh_loss(0)
    velocity, gradient = jax.jit(lambda p: (bea.gradient_field(loss)(p), jax.grad(loss)(p)))(params)
    jax.tree.map(lambda v, g: np.testing.assert_array_equal(v, -g), velocity, gradient)


def test_directional_derivative_of_a_linear_field_is_its_matrix():
    A = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    u = jnp.asarray([1.0, -1.0])
    got = bea.directional_derivative(lambda x: A @ x, jnp.ones(2), u)
    np.testing.assert_allclose(got, [-1.0, -1.0])


def test_bracket_of_linear_fields_is_the_commutator(x64):
    rng = np.random.default_rng(0)
    A, B, x = rng.standard_normal((3, 3)), rng.standard_normal((3, 3)), rng.standard_normal(3)
    got = bea.lie_bracket(lambda p: A @ p, lambda p: B @ p)(jnp.asarray(x))
    np.testing.assert_allclose(got, (B @ A - A @ B) @ x, rtol=1e-12)


def test_bracket_of_gradient_fields_is_the_conflict_term(x64):
    losses, params = [tanh_loss(0), tanh_loss(1)], tanh_network()
    flat, unravel = ravel_pytree(params)
    (g1, H1), (g2, H2) = [
        jax.jit(lambda p, loss=loss: (jax.grad(loss)(p), jax.hessian(loss)(p)))(flat)
        for loss in [lambda p, loss=loss: loss(unravel(p)) for loss in losses]
    ]
    got = jax.jit(bea.lie_bracket(*map(bea.gradient_field, losses)))(params)
    np.testing.assert_allclose(ravel_pytree(got)[0], H2 @ g1 - H1 @ g2, rtol=1e-10, atol=1e-12)


@few
@given(f=quadratic_fields(), g=quadratic_fields(), point=points)
def test_bracket_is_antisymmetric(f, g, point):
    with jax.enable_x64(True):
        x = jnp.asarray(point)
        np.testing.assert_array_equal(bea.lie_bracket(f, g)(x), -bea.lie_bracket(g, f)(x))
        np.testing.assert_array_equal(bea.lie_bracket(f, f)(x), 0 * x)


@few
@given(f=quadratic_fields(), g=quadratic_fields(), k=quadratic_fields(), point=points)
def test_bracket_obeys_the_jacobi_identity(f, g, k, point):
    with jax.enable_x64(True):
        x, bracket = jnp.asarray(point), bea.lie_bracket
        cyclic = bracket(f, bracket(g, k))(x) + bracket(g, bracket(k, f))(x) + bracket(k, bracket(f, g))(x)
        np.testing.assert_array_equal(cyclic, 0 * x)  # integers below 2^53: exact


def test_bracket_is_the_gap_between_the_two_orders_of_two_steps(x64):
    f, g, x = (lambda p: jnp.sin(p[::-1])), (lambda p: p**2), jnp.asarray([0.3, 0.8])
    h = 1e-4
    gap = (x + h * f(x) + h * g(x + h * f(x))) - (x + h * g(x) + h * f(x + h * g(x)))
    np.testing.assert_allclose(gap / h**2, bea.lie_bracket(f, g)(x), rtol=1e-3, atol=1e-3)


def test_fields_work_under_jit_and_in_bfloat16():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    field = bea.gradient_field(lambda p: jnp.sum(p["w"] ** 2))
    assert jax.jit(bea.lie_bracket(field, field))(params)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.ones(2), "n": jnp.arange(3)}, r"params\['n'\] has dtype int32.*convert it"),
        ({"z": jnp.ones(2, jnp.complex64)}, r"params\['z'\] has dtype complex64"),
        ({"s": "text"}, r"params\['s'\] has type str"),
    ],
)
def test_a_leaf_that_is_not_floating_is_named(params, message):
    with pytest.raises(TypeError, match=message):
        bea.gradient_field(lambda p: 0.0)(params)


def test_an_empty_tree_is_refused():
    with pytest.raises(ValueError, match="a tree without arrays"):
        bea.gradient_field(lambda p: 0.0)({})


def test_a_field_with_another_tree_is_refused_and_both_trees_are_printed():
    with pytest.raises(ValueError, match=r"(?s)value of field has the tree.*'b'.*params has the tree.*'a'"):
        bea.directional_derivative(lambda p: {"b": p["a"]}, {"a": jnp.ones(2)}, {"a": jnp.ones(2)})


def test_a_field_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\['a'\] has shape \(1,\), but params\['a'\] has shape \(2,\)"):
        bea.directional_derivative(lambda p: {"a": p["a"][:1]}, {"a": jnp.ones(2)}, {"a": jnp.ones(2)})


def test_a_field_of_another_dtype_is_refused():
    with pytest.raises(TypeError, match=r"dtype bfloat16, but params.* has dtype float32"):
        bea.lie_bracket(lambda p: p.astype(jnp.bfloat16), lambda p: p)(jnp.ones(2))


def test_a_direction_with_another_tree_is_refused():
    with pytest.raises(ValueError, match="direction has the tree"):
        bea.directional_derivative(lambda p: p, {"a": jnp.ones(2)}, [jnp.ones(2)])
