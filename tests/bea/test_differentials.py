import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bea
from bea.symbolic import modified_equation, with_symmetry
from bea.taylor import bernoulli_ratios, derivatives_along
from bea.trees import trees
from tests.bea.helpers import distance
from tests.strategies.problems import cubic_field, cubic_point


def by_tensors(tree, fields, params):
    """F(t) by contracting the dense derivative tensor of every node."""
    flat, unravel = ravel_pytree(params)
    derivative = lambda x: ravel_pytree(fields[tree.colour](unravel(x)))[0]
    for _ in tree.children:
        derivative = jax.jacfwd(derivative)
    value = derivative(flat)
    for child in tree.children:
        value = value @ by_tensors(child, fields, params)
    return value


def test_every_differential_of_four_nodes_is_its_contraction(x64):
    fields, params = [cubic_field()], cubic_point()
    some = [tree for tree in trees(4) if tree.order > 2]
    got, expected = jax.jit(
        lambda p: (
            [ravel_pytree(bea.elementary_differential(t, fields)(p))[0] for t in some],
            [by_tensors(t, fields, p) for t in some],
        )
    )(params)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
    assert len(some) == 6


def test_colours_say_which_field(x64):
    f, g, params = cubic_field(0), cubic_field(1), cubic_point()
    got = bea.elementary_differential("[1[]]", [f, g])(params)
    assert distance(got, bea.directional_derivative(f, params, g(params))) < 1e-14


def test_a_colour_without_a_field_is_refused():
    with pytest.raises(ValueError, match=r"'\[1\[\]\]' has a node of colour 1, but there are 1 fields"):
        bea.elementary_differential("[1[]]", lambda p: p)


def test_fields_of_order_four_are_sums_over_the_trees_with_exact_coefficients(x64):
    field, params, h = cubic_field(), cubic_point(), 0.1
    series = with_symmetry(modified_equation("euler", 4))

    def both(p):
        total = jnp.zeros(3)
        for tree, coefficient in series.items():
            total = total + float(coefficient) * h ** (tree.order - 1) * by_tensors(tree, [field], p)
        return total, ravel_pytree(bea.modified_field(field, h, 4)(p))[0]

    expected, got = jax.jit(both)(params)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_bernoulli_ratios_are_those_of_the_textbook():
    assert [str(b) for b in bernoulli_ratios(7)] == ["1", "-1/2", "1/12", "0", "-1/720", "0", "1/30240"]


def test_derivatives_along_a_curve_are_those_of_the_composition(x64):
    field = lambda p: {"a": jnp.sin(p["a"]) * p["b"], "b": p["b"] ** 2}
    params = {"a": jnp.asarray(0.3), "b": jnp.asarray(0.8)}
    curve = [{"a": jnp.asarray(a), "b": jnp.asarray(b)} for a, b in ((1.0, -0.5), (0.4, 0.2), (-0.3, 0.7))]
    at = lambda t: field(jax.tree.map(lambda x, u, v, w: x + u * t + v * t**2 / 2 + w * t**3 / 6, params, *curve))
    derivative = at
    for term in derivatives_along(field, params, curve):
        derivative = jax.jacfwd(derivative)
        assert distance(term, derivative(0.0)) < 1e-12


def test_an_operation_without_a_taylor_rule_is_named():
    field = lambda p: jnp.sort(p) + jax.lax.linalg.cholesky(jnp.outer(p, p) + jnp.eye(2))[0]
    with pytest.raises(NotImplementedError, match=r"operation without a Taylor rule in JAX .*orders up to 4 need none"):
        bea.modified_field(field, 0.1, 5)(jnp.ones(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_params_that_are_not_finite_are_named(bad):
    params = {"w": jnp.asarray([1.0, bad, bad])}
    message = r"params\['w'\] has 2 of 3 entries that are NaN or infinite: .*diverged"
    loss = lambda p: jnp.sum(p["w"] ** 2)
    field = bea.gradient_field(loss)
    for evaluate in (
        field,
        bea.modified_field(field, 0.1, 3),
        bea.modified_loss(loss, 0.1),
        bea.compose([bea.Phase(field, 0.1)]),
        bea.lie_bracket(field, field),
        bea.order_scores([field], loss, [0.1]),
        lambda p: bea.flow(field, p, 1.0, rtol=1e-4, atol=1e-4),
        lambda p: bea.log_map(lambda q: q, p, 1),
        lambda p: bea.integrability_defect(field, p, probes=2, key=jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(params)
