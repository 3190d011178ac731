import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from bea.pytrees import axpy, scale
from tests.bea.helpers import distance, euler, slope, slopes
from tests.strategies.problems import cubic_field, cubic_point, tanh_loss, tanh_network


def tanh_fields():
    return bea.gradient_field(tanh_loss(0)), bea.gradient_field(tanh_loss(1))


def self_terms_only(phases):
    """First order and the self terms: the composite as if its phases commuted."""
    fields = [bea.compose([phase]) for phase in phases]

    def field(params):
        total = fields[0](params)
        for other in fields[1:]:
            total = axpy(1.0, other(params), total)
        return total

    return field


FORMULAS = {
    "first order": (lambda phases: bea.compose(phases, order=1), 2),
    "without the conflict term": (self_terms_only, 2),
    "second order": (lambda phases: bea.compose(phases, order=2), 3),
}


@pytest.fixture(scope="module")
def orders_of_the_formulas():
    """{formula: order of its distance from the logarithm of the two steps}, all in one compilation."""
    with jax.enable_x64(True):
        (f, g), start = tanh_fields(), tanh_network()

        def errors(h):
            log = bea.log_map(lambda p: euler(g, euler(f, p, h), 0.7 * h), start, 4)
            phases = [bea.Phase(f, h), bea.Phase(g, 0.7 * h)]
            return {name: distance(make(phases)(start), log) for name, (make, _) in FORMULAS.items()}

        return slopes(errors, largest=0.004, halvings=3)


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_composite_of_two_losses_misses_the_logarithm_of_the_two_steps_by_its_order(
    orders_of_the_formulas, formula
):
    assert orders_of_the_formulas[formula] == pytest.approx(FORMULAS[formula][1], abs=0.15)


def repeats_error(n_of_the_formula, order=2):
    """Composite of 3, 1 and 2 steps against the log map of the steps themselves."""
    fields, start, n = [cubic_field(seed) for seed in range(3)], cubic_point(), (3, 1, 2)
    sizes = (1.0, 2.0, 0.5)

    def error(h):
        def steps(params):
            for field, size, count in zip(fields, sizes, n, strict=True):
                params = euler(field, params, size * h, count)
            return params

        phases = [
            bea.Phase(field, size * h * count / formula, formula)
            for field, size, count, formula in zip(fields, sizes, n, n_of_the_formula, strict=True)
        ]
        return distance(bea.compose(phases, order)(start), bea.log_map(steps, start, order + 1))

    return error


def test_composite_of_three_phases_with_repeats_is_right_through_second_order(x64):
    assert slope(repeats_error((3, 1, 2)), largest=0.002) == pytest.approx(3, abs=0.15)


def test_repeats_are_not_one_long_step(x64):
    """T_i alone does not say what a phase does: its self term has n h², not (n h)²."""
    assert slope(repeats_error((1, 1, 1)), largest=0.002) == pytest.approx(2, abs=0.15)


def test_composite_of_three_phases_with_repeats_is_right_through_third_order(x64):
    assert slope(repeats_error((3, 1, 2), order=3), largest=0.004, halvings=3) == pytest.approx(4, abs=0.15)


def test_third_order_composite_of_linear_phases_is_the_logarithm_of_their_product(x64):
    """log((1 + B)(1 + A)) through three letters, with matrices that hold the step sizes."""
    rng = np.random.default_rng(3)
    A, B, x = 0.1 * rng.standard_normal((3, 3)), 0.2 * rng.standard_normal((3, 3)), rng.standard_normal(3)
    total, product = A + B, B @ A
    expected = total + product - total @ total / 2
    expected += total @ total @ total / 3 - (total @ product + product @ total) / 2
    phases = [bea.Phase(lambda p: 10 * A @ p, 0.1), bea.Phase(lambda p: 5 * B @ p, 0.2)]
    np.testing.assert_allclose(bea.compose(phases, order=3)(jnp.asarray(x)), expected @ x, rtol=1e-12)


def test_composite_of_one_phase_is_its_modified_field(x64):
    f, params = cubic_field(), cubic_point()
    got, expected = bea.compose([bea.Phase(f, 0.1)])(params), scale(0.1, bea.modified_field(f, 0.1)(params))
    assert float(distance(got, expected)) < 1e-14


def test_conflict_term_changes_sign_with_the_order_of_the_phases(x64):
    f, g, params = cubic_field(0), cubic_field(1), cubic_point()
    one, two = bea.Phase(f, 0.1), bea.Phase(g, 0.2)
    gap = axpy(-1.0, bea.compose([two, one])(params), bea.compose([one, two])(params))
    bracket = scale(0.1 * 0.2, bea.lie_bracket(f, g)(params))
    assert float(distance(gap, bracket)) < 1e-13


def test_duration_is_the_steps_times_their_size():
    assert bea.Phase(lambda p: p, 0.25, 4).duration == 1.0


@pytest.mark.parametrize("steps", [0, -1, True])
def test_a_phase_without_whole_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps is {steps!r}, but a phase has a positive whole number of steps"):
        bea.Phase(lambda p: p, 0.1, steps)


def test_a_phase_with_a_bad_step_size_is_refused():
    with pytest.raises(ValueError, match=r"step_size is -1.0, but has to be positive and finite"):
        bea.Phase(lambda p: p, -1.0)


def test_no_phases_are_refused():
    with pytest.raises(ValueError, match="phases is empty"):
        bea.compose([])


def test_composite_orders_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"order is 0, but has to be a positive integer"):
        bea.compose([bea.Phase(lambda p: p, 0.1)], order=0)


@pytest.mark.parametrize("order", [2, 3])
def test_the_phase_whose_field_has_another_tree_is_named_in_every_order(order):
    phases = [bea.Phase(lambda p: p, 0.1), bea.Phase(lambda p: [p], 0.1)]
    with pytest.raises(ValueError, match="value of the field of phase 1 has the tree"):
        bea.compose(phases, order)(jnp.ones(2))


def test_float32_params_stay_float32_with_numpy_step_sizes():
    composite = bea.compose([bea.Phase(lambda p: -p, np.float64(0.1), 2)])
    assert composite(jnp.ones(2, jnp.float32)).dtype == jnp.float32
