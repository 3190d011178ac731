"""Packed arrays, convolutions and noise between copies. Convolutions against a forward pass in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.growth import fused_config
from fusion_core.models.registry import parameter_shapes
from tests.fusion_core.test_fusion import mlp_output
from tests.strategies import decoders
from tests.strategies.networks import random_like, random_mlp, shape_tree
from toy_models import mlp


def test_the_packed_parts_of_an_attention_are_fused_apart():
    """Fused q is the fusion of the sources' q, and so on; a concatenation of whole packs is another array."""
    configs = [decoders.small("gpt2", i) for i in range(2)]
    sources = [decoders.random_params(config, i) for i, config in enumerate(configs)]
    attention = lambda params: np.asarray(params["transformer"]["h"]["0"]["attn"]["c_attn"]["weight"])
    fused, first, second = map(attention, (fc.fusion_map(configs).embed(tuple(sources)), *sources))
    for q, one, two in zip(*(np.split(array, 3, axis=1) for array in (fused, first, second)), strict=True):
        np.testing.assert_array_equal(q, np.block([[one, np.zeros((8, 12))], [np.zeros((12, 8)), two]]))


# Convolutional classifiers


def conv_output(params, images):
    """In NumPy: convolutions that keep the size, tanh, the mean over the image, the linear head."""
    x = images
    for layer in params["convolutions"]:
        weight = np.asarray(layer["weight"])
        reach = weight.shape[2] // 2
        padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
        x = np.tanh(np.einsum("ncxyij,ocij->noxy", windows, weight) + np.asarray(layer["bias"])[:, None, None])
    return x.mean(axis=(2, 3)) @ np.asarray(params["head"]["weight"]).T + np.asarray(params["head"]["bias"])


def random_conv(config, seed):
    return jax.tree.map(lambda a: jnp.asarray(0.5 * a), random_like(parameter_shapes(config), seed))


@settings(max_examples=5, derandomize=True, deadline=None)
@given(
    widths=st.lists(st.tuples(st.sampled_from([2, 3]), st.sampled_from([1, 2])), min_size=2, max_size=3),
    first=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_fused_convolutional_classifiers_output_the_weighted_mean_and_lose_at_most_the_losses_mean(widths, first, seed):
    weights = np.asarray([first, *[1] * (len(widths) - 1)]) / (first + len(widths) - 1)
    configs = [fc.ConvConfig((2, *hidden), 3, 4) for hidden in widths]
    images = np.random.default_rng(seed).standard_normal((2, 2, 5, 5))
    with jax.enable_x64(True):
        networks = [(random_conv(c, (seed, i)), c) for i, c in enumerate(configs)]
        fused, config = fc.fuse(networks, weights.tolist())
        own, out = [conv_output(params, images) for params, _ in networks], conv_output(fused, images)
        np.testing.assert_allclose(out, np.tensordot(weights, own, 1), rtol=0, atol=1e-13)
        # Jensen, for a loss that is convex in the outputs
        cross_entropy = lambda x: np.mean(np.log(np.exp(x).sum(-1)) - x[:, seed % 4])
        assert cross_entropy(out) <= np.dot(weights, [cross_entropy(x) for x in own]) + 1e-14
    assert config.channels == (2, *(sum(c) for c in zip(*widths, strict=True)))
    assert shape_tree(fused) == shape_tree(parameter_shapes(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (2, 3)}, "depth 2 with depth 1"),
        ({"kernel": 5}, "kernel is 3 and 5"),
        ({"classes": 7}, "classes is 4 and 7"),
        ({"channels": (1, 3, 2)}, r"channels\[0\] is 2 and 1"),
    ],
)
def test_convolutional_classifiers_that_disagree_are_refused(change, message):
    config = fc.ConvConfig((2, 3, 2), 3, 4)
    with pytest.raises(fc.InputError, match=message):
        fused_config([config, dataclasses.replace(config, **change)])


def test_a_convolutional_classifier_without_a_convolution_is_refused():
    with pytest.raises(fc.InputError, match="no convolution"):
        fc.ConvConfig((2,), 3, 4)


# Noise


@pytest.mark.parametrize("copies", [2, 3])
def test_antisymmetric_noise_keeps_the_function_of_a_classifier(copies):
    config = fc.ConvConfig((2, 3, 2), 3, 4)
    images = np.random.default_rng(0).standard_normal((2, 2, 5, 5))
    weights = [0.2, *[0.8 / (copies - 1)] * (copies - 1)]
    with jax.enable_x64(True):
        params = random_conv(config, 0)
        quiet, _ = fc.fuse([(params, config)] * copies, weights)
        noisy, _ = fc.fuse([(params, config)] * copies, weights, off_diagonal="antisymmetric", noise=0.3, seed=1)
        before, after = conv_output(params, images), conv_output(noisy, images)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-13)
    moved = [float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(noisy), jax.tree.leaves(quiet), strict=True)]
    # the head and the second convolution read copies; nothing else does
    assert sum(m > 0.05 for m in moved) == 2
    assert sum(m == 0 for m in moved) == 4


