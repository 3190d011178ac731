import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from bea.pytrees import inner, scale
from tests.bea.helpers import EXACT, distance, euler, slope
from tests.strategies.problems import cubic_field, cubic_point, modified_hessian, quadratic, tanh_loss, tanh_network


@pytest.mark.parametrize("order", [2, 5])
def test_flow_of_the_modified_field_misses_the_step_by_one_order_more(x64, order):
    field, start = cubic_field(), cubic_point()

    def error(h):
        return distance(bea.flow(bea.modified_field(field, h, order), start, h, **EXACT), euler(field, start, h))

    assert slope(error) == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_modified_field_agrees_with_the_logarithm_of_the_step(x64, order):
    """Order 1 has no correction at all, so each order is also the test that the term of the next one matters."""
    field, start = bea.gradient_field(tanh_loss(0)), tanh_network()

    def error(h):
        log = bea.log_map(lambda p: euler(field, p, h), start, order + 2)
        return distance(scale(h, bea.modified_field(field, h, order)(start)), log)

    measured = slope(error, largest=0.02) if order < 4 else slope(error, largest=0.008, halvings=2)
    assert measured == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
def test_modified_field_on_a_quadratic_is_the_series_of_the_logarithm(x64, order):
    H, start = quadratic(4)

    def error(h):
        exact = -h * modified_hessian(H, h) @ start
        return jnp.linalg.norm(h * bea.modified_field(lambda p: -H @ p, h, order)(start) - exact)

    assert slope(error) == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_log_map_is_right_through_its_order(x64, order):
    H, start = quadratic(4)

    def error(h):
        exact = -h * modified_hessian(H, h) @ start
        return jnp.linalg.norm(bea.log_map(lambda p: p - h * H @ p, start, order) - exact)

    assert slope(error, largest=0.2, halvings=3) == pytest.approx(order + 1, abs=0.25)


def test_modified_loss_has_the_modified_field_as_its_descent(x64):
    loss, params, h = tanh_loss(0), tanh_network(), 0.1
    got = jax.jit(bea.gradient_field(bea.modified_loss(loss, h)))(params)
    expected = jax.jit(bea.modified_field(bea.gradient_field(loss), h, order=2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, expected)


def test_modified_loss_in_a_metric_has_the_modified_field_of_the_preconditioned_step(x64):
    loss, params, h = tanh_loss(1), tanh_network(1), 0.1
    rng = np.random.default_rng(0)
    metric = jax.tree.map(lambda p: jnp.asarray(rng.uniform(0, 2, p.shape)), params)

    def descend(some_loss):
        return lambda p: jax.tree.map(lambda m, g: -m * g, metric, jax.grad(some_loss)(p))

    got = jax.jit(descend(bea.modified_loss(loss, h, metric=metric)))(params)
    expected = jax.jit(bea.modified_field(descend(loss), h))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, expected)
    without = jax.jit(descend(bea.modified_loss(loss, h)))(params)
    assert distance(without, expected) > 1e-3 * distance(expected, jax.tree.map(jnp.zeros_like, expected))


@pytest.mark.parametrize("with_metric", [False, True])
def test_modified_loss_has_the_first_and_second_derivatives_of_its_formula_in_all_it_depends_on(x64, with_metric):
    """Its derivative in params is a rule of ours; the step size, the metric and what the loss closes over count too."""
    loss, params = tanh_loss(0), tanh_network()
    rng = np.random.default_rng(0)
    metric = jax.tree.map(lambda p: jnp.asarray(rng.uniform(0.5, 2, p.shape)), params)

    def ours(p, h, c, m):
        return bea.modified_loss(lambda q: c * loss(q), h, 0.5, metric=m if with_metric else None)(p)

    def formula(p, h, c, m):
        value, g = jax.value_and_grad(lambda q: c * loss(q))(p)
        moved = jax.tree.map(jnp.multiply, m, g) if with_metric else g
        return value + 2 * h / 4 * 3 * inner(g, moved)

    point = (params, 0.1, 1.3, metric)
    along = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(np.shape(leaf))), point)

    def derivatives(f):
        gradient = jax.grad(f, argnums=(0, 1, 2, 3))
        return jax.jit(lambda p, u: (f(*p), jax.jvp(f, p, u), *jax.jvp(gradient, p, u), jax.grad(f)(*p)))(point, along)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), derivatives(ours), derivatives(formula)
    )


