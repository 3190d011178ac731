import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from tests.bea.helpers import EXACT


def test_flow_of_a_rotation_turns_by_the_time(x64):
    params = {"x": jnp.asarray([1.0]), "y": jnp.asarray([0.0])}
    end = bea.flow(lambda p: {"x": -p["y"], "y": p["x"]}, params, 2.0, **EXACT)
    np.testing.assert_allclose([end["x"][0], end["y"][0]], [np.cos(2), np.sin(2)], atol=1e-12)


def test_flow_backwards_undoes_the_flow(x64):
    field, start = (lambda p: jnp.sin(p)), jnp.asarray([0.5, 2.0])
    back = bea.flow(field, bea.flow(field, start, 1.5, **EXACT), -1.5, **EXACT)
    np.testing.assert_allclose(back, start, atol=1e-12)


def test_flow_for_no_time_is_the_start():
    start = jnp.ones(2)
    assert bea.flow(lambda p: p, start, 0.0, rtol=1e-6, atol=1e-6) is start


def test_flow_is_differentiable(x64):
    end = lambda start: bea.flow(lambda p: -p, start, 1.0, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(jax.grad(end)(jnp.asarray(2.0)), np.exp(-1), rtol=1e-8)


def test_a_flow_that_blows_up_is_an_error_that_says_so(x64):
    with pytest.raises(bea.FlowError, match=r"did not reach time 2 in \d+ solver steps .*blows up"):
        bea.flow(lambda p: p**2, jnp.asarray([1.0]), 2.0, rtol=1e-8, atol=1e-8, max_steps=200)


def test_a_flow_that_fails_inside_jit_is_nan(x64):
    run = jax.jit(lambda p: bea.flow(lambda q: q**2, p, 2.0, rtol=1e-8, atol=1e-8, max_steps=100))
    assert np.isnan(run(jnp.asarray([1.0]))).all()
    assert np.isfinite(run(jnp.asarray([0.1]))).all()


def test_a_tolerance_below_the_precision_is_refused():
    with pytest.raises(ValueError, match=r"rtol is 1e-12, finer than float32 resolves.*enable_x64"):
        bea.flow(lambda p: p, jnp.ones(2, jnp.float32), 1.0, rtol=1e-12, atol=1e-6)


def test_a_tolerance_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"atol is 0.0, but has to be positive"):
        bea.flow(lambda p: p, jnp.ones(2), 1.0, rtol=1e-6, atol=0.0)


def test_an_infinite_time_is_refused():
    with pytest.raises(ValueError, match="time is inf"):
        bea.flow(lambda p: p, jnp.ones(2), float("inf"), rtol=1e-6, atol=1e-6)


def test_measured_order_of_a_power_is_its_exponent():
    measured = bea.measured_order(lambda h: 7 * h**2.5, [0.1, 0.05, 0.025])
    assert measured.slope == pytest.approx(2.5)
    assert measured.residual < 1e-12
    assert measured.points[0] == pytest.approx((0.1, 7 * 0.1**2.5))


def test_residual_of_measured_order_is_the_distance_from_the_line():
    """log error = log h + (d, −2d, d): the line through it is log h itself."""
    offsets = {1.0: 0.1, 0.5: -0.2, 0.25: 0.1}
    measured = bea.measured_order(lambda h: h * np.exp(offsets[h]), list(offsets))
    assert measured.slope == pytest.approx(1.0)
    assert measured.residual == pytest.approx(0.1 * np.sqrt(2))


@pytest.mark.parametrize(
    ("error", "sizes", "message"),
    [
        (lambda h: h, [0.1, 0.05], "2 different sizes.*needs at least 3"),
        (lambda h: h, [0.1, 0.1, 0.05], "2 different sizes"),
        (lambda h: h, [0.1, -0.1, 0.05], "step_sizes has -0.1"),
        (lambda h: 0.0, [0.1, 0.05, 0.025], "error at step size 0.1 is 0, which has no logarithm"),
        (lambda h: float("nan"), [0.1, 0.05, 0.025], "error at step size 0.1 is nan, not a finite norm"),
        (lambda h: -h, [0.1, 0.05, 0.025], "error at step size 0.1 is -0.1"),
    ],
)
def test_measured_order_refuses(error, sizes, message):
    with pytest.raises(ValueError, match=message):
        bea.measured_order(error, sizes)
