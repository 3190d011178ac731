"""Where a forecast by flows holds: its three numbers against what they stand for, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from bea.domain import EDGE, LARGEST_NOISE
from tests.strategies.problems import quadratic, tanh_loss, tanh_network


def noisy_quadratic():
    """A quadratic loss whose batches differ by a linear term, and their mean."""
    H, theta = quadratic(5)
    pulls = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5)))
    batch_loss = lambda p, pull: 0.5 * p @ H @ p + pull @ p
    return H, theta, pulls, batch_loss, lambda p: 0.5 * p @ H @ p + pulls.mean(axis=0) @ p


@pytest.mark.parametrize("metric", [None, (0.5, 0.8, 1.0, 1.2, 2.0)])
def test_the_noise_share_is_what_minibatches_add_to_a_step_over_the_descent(x64, metric):
    _, theta, pulls, batch_loss, loss = noisy_quadratic()
    M = jnp.ones(5) if metric is None else jnp.asarray(metric)
    h = 0.1
    ends = jnp.stack([loss(theta - h * M * jax.grad(batch_loss)(theta, pull)) for pull in pulls])
    slope = jax.grad(loss)(theta)
    added = ends.mean() - loss(theta - h * M * slope)  # exact on a quadratic: no further order
    share = jax.jit(lambda p: bea.noise_share(batch_loss, pulls, p, h, metric=None if metric is None else M))(theta)
    np.testing.assert_allclose(share, added / (h * slope @ (M * slope)), rtol=1e-10)


def test_where_the_noise_share_is_one_training_stops_falling(x64):
    H, _, pulls, batch_loss, loss = noisy_quadratic()
    h = 0.01  # the h² of the descent itself is left out of the share
    lowest = jnp.linalg.solve(H, -pulls.mean(axis=0))
    deltas = pulls - pulls.mean(axis=0)
    # the distribution that steps do not change: (2 − h H) H C = h H Σ in H's eigenvectors
    values, vectors = jnp.linalg.eigh(H)
    spread = jnp.mean((deltas @ vectors) ** 2, axis=0) * h / (values * (2 - h * values))
    descent = jnp.sum(values**2 * spread)  # mean of |g|²
    added = 0.5 * h * jnp.mean(jnp.sum(values * (deltas @ vectors) ** 2, axis=1))
    np.testing.assert_allclose(added / descent, 1, atol=2 * h)
    near = lowest + vectors @ jnp.sqrt(spread)  # a point with that |g|²
    share = bea.noise_share(batch_loss, pulls, near, h)
    np.testing.assert_allclose(share, added / descent, rtol=1e-10)
    domain = bea.forecast_domain(bea.look_ahead(loss, near, step_size=h, steps=10, relinearisations=2, krylov=5), share)
    assert not domain.holds
    assert "noise of minibatches" in domain.reason
    assert "fit_growth_law" in domain.reason


def test_a_forecast_tells_the_sharpness_and_declines_at_the_edge_of_stability(x64):
    H, theta = quadratic(6)  # largest eigenvalue 2
    loss = lambda p: 0.5 * p @ H @ p
    metric = jnp.linspace(0.5, 1.5, 6)
    root = jnp.sqrt(metric)
    largest = float(jnp.linalg.eigvalsh(root[:, None] * H * root)[-1])
    for below in (0.9, 1.1):
        h = below * EDGE / largest
        ahead = bea.look_ahead(loss, theta, step_size=h, steps=25, metric=metric, relinearisations=3, krylov=6)
        np.testing.assert_allclose(ahead.sharpness, h * largest, rtol=1e-6)
        domain = bea.forecast_domain(ahead)
        assert domain.holds == (below < 1)
        assert ("edge of stability" in domain.reason) == (below > 1)


def test_a_forecast_whose_models_miss_declines_and_with_more_linearisations_it_holds(x64):
    loss, params = tanh_loss(1), tanh_network(2)
    settings = {"step_size": 0.02, "steps": 100, "ratio": 1.0, "krylov": 13}
    look = lambda count: bea.look_ahead(loss, params, relinearisations=count, **settings)
    few, many = bea.forecast_domain(look(1)), bea.forecast_domain(look(50))
    assert not few.holds
    assert "models missed" in few.reason
    assert many.uncertainty < few.uncertainty
    assert many.holds, many.reason


def test_a_domain_is_no_traced_thing(x64):
    H, theta = quadratic(3)
    look = lambda p: bea.look_ahead(lambda q: 0.5 * q @ H @ q, p, step_size=0.1, steps=5, relinearisations=1, krylov=3)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda p: bea.forecast_domain(look(p)).holds)(theta)
    assert bea.forecast_domain(look(theta), LARGEST_NOISE).holds