@pytest.mark.parametrize(("momentum", "rate"), [(0.0, 1.0), (0.5, 2.5), (0.9, 1.0)])
def test_momentum_follows_the_dominant_root_on_quadratics(x64, momentum, rate):
    """r² − (1 + β − hMλ) r + β = 0; one step is exp(−η M λ̃) on the slow manifold."""
    curvature = 1.3
    loss = lambda p: 0.5 * curvature * p**2
    metric = jnp.asarray(rate)

    def error_of(weight_of_correction):
        def error(h):
            eta = h / (1 - momentum)
            trace = 1 + momentum - h * rate * curvature
            root = (trace + jnp.sqrt(trace**2 - 4 * momentum)) / 2
            modified = bea.modified_loss(loss, h, momentum, metric=metric)
            modified_curvature = jax.grad(jax.grad(modified))(jnp.asarray(1.0))
            kept = curvature + weight_of_correction * (modified_curvature - curvature)
            return jnp.abs(jnp.log(root) + eta * rate * kept)

        return error

    largest = 0.04 * (1 - momentum) ** 2
    assert slope(error_of(1.0), largest) == pytest.approx(3, abs=0.15)
    assert slope(error_of(0.0), largest) == pytest.approx(2, abs=0.15)
    if momentum:  # the factor (1 + β)/(1 − β) matters, η alone is not enough
        assert slope(error_of((1 - momentum) / (1 + momentum)), largest) == pytest.approx(2, abs=0.15)


def test_modified_loss_can_be_jitted_over_the_step_size():
    value = jax.jit(lambda h, p: bea.modified_loss(lambda q: jnp.sum(q**2), h)(p))(0.1, jnp.ones(2))
    np.testing.assert_allclose(value, 2 + 0.1 / 4 * 8, rtol=1e-6)


STEP_SIZE = "but has to be positive and finite: pass the learning rate"
WHOLE = "but has to be a positive integer"
zero_loss, two = (lambda p: 0.0), np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        *((lambda h=h: bea.modified_field(lambda p: p, h), ValueError, f"step_size is {h!r}, {STEP_SIZE}")
          for h in (0.0, -0.1, float("inf"), float("nan"))),
        *((lambda h=h: bea.modified_loss(zero_loss, h), ValueError, f"step_size is {h!r}, {STEP_SIZE}")
          for h in (0.0, float("nan"))),
        (lambda: bea.modified_field(lambda p: p, two), TypeError, "not a real scalar"),
        *((lambda n=n: bea.modified_field(lambda p: p, 0.1, n), ValueError, f"order is {n}, {WHOLE}") for n in (0, -1, True)),
        *((lambda n=n: bea.log_map(lambda p: p, two, n), ValueError, f"order is {n}, {WHOLE}") for n in (0, True)),
        *((lambda b=b: bea.modified_loss(zero_loss, 0.1, b), ValueError, r"momentum is .*has to be in \[0, 1\)")
          for b in (-0.1, 1.0, float("nan"))),
        (lambda: bea.modified_loss(zero_loss, 0.1, metric={"w": -two}), ValueError, r"metric\['w'\] has an entry -1.0"),
        (lambda: bea.modified_loss(jnp.sum, 0.1, metric={"w": two})(jnp.ones(2)), ValueError, "metric has the tree"),
        (lambda: bea.log_map(lambda p: [p], two, 1), ValueError, "value of step has the tree"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_refused_by_its_name(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
