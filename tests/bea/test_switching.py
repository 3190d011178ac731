import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from bea.costates import run_phase
from tests.bea.helpers import EXACT, distance, euler
from tests.strategies.problems import tanh_loss, tanh_network


@pytest.mark.parametrize("steps", [1, 7, 9])
def test_the_costate_is_the_gradient_through_all_steps(x64, steps):
    loss, params = tanh_loss(0), tanh_network()
    field = bea.gradient_field(tanh_loss(1))
    phase = bea.Phase(field, 0.1, steps)
    found = jax.jit(lambda p: bea.costate(phase, loss, p))(params)
    plain = lambda p: loss(euler(field, p, 0.1, steps))
    np.testing.assert_allclose(found.final_loss, plain(params), **EXACT)
    assert distance(found.costate, jax.grad(plain)(params)) < 1e-13


def test_reverse_mode_through_a_phase_keeps_about_two_roots_of_its_steps(x64):
    params = jnp.ones(1000)
    grad = lambda steps: jax.jit(jax.grad(lambda p: run_phase(bea.Phase(lambda q: -q * q, 1e-3, steps), p).sum()))
    temporaries = lambda steps: grad(steps).lower(params).compile().memory_analysis().temp_size_in_bytes / params.nbytes
    assert temporaries(400) < 3 * 2 * 400**0.5
    assert temporaries(1600) < 2.5 * temporaries(400)


def synthetic(loss):
    """Switching functions of a formula for the final loss."""
    slope = jax.grad(loss)
    return lambda n: bea.Switching(jnp.asarray(slope(float(n))), jnp.zeros(()), slope(float(n)), loss(float(n)), 2)


def test_the_optimum_is_the_lowest_of_several_roots_and_takes_few_evaluations():
    loss = lambda n: 2 + jnp.cos(n / 25) + 0.002 * n  # minima near 78, 235 and so on
    best = bea.optimal_growth_step(synthetic(loss), 400, evaluations=9)
    assert abs(best.step - 77) <= 1
    assert len(best.evaluated) <= 9
    assert best.bracket[0] <= best.step <= best.bracket[1]
    assert f"Grow at step {best.step}" in best.reason


def test_a_loss_that_falls_to_the_end_is_answered_as_not_within_this_budget():
    best = bea.optimal_growth_step(synthetic(lambda n: 1 / (1 + n)), 100)
    assert best.step is None
    assert "Not within this budget" in best.reason


def test_a_loss_that_rises_is_grown_at_once():
    assert bea.optimal_growth_step(synthetic(lambda n: 1 + n / 10), 100).step == 0


def test_a_sentence_says_when_the_sign_is_not_resolved():
    unresolved = bea.Switching(jnp.asarray(1e-3), jnp.asarray(1e-2), jnp.zeros(()), jnp.ones(()), 2)
    assert "its sign is not resolved" in unresolved.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last_step": 0}, "last_step is 0"),
        ({"last_step": 9, "evaluations": 2}, "2 evaluations do not reach"),
        ({"last_step": 9, "start": (0.0, 0.5)}, "has to hold the ends"),
    ],
)
def test_optimal_growth_step_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        bea.optimal_growth_step(synthetic(lambda n: n), **arguments)


def test_a_diverged_run_is_named_by_its_step():
    with pytest.raises(ValueError, match="growing at step 0 ends at loss nan"):
        bea.optimal_growth_step(synthetic(lambda n: n * jnp.nan), 10)


def test_switching_function_refuses_costs_and_orders():
    event = bea.GrowthEvent.from_linear(lambda p: p, jnp.ones(2))
    phase = bea.Phase(lambda p: -p, 0.1)
    call = lambda **k: bea.switching_function(event, phase, phase, jnp.sum, jnp.ones(2), **k)
    with pytest.raises(ValueError, match=r"costs\[1\] is 0.0"):
        call(costs=(1.0, 0.0))
    with pytest.raises(ValueError, match="order is 5"):
        call(costs=(1.0, 1.0), order=5)
