"""How copies part, on two- and threefold copies of small MLPs that have been trained a little; float64."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bea
from bea.pytrees import axpy, norm, scale, subtract
from fusion_core.growth import MLPConfig, fuse, fusion_map
from tests.bea.helpers import EXACT, distance, euler, slopes
from toy_models import mlp, teacher

SIZES, STEP = (3, 4, 4, 1), 0.1


@functools.cache
def _grown(copies, steps=600):
    """Return loss, exchange and parameters of a network that is fused with itself after some steps of gradient descent."""
    train = teacher.teacher_task((3, 8, 1), seed=0, train=32, validation=1, dtype=jnp.float64).train
    loss = mlp.mse_loss(*train)
    small = jax.lax.fori_loop(
        0, steps, lambda _, p: euler(bea.gradient_field(loss), p, STEP), mlp.init(SIZES, seed=1, dtype=jnp.float64)
    )
    mapping = fusion_map([MLPConfig(SIZES)] * copies)
    return loss, mapping.exchanges, mapping.embed((small,) * copies)


def _noisy(params, copies, noise):
    exact = MLPConfig(SIZES)
    small = fusion_map([exact] * copies).pinv(params)[0]
    return fuse([(small, exact)] * copies, off_diagonal="antisymmetric", noise=noise, seed=3)[0]


def _antisymmetric_block(loss, exchange, params, metric=None):
    """Return the dense Hessian, preconditioned, between antisymmetric parameters."""

    @jax.jit
    def block(flat, root):
        project = lambda v: ravel_pytree(bea.antisymmetric_part(exchange, unravel(v)))[0]
        projection = jax.vmap(project)(jnp.eye(flat.size)).T
        H = jax.hessian(lambda v: loss(unravel(v)))(flat)
        return projection @ (root[:, None] * H * root) @ projection

    flat, unravel = ravel_pytree(bea.symmetric_part(exchange, params))
    return block(flat, jnp.ones_like(flat) if metric is None else jnp.sqrt(ravel_pytree(metric)[0]))


def _rate(loss, exchange, params, metric=None, **options):
    return jax.jit(lambda p: bea.separation_rate(loss, exchange, p, metric, **options))(params)


@pytest.mark.parametrize("copies", [2, 3])
def test_symmetric_parameters_have_no_antisymmetric_gradient(x64, copies):
    loss, exchange, params = _grown(copies)
    gradient = jax.grad(loss)(params)
    assert float(norm(bea.antisymmetric_part(exchange, params))) < 1e-14
    assert float(norm(bea.antisymmetric_part(exchange, gradient))) < 1e-14 < 1e-3 < float(norm(gradient))
    parted = axpy(0.1, _drawn(params), params)
    assert float(norm(bea.antisymmetric_part(exchange, jax.grad(loss)(parted)))) > 1e-3


def _drawn(params, seed=5):
    flat, unravel = ravel_pytree(params)
    return unravel(jax.random.normal(jax.random.key(seed), flat.shape, flat.dtype))


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_rate_is_the_least_eigenvalue_of_the_antisymmetric_block(x64, copies, preconditioned):
    loss, exchange, params = _grown(copies)
    metric = None
    if preconditioned:
        metric = bea.symmetric_part(exchange, jax.tree.map(lambda x: 0.5 + jnp.abs(x), _drawn(params)))
    values, vectors = jnp.linalg.eigh(_antisymmetric_block(loss, exchange, params, metric))
    found = _rate(loss, exchange, params, metric, steps=200, directions=2)
    np.testing.assert_allclose(found.rates, -values[:2], rtol=1e-9)
    assert float(found.rate) > 0.01
    assert float(found.uncertainty) < 1e-9
    root = 1.0 if metric is None else jnp.sqrt(ravel_pytree(metric)[0])
    along = root * vectors[:, 0] / jnp.linalg.norm(root * vectors[:, 0])
    if float(values[1] - values[0]) > 1e-6:  # for three copies the eigenvalue is double: a plane of directions
        np.testing.assert_allclose(abs(jnp.vdot(ravel_pytree(found.direction())[0], along)), 1, rtol=1e-9)
    assert float(norm(bea.symmetric_part(exchange, found.direction()))) < 1e-12


def test_few_steps_bound_the_rate_from_below_and_say_so(x64):
    loss, exchange, params = _grown(2)
    exact = float(_rate(loss, exchange, params, steps=200).rate)
    found = bea.separation_rate(loss, exchange, params, steps=3)
    assert 0 < exact - float(found.rate) <= float(found.uncertainty)
    assert "lower bound" in found.reason


def test_all_permutations_of_three_copies_give_the_rate_of_the_cyclic_ones(x64):
    loss, exchange, params = _grown(3)

    def every(p):
        return [_permuted(p, order) for order in itertools.permutations(range(3))]

    cyclic = _rate(loss, exchange, params, steps=200)
    all_of_them = _rate(loss, every, params, steps=200)
    np.testing.assert_allclose(cyclic.rate, all_of_them.rate, rtol=1e-9)
    block = lambda group: _antisymmetric_block(loss, group, params)
    rank = lambda matrix: int(jnp.sum(jnp.abs(jnp.linalg.eigvalsh(matrix)) > 1e-9))
    assert rank(block(exchange)) == rank(block(every))
    circulant = subtract(bea.symmetric_part(exchange, _drawn(params)), bea.symmetric_part(every, _drawn(params)))
    assert float(norm(circulant)) > 0.1
    curvature = jax.jvp(jax.grad(loss), (params,), (circulant,))[1]
    assert float(norm(bea.antisymmetric_part(every, curvature))) < 1e-12


def _permuted(params, order):
    """Exchange three copies of every hidden unit, as the layers of the MLP say it."""
    units = np.concatenate([np.arange(4) + 4 * copy for copy in order])
    last = len(params["layers"]) - 1
    layers = []
    for i, layer in enumerate(params["layers"]):
        weight = layer["weight"] if i == 0 else layer["weight"][:, units]
        layers.append(
            {
                "weight": weight if i == last else weight[units],
                "bias": layer["bias"] if i == last else layer["bias"][units],
            }
        )
    return {"layers": layers}


@pytest.mark.parametrize("copies", [2, 3])
def test_the_exchange_of_a_growth_map_is_that_of_the_copies(x64, copies):
    loss, exchange, params = _grown(copies)
    drawn = axpy(0.3, _drawn(params), params)
    images = exchange(drawn)
    assert len(images) == copies
    for image in images[1:]:
        np.testing.assert_allclose(loss(image), loss(drawn), rtol=1e-12)
        assert float(distance(image, drawn)) > 0.1
    if copies == 3:
        orders = [(1, 2, 0), (2, 0, 1)]
        assert min(float(distance(images[1], _permuted(drawn, order))) for order in orders) == 0


def test_measured_growth_of_the_difference_is_the_predicted_one_within_five_percent(x64):
    loss, exchange, params = _grown(2, 150)
    noisy = _noisy(params, 2, 1e-5)
    field, end = bea.gradient_field(loss), 4000
    start = bea.antisymmetric_part(exchange, noisy)
    tangent = bea.separation_field(field, exchange)
    predicted = jax.jit(lambda p, d: bea.flow(tangent, (p, d), end * STEP, rtol=1e-6, atol=1e-12)[1])
    trained = jax.lax.fori_loop(0, end, lambda _, p: euler(field, p, STEP), noisy)
    measured = float(norm(bea.antisymmetric_part(exchange, trained)))
    assert measured > 10 * float(norm(start))
    np.testing.assert_allclose(float(norm(predicted(params, start))), measured, rtol=0.05)


def test_the_modified_field_predicts_the_difference_one_order_better(x64):
    loss, exchange, params = _grown(2)
    start = scale(1e-6, bea.antisymmetric_part(exchange, _drawn(params)))
    noisy, time, f = axpy(1.0, start, params), 1.6, bea.gradient_field(loss)

    def errors(h):
        steps = jnp.round(time / h).astype(int)
        trained = jax.lax.fori_loop(0, steps, lambda _, p: jax.tree.map(lambda x, v: x + h * v, p, f(p)), noisy)
        measured = bea.antisymmetric_part(exchange, trained)
        fields = {order: bea.modified_field(f, h, order=order) for order in (1, 2, 3)}
        flows = {
            order: bea.flow(bea.separation_field(g, exchange), (params, start), time, **EXACT)
            for order, g in fields.items()
        }
        return {str(order): distance(found[1], measured) for order, found in flows.items()}

    found = slopes(errors, largest=0.2, halvings=3)
    for order in (1, 2):
        assert abs(found[str(order)] - order) < 0.15, found
    assert found["3"] > 2.5


def test_the_modified_rate_is_that_of_the_modified_loss_to_first_order(x64):
    loss, exchange, params = _grown(2)
    plain = _rate(loss, exchange, params, steps=200)

    def errors(h):
        exact = bea.separation_rate(bea.modified_loss(loss, h), exchange, params, steps=200).rate
        at_rest = jnp.log1p(h * plain.rate) / h  # leaves out that the symmetric point moves
        return {"h": abs(plain.rate - exact), "h2": abs(plain.modified(h).rate - exact), "rest": abs(at_rest - exact)}

    found = slopes(errors, largest=0.02, halvings=3)
    assert abs(found["h"] - 1) < 0.15
    assert abs(found["h2"] - 2) < 0.15
    assert abs(found["rest"] - 1) < 0.15


def test_more_noise_comes_as_many_steps_sooner_as_predicted(x64):
    loss, exchange, params = _grown(2, 2000)
    found = _rate(loss, exchange, params, steps=200)
    f = bea.gradient_field(loss)

    def steps_until(noise, share=1e-4):
        start = axpy(noise, found.direction(), params)
        apart = lambda p: norm(bea.antisymmetric_part(exchange, p))
        first = (0, start)
        step = lambda carry: (carry[0] + 1, euler(f, carry[1], STEP))
        return int(jax.lax.while_loop(lambda carry: apart(carry[1]) < share, step, first)[0])

    gained = steps_until(2e-5) - steps_until(5e-5)
    np.testing.assert_allclose(gained, found.steps_gained(5e-5, 2e-5, STEP), rtol=0.05)
    assert found.steps_until(1e-4, 2e-5, STEP) == pytest.approx(math.log(5) / (STEP * float(found.rate)))


def test_a_push_along_the_leading_direction_lowers_the_loss_by_half_the_rate(x64):
    loss, exchange, params = _grown(2)
    found, size = _rate(loss, exchange, params, steps=200), 1e-3
    change = loss(axpy(size, found.direction(), params)) - loss(params)
    np.testing.assert_allclose(change, -0.5 * found.rate * size**2, rtol=1e-3)


def test_wrong_exchanges_are_refused(x64):
    loss, exchange, params = _grown(2)
    with pytest.raises(ValueError, match="no projection"):
        bea.separation_rate(loss, lambda p: [*exchange(p)[1:], scale(2.0, p)], params)
    first_only = lambda p: [p, {"layers": [exchange(p)[1]["layers"][0], *p["layers"][1:]]}]
    with pytest.raises(ValueError, match="the loss changes under an exchange"):
        bea.separation_rate(loss, first_only, params)
    with pytest.raises(ValueError, match="steps is 0"):
        bea.separation_rate(loss, exchange, params, steps=0)
    with pytest.raises(ValueError, match="raise steps"):
        bea.separation_rate(loss, exchange, params, steps=1, directions=2)


def test_a_point_that_is_no_saddle_never_parts():
    swap = lambda p: [p, p[::-1]]
    found = bea.separation_rate(lambda p: jnp.sum(p**2) + p[0] * p[1], swap, jnp.asarray([0.3, 0.3]))
    np.testing.assert_allclose(found.rate, -1, rtol=1e-6)
    assert found.steps_until(1.0, 0.1, 0.1) == math.inf
    assert "no direction" in found.reason
