import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from bea.pytrees import axpy, scale
from tests.bea.helpers import slope
from tests.strategies.problems import quadratic, tanh_loss, tanh_network


def test_predicted_decrease_is_right_to_second_order(x64):
    loss, params = tanh_loss(0), tanh_network()
    direction = bea.gradient_field(tanh_loss(1))(params)

    def error(h):
        step = scale(h, direction)
        return jnp.abs(loss(params) - loss(axpy(1.0, step, params)) - bea.predicted_decrease(loss, params, step))

    assert slope(error, largest=0.02) == pytest.approx(3, abs=0.15)


def test_predicted_decrease_is_exact_on_a_quadratic(x64):
    H, theta = quadratic(4)
    loss = lambda p: 0.5 * p @ H @ p
    step = -0.3 * (H @ theta)
    np.testing.assert_allclose(bea.predicted_decrease(loss, theta, step), loss(theta) - loss(theta + step), rtol=1e-12)
    model = bea.quadratic_model(loss, theta, step)
    np.testing.assert_allclose(model.decrease(0.5), loss(theta) - loss(theta + 0.5 * step), rtol=1e-12)


def test_best_step_size_is_the_minimum_along_the_line(x64):
    H, theta = quadratic(4)
    loss, u = (lambda p: 0.5 * p @ H @ p), -(H @ theta)
    best = bea.best_step_size(loss, theta, u)
    np.testing.assert_allclose(best, (u @ u) / (u @ H @ u), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda h: loss(theta + h * u))(best), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "direction", "expected"),
    [
        (lambda p: -jnp.sum(p**2), 1.0, np.inf),  # downhill, bending down
        (jnp.sum, -1.0, np.inf),  # downhill, straight
        (lambda p: jnp.sum(p**2), 1.0, 0.0),  # uphill
        (lambda p: -jnp.sum(p**2), -1.0, 0.0),  # uphill, bending down
    ],
)
def test_best_step_size_without_a_positive_optimum(loss, direction, expected):
    params = jnp.ones(2)
    assert float(jax.jit(lambda p: bea.best_step_size(loss, p, jnp.full(2, direction)))(params)) == expected


def test_best_step_size_of_a_broken_loss_is_nan():
    assert np.isnan(bea.best_step_size(lambda p: jnp.sum(p) * jnp.nan, jnp.ones(2), -jnp.ones(2)))


def test_a_displacement_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"direction has shape \(3,\), but params has shape \(2,\)"):
        bea.predicted_decrease(jnp.sum, jnp.ones(2), jnp.ones(3))


STEPS = [10, 20, 30, 40, 50]
SMALL = [5.0, 4.0, 3.0, 2.0, 1.0]
GROWN = [1.0, 4.5, 1.5, 2.5, 2.5]


def test_growth_is_at_the_first_step_whose_grown_rate_passes_and_says_the_numbers():
    decision = bea.greedy_growth_step(STEPS, SMALL, GROWN)
    assert decision.step == 20
    assert "Grow at step 20" in decision.reason
    assert "4.5" in decision.reason
    assert "for the first time" in decision.reason


def test_a_window_sees_through_one_noisy_record():
    assert bea.greedy_growth_step(STEPS, SMALL, GROWN, window=3).step == 50
    assert "medians over 3 records" in bea.greedy_growth_step(STEPS, SMALL, GROWN, window=3).reason


def test_no_crossing_is_answered_as_not_within_this_record():
    decision = bea.greedy_growth_step(STEPS, SMALL, [0.5] * 5)
    assert decision.step is None
    assert "Not within this record: from step 10 to 50" in decision.reason
    assert "0.5 against 1" in decision.reason


def test_less_loss_increase_is_no_reason_to_grow():
    assert bea.greedy_growth_step([1, 2], [-2.0, -2.0], [-1.0, -1.0]).step is None


def test_a_record_shorter_than_the_window_decides_nothing():
    decision = bea.greedy_growth_step([1], [1.0], [2.0], window=3)
    assert decision.step is None
    assert "1 records, and a decision needs 3" in decision.reason


def test_a_crossing_at_the_first_record_says_that_it_was_there_already():
    assert "already at the first decision" in bea.greedy_growth_step([7], [1.0], [2.0]).reason


@pytest.mark.parametrize(
    ("steps", "small", "grown", "message"),
    [
        ([1, 2], [1.0], [1.0, 2.0], r"shapes \(2,\), \(1,\) and \(2,\)"),
        ([], [], [], "with one record at least"),
        ([2, 1], [1.0, 1.0], [1.0, 1.0], "steps goes from 2 to 1"),
        ([1, 2], [1.0, float("nan")], [1.0, 1.0], "small_rates is nan at step 2"),
        ([1, 2], [1.0, 1.0], [float("inf"), 1.0], "grown_rates is inf at step 1"),
    ],
)
def test_greedy_growth_step_refuses(steps, small, grown, message):
    with pytest.raises(ValueError, match=message):
        bea.greedy_growth_step(steps, small, grown)


def test_a_window_without_records_is_refused():
    with pytest.raises(ValueError, match="window is 0"):
        bea.greedy_growth_step([1], [1.0], [1.0], window=0)
