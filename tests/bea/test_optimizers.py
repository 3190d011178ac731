"""The logs of real optimizers against the formulas, on their slow manifolds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bea
from bea.pytrees import scale
from tests.bea.helpers import distance, slopes
from tests.strategies.problems import tanh_loss, tanh_network


def few_parameters():
    """A loss of three parameters in one array, which compiles fast, and a point."""
    rng = np.random.default_rng(7)
    x, y = jnp.asarray(rng.standard_normal((5, 3))), jnp.asarray(rng.standard_normal(5))
    return lambda p: jnp.mean((jnp.tanh(x @ p) - y) ** 2) + 0.1 * jnp.sum(jnp.sin(p)), jnp.asarray([0.4, -0.7, 0.9])


def settled(optimizer, loss, params, steps):
    """(params, state) after enough steps to be on the slow manifold."""
    step = bea.optimizer_step(optimizer, loss)
    return jax.lax.fori_loop(0, steps, lambda _, point: step(point), (params, optimizer.init(params)))


def errors_of(make, formulas, *, burn_in, order=4):
    """``h -> {formula: ‖log of the step − formula‖}`` at the point that ``burn_in`` steps lead to."""
    loss, start = few_parameters()

    def errors(h):
        optimizer = make(h)
        params, state = settled(optimizer, loss, start, burn_in)
        displacement, _ = bea.optimizer_log(optimizer, loss, params, state, order)
        return {name: distance(displacement, formula(loss, h)(params)) for name, formula in formulas.items()}

    return errors


def test_log_of_plain_descent_is_its_modified_field(x64):
    formula = lambda loss, h: lambda p: scale(h, bea.modified_field(bea.gradient_field(loss), h, order=3)(p))
    errors = errors_of(optax.sgd, {"order 3": formula}, burn_in=0, order=5)
    assert slopes(errors, largest=0.01)["order 3"] == pytest.approx(4, abs=0.15)


# (momentum, steps to the slow manifold, largest step size): short in time, so that θ hardly moves with h
@pytest.mark.parametrize(("momentum", "burn_in", "largest"), [(0.5, 50, 3e-4), (0.8, 150, 5e-5)])
def test_log_of_a_momentum_step_descends_the_modified_loss(x64, momentum, burn_in, largest):
    def descent(modified):
        return lambda loss, h: lambda p: scale(h / (1 - momentum), bea.gradient_field(modified(loss, h))(p))

    formulas = {
        "with the term": descent(lambda loss, h: bea.modified_loss(loss, h, momentum)),
        "without": descent(lambda loss, h: loss),
        "as if plain descent of step η": descent(lambda loss, h: bea.modified_loss(loss, h / (1 - momentum))),
    }
    measured = slopes(errors_of(lambda h: optax.sgd(h, momentum), formulas, burn_in=burn_in), largest, halvings=3)
    assert measured == pytest.approx(dict(zip(formulas, (3, 2, 2), strict=True)), abs=0.15)


ADAM = {"b1": 0.6, "b2": 0.7, "eps": 0.05, "eps_root": 0.02}
VARIANTS = {
    "Adam": (lambda h: optax.adam(h, **ADAM), ADAM),
    "Adam, epsilon inside only": (
        lambda h: optax.adam(h, b1=0.6, b2=0.7, eps=0.0, eps_root=0.02),
        ADAM | {"eps": 0.0},
    ),
    "RMSProp": (
        lambda h: optax.rmsprop(h, decay=0.7, eps=0.05, eps_in_sqrt=False),
        {"b1": 0.0, "b2": 0.7, "eps": 0.05},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_log_of_an_adaptive_step_has_its_first_order_correction(x64, name):
    make, constants = VARIANTS[name]

    def uncorrected(loss):
        return bea.adam_modified_field(loss, 1e-30, **constants)

    def along(field):
        return lambda loss, h: lambda p: scale(h, field(loss, h)(p))

    formulas = {
        "with the term": along(lambda loss, h: bea.adam_modified_field(loss, h, **constants)),
        "without": along(lambda loss, h: uncorrected(loss)),
        "as if it had no memory": along(lambda loss, h: bea.modified_field(uncorrected(loss), h)),
    }
    measured = slopes(errors_of(make, formulas, burn_in=100), largest=1.5e-4, halvings=3)
    assert measured == pytest.approx(dict(zip(formulas, (3, 2, 2), strict=True)), abs=0.15)


def test_with_epsilon_inside_the_root_the_correction_is_that_of_the_paper(x64):
    """−(h/2R) [(1+β)/(1−β) − (1+ρ)/(1−ρ) + (1+ρ)/(1−ρ) ε/(g² + ε)] ∇‖∇E‖_{1,ε}."""
    loss, p, h, b1, b2, eps = tanh_loss(1), tanh_network(1), 0.01, 0.9, 0.99, 0.03
    flat, unravel = ravel_pytree(p)
    gradient = jax.grad(lambda x: loss(unravel(x)))
    first, second = (1 + b1) / (1 - b1), (1 + b2) / (1 - b2)

    @jax.jit
    def papers(x):
        g = gradient(x)
        R = jnp.sqrt(g**2 + eps)
        penalty = jax.grad(lambda y: jnp.sum(jnp.sqrt(gradient(y) ** 2 + eps)))(x)
        return -(g + h / 2 * (first - second + second * eps / R**2) * penalty) / R

    expected = papers(flat)
    got = jax.jit(bea.adam_modified_field(loss, h, b1=b1, b2=b2, eps=0.0, eps_root=eps))(p)
    np.testing.assert_allclose(ravel_pytree(got)[0], expected, rtol=1e-10)


def test_a_step_count_is_a_coordinate_that_moves_by_one(x64):
    optimizer, loss, params = optax.adam(0.01), tanh_loss(0), tanh_network()
    _, state = jax.jit(lambda p: bea.optimizer_log(optimizer, loss, p, optimizer.init(p), 2))(params)
    assert float(state[0].count) == 1.0
    assert jnp.issubdtype(state[0].count.dtype, jnp.floating)


def test_an_entry_without_gradient_does_not_move_and_is_no_nan():
    field = bea.adam_modified_field(lambda p: p[0] ** 2, 0.1, b1=0.9, b2=0.99, eps=1e-8)
    velocity = field(jnp.ones(2))
    assert np.isfinite(velocity).all()
    assert velocity[1] == 0


def test_state_that_cannot_be_expanded_is_refused_by_its_place():
    optimizer = optax.sgd(0.1)
    with pytest.raises(TypeError, match=r"state\['key'\] has dtype key.*without random keys"):
        bea.optimizer_log(optimizer, jnp.sum, jnp.ones(2), {"key": jax.random.key(0)}, 2)
    with pytest.raises(TypeError, match=r"state\['on'\] has dtype bool"):
        bea.optimizer_log(optimizer, jnp.sum, jnp.ones(2), {"on": jnp.asarray(True)}, 2)


def test_an_optimizer_whose_state_changes_its_tree_is_refused():
    growing = optax.GradientTransformation(lambda p: (), lambda g, s, p: (g, (*s, 0.0)))
    with pytest.raises(ValueError, match=r"(?s)state has the tree.*before a step and.*after it"):
        bea.optimizer_log(growing, jnp.sum, jnp.ones(2), (), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b1": 1.0}, r"b1 is 1.0, but a decay has to be in \[0, 1\)"),
        ({"b2": -0.1}, r"b2 is -0.1"),
        ({"eps": 0.0}, r"eps is 0.0 and eps_root is 0.0, but both have to be nonnegative and one positive"),
    ],
)
def test_constants_of_adam_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        bea.adam_modified_field(jnp.sum, 0.1, **({"b1": 0.9, "b2": 0.99, "eps": 1e-8} | change))
