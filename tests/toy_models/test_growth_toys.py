import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from tests.bea.helpers import EXACT, distance, euler, slope
from toy_models import growth, mlp
from toy_models.deep_linear import deep_linear_task
from toy_models.digits import digits_task


def linear_task(dtype):
    return deep_linear_task(5, 3, strengths=(2.0, 1.0), samples=20, seed=0, dtype=dtype)


def test_the_flow_of_a_deep_linear_network_is_its_closed_form():
    with jax.enable_x64(True):
        task = linear_task(jnp.float64)
        start = task.start(4, 0.05, seed=1)
        followed = jax.jit(lambda p: bea.flow(bea.gradient_field(task.loss()), p, 1.7, **EXACT))(start)
        assert distance(followed, task.flow(start, 1.7)) < 1e-11
        assert distance(task.flow(start, 0.0), start) < 1e-14
        assert 0.1 < float(task.loss()(followed)) < 0.9 * float(task.loss()(start))


def test_descent_leaves_the_closed_form_at_second_order():
    """The closed form is the flow, not the steps: they part by h²/2 f'f."""
    with jax.enable_x64(True):
        task = linear_task(jnp.float64)
        start, field = task.start(4, 0.5, seed=1), bea.gradient_field(task.loss())
        gap = lambda h: distance(task.flow(start, h), euler(field, start, h))
        assert slope(gap) == pytest.approx(2, abs=0.15)


def test_after_a_long_time_a_deep_linear_network_is_the_map():
    task = linear_task(jnp.float32)
    end = task.flow(task.start(6, 0.1, seed=2), 100.0)
    assert float(task.loss()(end)) < 1e-10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": (1.0, 1.0, 1.0, 1.0)}, "has 1 to 3 modes, all positive"),
        ({"strengths": (1.0, -1.0)}, "all positive"),
        ({"samples": 5}, "whitening 5 inputs needs more than 5"),
    ],
)
def test_linear_tasks_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        deep_linear_task(5, 3, **({"strengths": (1.0,), "samples": 20, "seed": 0} | change))


def test_a_start_too_narrow_for_its_modes_is_refused():
    with pytest.raises(ValueError, match=r"width is 1 and strength 0.1: a balanced start needs a width of at least 2"):
        linear_task(jnp.float32).start(1, 0.1, seed=0)


@pytest.mark.parametrize("name", growth.TOYS)
def test_a_toy_grows_into_a_network_whose_loss_is_at_most_the_mean_of_its_sources(name):
    if name == "digits":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'deepfusion[data]'")
    toy = growth.TOYS[name](0)
    losses, grown = jax.jit(lambda s: ([toy.source_loss(one) for one in s], toy.loss(toy.embed(s))))(toy.sources)
    assert float(grown) <= np.mean(losses) * (1 + 1e-5)
    assert 0 < toy.small_flops <= toy.grown_flops  # equal with one hidden layer: no off-diagonal blocks
    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.01 * g, p, jax.grad(toy.loss)(p)))
    assert toy.loss(step(toy.fused)) < grown
    event = bea.GrowthEvent.from_linear(toy.embed, toy.sources)  # refuses what is not linear
    assert jax.tree.structure(event.transpose(toy.fused)) == jax.tree.structure(toy.sources)


def test_flops_of_a_toy_are_those_of_its_networks():
    toy = growth.teacher_toy([(4, 5, 2), (4, 6, 2)], samples=10, seed=0)
    assert toy.small_flops == mlp.gradient_flops((4, 5, 2), 10) + mlp.gradient_flops((4, 6, 2), 10)
    assert toy.grown_flops == mlp.gradient_flops((4, 11, 2), 10)


def test_a_subspace_as_large_as_the_space_is_refused():
    with pytest.raises(ValueError, match="small is 4, but a subspace that grows to dimension 4 is smaller"):
        growth.quadratic_toy(4, 4, seed=0)


def test_digits_are_standardised_split_and_fixed_by_the_seed():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'deepfusion[data]'")
    task, again = digits_task(train=1000, seed=3), digits_task(train=1000, seed=3)
    assert task.train.inputs.shape == (1000, 64)
    assert task.validation.inputs.shape == (797, 64)
    np.testing.assert_allclose([task.train.inputs.mean(), task.train.inputs.std()], [0, 1], atol=1e-3)
    np.testing.assert_array_equal(task.train.labels, again.train.labels)
    assert set(np.asarray(task.train.labels)) == set(range(10))
    with pytest.raises(ValueError, match="train is 1797, but there are 1797 digits"):
        digits_task(train=1797, seed=0)


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError("No module named 'sklearn'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        ImportError, match=r"scikit-learn, which cannot be imported .*: pip install 'deepfusion\[data\]'"
    ):
        digits_task(train=1000, seed=0)