@pytest.mark.parametrize("copies", [2, 3])
def test_only_noise_lets_the_gradients_of_exact_copies_separate(copies):
    sizes = (3, 4, 5, 2)
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.standard_normal((7, 3))), jnp.asarray(rng.standard_normal((7, 2)))
    with jax.enable_x64(True):
        source = (random_mlp(sizes, 0, jnp.float64), fc.MLPConfig(sizes))
        apart = {}
        for noise in (0.0, 0.1):
            options = {"off_diagonal": "antisymmetric", "noise": noise} if noise else {}
            fused, _ = fc.fuse([source] * copies, **options)
            np.testing.assert_allclose(mlp_output(fused, x), mlp_output(source[0], x), atol=1e-13)
            grads = jax.grad(lambda p: jnp.mean((mlp.forward(p, x) - y) ** 2))(fused)
            halves = np.split(np.asarray(grads["layers"][0]["weight"]), copies)
            apart[noise] = np.abs(halves[0] - halves[1]).max() / np.abs(halves[0]).max()
    assert apart[0.0] < 1e-12
    assert apart[0.1] > 0.01


def test_noise_has_the_size_that_was_asked_for():
    """Also after the mean over the copies has been taken out, and whatever the size of the weights."""
    config = fc.MLPConfig((2, 60, 60, 2))
    with jax.enable_x64(True):
        params = random_mlp(config.sizes, 0, jnp.float64)
        networks = [(params, config), (params, config)]
        quiet = fc.fuse(networks)[0]["layers"][1]["weight"]
        for kind in ("random", "antisymmetric"):
            noisy = fc.fuse(networks, off_diagonal=kind, noise=0.2)[0]["layers"][1]["weight"]
            added = np.asarray(noisy - quiet)
            entries = added[added != 0]
            assert entries.size == (2 if kind == "random" else 4) * 60 * 60
            assert entries.std() == pytest.approx(0.2 * np.sqrt(np.mean(params["layers"][1]["weight"] ** 2)), rel=0.05)


def test_random_blocks_leave_the_sources_blocks_alone_and_the_seed_decides():
    config = fc.MLPConfig((2, 3, 4, 2))
    networks = [(random_mlp(config.sizes, i), config) for i in range(2)]
    quiet = fc.fuse(networks)[0]
    noisy, again, other = (
        fc.fuse(networks, off_diagonal="random", noise=0.1, seed=seed)[0]["layers"][1]["weight"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(noisy, again)
    assert (np.asarray(noisy) != np.asarray(other)).any()
    for rows, columns in ((slice(0, 4), slice(0, 3)), (slice(4, 8), slice(3, 6))):
        np.testing.assert_array_equal(noisy[rows, columns], quiet["layers"][1]["weight"][rows, columns])
    assert np.asarray(noisy)[:4, 3:].all()
    assert np.asarray(noisy)[4:, :3].all()


def test_noise_is_the_same_inside_jit():
    config = fc.MLPConfig((2, 3, 4, 2))
    params = random_mlp(config.sizes, 0)
    grow = lambda p: fc.fuse([(p, config)] * 2, off_diagonal="antisymmetric", noise=0.1)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), jax.jit(grow)(params), grow(params)
    )


MLP = (random_mlp((2, 3, 1), 0), fc.MLPConfig((2, 3, 1)))
OTHER = (random_mlp((2, 3, 1), 1), fc.MLPConfig((2, 3, 1)))


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        (
            [MLP, OTHER],
            {"off_diagonal": "antisymmetric", "noise": 0.1},
            "equal copies only, but networks 1 and 2 differ",
        ),
        ([MLP, MLP], {"noise": 0.1}, "noise is 0.1, but the off-diagonal blocks are 'zero'"),
        ([MLP, MLP], {"off_diagonal": "random"}, "noise is 0.0; 'random' blocks need a positive number"),
        ([MLP, MLP], {"off_diagonal": "random", "noise": -0.1}, "noise is -0.1"),
        ([MLP, MLP], {"norm": "grouped"}, "a MLPConfig has no norms"),
        ([MLP, MLP], {"calibration": {}}, "a calibration batch was given, but norm is 'plain'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(networks, options, message):
    with pytest.raises(fc.InputError, match=message):
        fc.fuse(networks, **options)


# N-ary fusion


def test_fusion_is_associative_up_to_the_order_of_the_sources():
    sizes = [(2, 3, 4, 2), (2, 1, 2, 2), (2, 2, 3, 2)]
    x = np.random.default_rng(0).standard_normal((5, 2))
    with jax.enable_x64(True):
        a, b, c = ((random_mlp(s, i, jnp.float64), fc.MLPConfig(s)) for i, s in enumerate(sizes))
        at_once, config = fc.fuse([a, b, c])
        nested, nested_config = fc.fuse([fc.fuse([a, b]), c], [2 / 3, 1 / 3])
        turned, _ = fc.fuse([c, fc.fuse([a, b])], [1 / 3, 2 / 3])
        assert config == nested_config
        jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-14), nested, at_once)
        # the units of layer 1 come in another order, and with them rows of layer 1 and columns of layer 2
        order = np.r_[2:6, 0:2]
        np.testing.assert_array_equal(turned["layers"][0]["weight"][order], at_once["layers"][0]["weight"])
        np.testing.assert_allclose(mlp_output(turned, x), mlp_output(at_once, x), atol=1e-14)
