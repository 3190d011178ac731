import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from bea.forecast import decayed_steps, step_times
from bea.krylov import lanczos
from tests.bea.helpers import distance, euler
from tests.strategies.problems import quadratic, tanh_loss, tanh_network


def test_lanczos_over_the_whole_space_keeps_the_matrix(x64):
    H, start = quadratic(6)
    found = lanczos(lambda v: H @ v, start, 6)
    values, _ = found.eigh()
    np.testing.assert_allclose(values, jnp.linalg.eigvalsh(H), rtol=1e-12)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(6), atol=1e-13)


def test_lanczos_ends_early_where_the_space_is_invariant(x64):
    found = lanczos(lambda v: 2.0 * v, jnp.ones(5), 3)
    np.testing.assert_allclose(found.diagonal, [2, 0, 0])
    np.testing.assert_allclose(found.off_diagonal, 0)


def test_the_largest_eigenvalue_is_within_its_residual(x64):
    H, theta = quadratic(40)
    loss = lambda p: 0.5 * p["x"] @ H @ p["x"]
    found = jax.jit(lambda p: bea.largest_eigenvalue(loss, p, steps=12))({"x": theta})
    assert 0 <= 2.0 - float(found.value) <= float(found.uncertainty)
    metric = {"x": jnp.linspace(0.5, 2, 40)}
    scaled = bea.largest_eigenvalue(loss, {"x": theta}, steps=40, metric=metric)
    root = jnp.sqrt(metric["x"])
    np.testing.assert_allclose(scaled.value, jnp.linalg.eigvalsh(root[:, None] * H * root)[-1], rtol=1e-12)


def test_an_eigenvalue_that_has_not_converged_says_so():
    H, theta = quadratic(40)
    found = bea.largest_eigenvalue(lambda p: 0.5 * p @ H @ p, theta, steps=2)
    assert "not converged" in found.reason


@pytest.mark.parametrize("tau", [0, 1, 2, 7, 8])
def test_decayed_steps_sums_the_powers(x64, tau):
    x = jnp.asarray([1e-14, 1e-9, 0.3, 0.5, 0.9, 1.0, 1.1, 1.9])
    powers = sum(((1 - x) ** j for j in range(tau)), start=jnp.zeros_like(x))
    np.testing.assert_allclose(decayed_steps(x, jnp.asarray(float(tau))), powers, rtol=1e-10, atol=1e-12)


def test_negative_curvature_is_followed_by_half_a_phase_at_most(x64):
    np.testing.assert_allclose(decayed_steps(jnp.asarray([-1e-3, -5.0]), jnp.asarray(10.0)), [10.05, 15.0])


def test_step_times_are_whole_and_grow_to_the_end():
    times = np.asarray(step_times(1000, 12, 1.5, jnp.float32))
    assert times[0] == 0
    assert times[-1] == 1000
    assert len(times) == 13
    assert (times == times.round()).all()
    assert (np.diff(times, 2)[3:] > 0).all()


def test_the_forecast_is_exact_on_a_quadratic(x64):
    H, theta = quadratic(6)
    loss = lambda p: 0.5 * p @ H @ p
    metric = jnp.linspace(0.5, 1.5, 6)
    found = jax.jit(
        lambda p, n: bea.look_ahead(loss, p, step_size=0.3, steps=n, metric=metric, relinearisations=3, krylov=6)
    )(theta, 25.0)
    end = euler(lambda p: -metric * (H @ p), theta, 0.3, 25)
    assert distance(found.params, end) < 1e-13
    assert float(found.uncertainty) < 1e-10
    np.testing.assert_allclose(found.loss, loss(end), rtol=1e-8)


@pytest.mark.parametrize(("curvature", "order"), [("hessian", 2), ("gauss_newton", 1)])
def test_the_forecast_is_of_second_order_with_the_hessian_and_of_first_with_gauss_newton(x64, curvature, order):
    rng = np.random.default_rng(1)
    x, y, params = (jnp.asarray(rng.standard_normal(shape)) for shape in ((6, 2), (6,), (6,)))

    def predict(p):
        return jnp.tanh(x @ p[:4].reshape(2, 2)) @ p[4:]

    output_loss = lambda out: jnp.mean((out - y) ** 2)
    loss = lambda p: output_loss(predict(p))
    chosen = {"hessian": bea.hessian(loss), "gauss_newton": bea.gauss_newton(predict, output_loss)}[curvature]
    h, n = 2e-4, 1024
    end = jax.jit(lambda p: jax.lax.fori_loop(0, n, lambda _, q: euler(bea.gradient_field(loss), q, h), p))(params)

    def error(part):
        found = bea.look_ahead(
            loss,
            params,
            step_size=h,
            steps=n,
            curvature=chosen,
            relinearisations=round(1 / part),
            ratio=1.0,
            krylov=6,
        )
        return distance(found.params, end)

    parts = [1 / count for count in (4, 8, 16)]
    assert bea.measured_order(error, parts).slope == pytest.approx(order, abs=0.15)


def test_a_forecast_reports_fresh_data_beside_the_batch_it_follows(x64):
    loss, fresh, params = tanh_loss(0), tanh_loss(1), tanh_network()
    found = bea.look_ahead(loss, params, step_size=0.05, steps=40, evaluate=fresh, relinearisations=4, krylov=8)
    np.testing.assert_allclose(found.loss, fresh(found.params))
    np.testing.assert_allclose(found.losses[-1], loss(found.params))
    assert "4 re-linearisations" in found.reason
    assert found._replace(loss=jnp.array(1.0), uncertainty=jnp.array(0.09)).holds
    assert not found._replace(loss=jnp.array(1.0), uncertainty=jnp.array(0.11)).holds
    assert not found._replace(loss=jnp.array(jnp.nan), uncertainty=jnp.array(0.0)).holds
    assert found.gradients == 4 * 18 + 1


def test_no_step_left_is_the_loss_now(x64):
    loss, params = tanh_loss(0), tanh_network()
    found = bea.look_ahead(loss, params, step_size=0.05, steps=0, relinearisations=2, krylov=4)
    np.testing.assert_allclose(found.loss, loss(params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"steps": -1}, "ends before it begins"),
        ({"krylov": 0}, "krylov is 0"),
        ({"ratio": 0.5}, "ratio is 0.5"),
        ({"metric": jnp.ones(3)}, r"metric has shape \(3,\)"),
    ],
)
def test_look_ahead_refuses(change, message):
    settings = {"step_size": 0.1, "steps": 5} | change
    with pytest.raises(ValueError, match=message):
        bea.look_ahead(lambda p: jnp.sum(p**2), jnp.ones(2), **settings)
