import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from tests.bea.helpers import euler, slope
from tests.strategies.problems import cubic_field, cubic_point, tanh_loss, tanh_network


def three_gradients():
    return [bea.gradient_field(tanh_loss(seed)) for seed in (1, 2, 3)]


@pytest.mark.parametrize("gradients", [False, True])
def test_scores_are_the_brackets_read_on_the_loss(x64, gradients):
    fields, loss, params, sizes = three_gradients(), tanh_loss(0), tanh_network(), (0.1, 0.2, 0.3)

    def scores_and_brackets(p):
        slope_of_loss = jax.grad(loss)(p)
        bracket = lambda i, j: bea.pytrees.inner(slope_of_loss, bea.lie_bracket(fields[i], fields[j])(p))
        brackets = [[0.5 * sizes[i] * sizes[j] * bracket(i, j) for j in range(3)] for i in range(3)]
        return bea.order_scores(fields, loss, sizes, gradients=gradients)(p), jnp.asarray(brackets)

    scores, brackets = jax.jit(scores_and_brackets)(params)
    np.testing.assert_allclose(scores, brackets, rtol=1e-9, atol=1e-13)
    np.testing.assert_array_equal(scores, -scores.T)
    assert np.abs(scores).max() > 1e-3


def test_twice_the_score_is_the_gap_of_the_loss_between_the_two_orders(x64):
    """On fields that are no gradients; the gap itself is O(h²), without the score it would stay so."""
    f, g, p = cubic_field(0), cubic_field(1), cubic_point()
    loss = lambda q: jnp.sum(q["a"] ** 4) + q["a"][0] * q["b"]

    def gap(h):
        return loss(euler(g, euler(f, p, h), 2 * h)) - loss(euler(f, euler(g, p, 2 * h), h))

    rest = lambda h: jnp.abs(gap(h) - 2 * bea.order_scores([f, g], loss, [h, 2 * h])(p)[0, 1])
    assert slope(rest, largest=0.002) == pytest.approx(3, abs=0.15)
    assert slope(lambda h: jnp.abs(gap(h)), largest=0.002) == pytest.approx(2, abs=0.15)


def test_all_pairs_cost_one_hessian_vector_product_a_field():
    """The compiler counts as many operations for 4 fields with their 6 pairs as for 4 products."""
    fields = [bea.gradient_field(tanh_loss(seed)) for seed in range(4)]
    flops = lambda work: jax.jit(work).lower(tanh_network()).compile().cost_analysis()["flops"]
    loss = tanh_loss(4)
    products = lambda p: [jax.jvp(f, (p,), (jax.grad(loss)(p),)) for f in fields]
    assert flops(bea.order_scores(fields, loss, [0.1] * 4, gradients=True)) < 1.5 * flops(products)


def test_step_sizes_of_another_number_than_the_fields_are_refused():
    with pytest.raises(ValueError, match="there are 2 fields and 1 step sizes"):
        bea.order_scores([lambda p: p, lambda p: p], jnp.sum, [0.1])


def test_the_bad_step_size_is_named_by_its_place():
    with pytest.raises(ValueError, match=r"step_sizes\[1\] is 0.0, but has to be positive"):
        bea.order_scores([lambda p: p, lambda p: p], jnp.sum, [0.1, 0.0])


def test_the_field_of_another_tree_is_named():
    with pytest.raises(ValueError, match=r"(?s)the value of field 1 has the tree.*but params has the tree"):
        bea.order_scores([lambda p: p, lambda p: [p]], jnp.sum, [0.1, 0.1])(jnp.ones(2))
