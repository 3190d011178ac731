import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from tests.bea.helpers import EXACT, distance, euler, slopes
from tests.strategies.problems import tanh_network


def batch_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["hidden"]["weight"].T + params["hidden"]["bias"])
    return jnp.mean((hidden @ params["out"]["weight"].T + params["out"]["bias"] - batch["y"]) ** 2)


def batches(count, seed=0, size=4):
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.standard_normal((count, size, 2))),
        "y": jnp.asarray(rng.standard_normal((count, size, 1))),
    }


def test_mean_of_an_epoch_over_all_orders_follows_the_minibatch_modified_loss(x64):
    data, start = batches(3), tanh_network()
    pick = lambda k: jax.tree.map(lambda leaf: leaf[k], data)
    fields = [bea.gradient_field(lambda p, k=k: batch_loss(p, pick(k))) for k in range(3)]
    whole = lambda p: sum(batch_loss(p, pick(k)) for k in range(3)) / 3

    def epoch(h):
        ends = []
        for order in itertools.permutations(range(3)):
            params = start
            for k in order:
                params = euler(fields[k], params, h)
            ends.append(params)
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *ends)

    def errors(h):
        losses = {
            "with the term": bea.minibatch_modified_loss(batch_loss, data, h),
            "without": bea.modified_loss(whole, h),
        }
        together = lambda points: {name: bea.gradient_field(losses[name])(points[name]) for name in losses}
        followed = bea.flow(together, dict.fromkeys(losses, start), 3 * h, **EXACT)
        return {name: distance(end, epoch(h)) for name, end in followed.items()}

    measured = slopes(errors, largest=0.02, halvings=3)
    assert measured == pytest.approx({"with the term": 3, "without": 2}, abs=0.15)


def test_the_modified_loss_is_the_whole_loss_its_gradient_and_the_minibatch_term(x64):
    data, params, h = batches(5), tanh_network(), 0.1
    whole = lambda p: jnp.mean(jax.vmap(lambda b: batch_loss(p, b))(data))
    term = bea.minibatch_term(batch_loss, data, params, h, total=5)
    got, without = jax.jit(
        lambda p: (bea.minibatch_modified_loss(batch_loss, data, h)(p), bea.modified_loss(whole, h)(p))
    )(params)
    np.testing.assert_allclose(got, without + term.value, rtol=1e-12)
    assert float(term.standard_error) == 0  # the sample is all there is


@pytest.fixture(scope="module")
def samples():
    """(terms from 400 samples of 8 of 40 batches, the term of all 40)."""
    with jax.enable_x64(True):
        data, params, h = batches(40, size=2), tanh_network(), 0.1
        rng = np.random.default_rng(1)
        picks = jnp.asarray(np.stack([rng.choice(40, 8, replace=False) for _ in range(400)]))

        def one(pick):
            return bea.minibatch_term(batch_loss, jax.tree.map(lambda leaf: leaf[pick], data), params, h, total=40)

        whole = bea.minibatch_term(batch_loss, data, params, h, total=40)
        return jax.tree.map(np.asarray, (jax.jit(jax.vmap(one))(picks), whole))


def test_the_estimate_from_a_sample_has_no_bias(samples):
    terms, whole = samples
    assert abs(terms.value.mean() - whole.value) < 3 * terms.value.std() / 20


def test_the_standard_error_is_the_spread_of_the_estimates(samples):
    terms, _ = samples
    assert np.sqrt((terms.standard_error**2).mean()) == pytest.approx(terms.value.std(), rel=0.25)


def test_an_error_of_a_sample_is_larger_without_an_end_to_the_batches():
    data, params = batches(8), tanh_network()
    some, endless = jax.jit(
        lambda p: [bea.minibatch_term(batch_loss, data, p, 0.1, total=total) for total in (10, None)]
    )(params)
    assert some.standard_error < endless.standard_error
    assert some.value < endless.value


def test_two_batches_are_too_few():
    with pytest.raises(
        ValueError, match="batches holds 2 batches, but a standard error of a variance needs at least 3"
    ):
        bea.minibatch_term(batch_loss, batches(2), tanh_network(), 0.1)


def test_a_total_below_the_sample_is_refused():
    with pytest.raises(ValueError, match="total is 4, below the 5 batches of the sample"):
        bea.minibatch_term(batch_loss, batches(5), tanh_network(), 0.1, total=4)


def test_batches_that_do_not_stack_are_refused():
    with pytest.raises(ValueError, match=r"batches has arrays of shapes \[\(3, 2\), \(4, 1\)\]"):
        bea.minibatch_modified_loss(batch_loss, {"x": jnp.ones((3, 2)), "y": jnp.ones((4, 1))}, 0.1)


def test_a_step_size_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"step_size is 0.0"):
        bea.minibatch_modified_loss(batch_loss, batches(3), 0.0)
