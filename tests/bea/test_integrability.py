import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bea
from bea.pytrees import subtract
from tests.strategies.problems import cubic_field, cubic_point, tanh_loss, tanh_network


def dense(field, params):
    """‖A‖_F / ‖J‖_F, ‖A‖_F and ‖J‖_F from the whole Jacobian."""
    flat, unravel = ravel_pytree(params)
    J = np.asarray(jax.jit(jax.jacfwd(lambda x: ravel_pytree(field(unravel(x)))[0]))(flat))
    A = (J - J.T) / 2
    return np.linalg.norm(A) / np.linalg.norm(J), np.linalg.norm(A), np.linalg.norm(J)


def test_the_estimate_is_the_dense_defect_within_its_error(x64):
    field, params = cubic_field(), cubic_point()
    got = jax.jit(lambda p: bea.integrability_defect(field, p, probes=400, key=jax.random.key(0)))(params)
    value, antisymmetric, jacobian = dense(field, params)
    assert abs(got.value - value) < 3 * got.standard_error
    assert got.standard_error < 0.05 * value
    np.testing.assert_allclose([got.antisymmetric, got.jacobian], [antisymmetric, jacobian], rtol=0.1)


def test_the_standard_error_is_the_spread_of_the_estimates(x64):
    field, params = cubic_field(), cubic_point()
    estimate = lambda key: bea.integrability_defect(field, params, probes=32, key=key)
    many = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(1), 300))
    assert np.sqrt(np.mean(np.square(many.standard_error))) == pytest.approx(np.std(many.value), rel=0.25)


def test_a_gradient_has_none_and_a_rotation_nothing_else(x64):
    measure = lambda field, params: bea.integrability_defect(field, params, probes=3, key=jax.random.key(0))
    gradient = jax.jit(lambda p: measure(bea.gradient_field(tanh_loss(0)), p))(tanh_network())
    assert gradient.value < 1e-14
    rotation = measure(lambda p: jnp.stack([-p[1], p[0]]), jnp.ones(2))
    assert float(rotation.value) == pytest.approx(1)
    assert float(rotation.standard_error) == pytest.approx(0, abs=1e-12)
    assert measure(jnp.ones_like, jnp.ones(2)).value == 0


def test_the_first_correction_is_a_gradient_and_the_second_is_not(x64):
    """So a modified loss exists to first order in h, and an honest field beyond."""
    field, params, h = bea.gradient_field(tanh_loss(0)), tanh_network(), 0.1

    def correction(order):
        high, low = (bea.modified_field(field, h, p) for p in (order, order - 1))
        return lambda p: subtract(high(p), low(p))

    measure = jax.jit(
        lambda p: [bea.integrability_defect(correction(q), p, probes=64, key=jax.random.key(0)) for q in (2, 3)]
    )
    first, second = measure(params)
    assert first.value < 1e-12
    assert second.value > 10 * second.standard_error > 0
    assert abs(second.value - dense(correction(3), params)[0]) < 4 * second.standard_error


def test_a_growth_event_measures_the_defect_of_its_conflict(x64):
    rng = np.random.default_rng(0)
    J = jnp.asarray(rng.standard_normal((4, 2)))
    event = bea.GrowthEvent.from_linear(lambda s: J @ s, jnp.zeros(2))
    small, grown = bea.gradient_field(lambda s: jnp.sum(jnp.sin(s))), bea.gradient_field(lambda p: jnp.sum(p**4) / 4)
    params = J @ jnp.asarray([0.5, -1.0])
    got = jax.jit(lambda p: event.integrability_defect(small, grown, p, probes=300, key=jax.random.key(0)))(params)
    value, *_ = dense(event.conflict(small, grown), params)
    assert value > 0.05
    assert abs(got.value - value) < 3 * got.standard_error


def test_one_probe_has_no_error_and_is_refused():
    with pytest.raises(ValueError, match="probes is 1, but a standard error needs at least 2"):
        bea.integrability_defect(lambda p: p, jnp.ones(2), probes=1, key=jax.random.key(0))
