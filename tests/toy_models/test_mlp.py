import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fusion_core.growth
from toy_models import mlp
from toy_models.teacher import teacher_task


@pytest.mark.parametrize("name", sorted(mlp.ACTIVATIONS))
def test_forward_is_the_network_written_by_hand(name):
    activation = mlp.ACTIVATIONS[name]
    params = mlp.init((3, 5, 4, 2), seed=0)
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    w = [(np.asarray(layer["weight"]), np.asarray(layer["bias"]) + 0.1) for layer in params["layers"]]
    shifted = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim == 1 else leaf, params)
    hidden = np.asarray(activation(jnp.asarray(x @ w[0][0].T + w[0][1])))
    hidden = np.asarray(activation(jnp.asarray(hidden @ w[1][0].T + w[1][1])))
    got = jax.jit(lambda p: mlp.forward(p, jnp.asarray(x), activation))(shifted)
    np.testing.assert_allclose(got, hidden @ w[2][0].T + w[2][1], rtol=1e-5, atol=1e-6)


def test_init_has_the_layout_and_the_scale_and_depends_on_the_seed_only():
    params = mlp.init((100, 400, 10), seed=3)
    assert [(layer["weight"].shape, layer["bias"].shape) for layer in params["layers"]] == [
        ((400, 100), (400,)),
        ((10, 400), (10,)),
    ]
    assert float(params["layers"][0]["weight"].std()) == pytest.approx(0.1, rel=0.02)
    again, other = mlp.init((100, 400, 10), seed=3), mlp.init((100, 400, 10), seed=4)
    np.testing.assert_array_equal(params["layers"][1]["weight"], again["layers"][1]["weight"])
    assert float(jnp.abs(params["layers"][1]["weight"] - other["layers"][1]["weight"]).max()) > 0.01


def test_float64_init_is_the_float32_one():
    with jax.enable_x64(True):
        wide = mlp.init((3, 5, 4, 2), seed=0, dtype=jnp.float64)
        assert wide["layers"][0]["weight"].dtype == jnp.float64
        wide = jax.tree.map(np.asarray, wide)
    jax.tree.map(np.testing.assert_array_equal, wide, mlp.init((3, 5, 4, 2), seed=0))


def test_softmax_loss_is_the_cross_entropy():
    params, x, labels = mlp.init((3, 5, 4, 2), seed=0), jnp.ones((2, 3)), jnp.asarray([1, 0])
    p = np.exp(np.asarray(mlp.forward(params, x), np.float64))
    p = p / p.sum(axis=1, keepdims=True)
    expected = -np.log([p[0, 1], p[1, 0]]).mean()
    np.testing.assert_allclose(mlp.softmax_loss(x, labels)(params), expected, rtol=1e-5)


def test_mse_loss_is_the_mean_square():
    params, x = mlp.init((3, 5, 4, 2), seed=0), jnp.ones((2, 3))
    expected = np.mean(np.square(np.asarray(mlp.forward(params, x)) - 1))
    np.testing.assert_allclose(mlp.mse_loss(x, jnp.ones((2, 2)))(params), expected, rtol=1e-6)


def test_gradient_flops_are_those_that_the_compiler_counts():
    """XLA counts elementwise work too, a few per cent at this width."""
    sizes, batch = (64, 128, 128, 32), 256
    loss = mlp.mse_loss(jnp.ones((batch, 64)), jnp.ones((batch, 32)), jax.nn.relu)
    analysis = jax.jit(jax.grad(loss)).lower(mlp.init(sizes, seed=0)).compile().cost_analysis()
    assert analysis["flops"] == pytest.approx(mlp.gradient_flops(sizes, batch), rel=0.05)


def test_fused_students_output_the_mean_and_lose_no_more_than_the_mean():
    x, y = teacher_task((4, 16, 2), seed=0, train=64, validation=32).train
    networks = [
        (mlp.init(sizes, seed=seed), fusion_core.growth.MLPConfig(sizes))
        for seed, sizes in enumerate([(4, 5, 2), (4, 6, 2)])
    ]
    parameters, configs = zip(*networks, strict=True)
    fused = jax.jit(fusion_core.growth.fusion_map(configs).embed)(parameters)
    forward, loss = jax.jit(mlp.forward), jax.jit(mlp.mse_loss(x, y))
    mean = sum(forward(params, x) for params, _ in networks) / 2
    np.testing.assert_allclose(forward(fused, x), mean, atol=1e-6)
    assert float(loss(fused)) < sum(float(loss(params)) for params, _ in networks) / 2


@pytest.mark.parametrize("sizes", [(3,), (3, 0, 1)])
def test_sizes_that_are_no_network_are_refused(sizes):
    with pytest.raises(ValueError, match="needs an input and an output width"):
        mlp.init(sizes, seed=0)


def test_samples_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="there are 3 inputs and 2 targets"):
        mlp.mse_loss(jnp.ones((3, 1)), jnp.ones((2, 1)))
