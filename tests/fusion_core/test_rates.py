"""Rate factors: derived from the fusion rule, they keep the velocity of the function across the event."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fusion_core as fc
from fusion_core.models.registry import parameter_shapes
from tests.strategies.networks import random_mlp, tiny
from toy_models.growth_event import UPDATES, changes_of_function

SIZES = (3, 5, 4, 4, 2)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("optimizer", UPDATES)
@pytest.mark.parametrize("copies", [2, 3])
def test_with_the_factors_every_arrays_change_of_the_function_is_the_small_networks(x64, optimizer, copies):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.standard_normal((7, 3))), jnp.asarray(rng.standard_normal((7, 2)))
    params, config = random_mlp(SIZES, 0, jnp.float64), fc.MLPConfig(SIZES)
    grown, _ = fc.fuse([(params, config)] * copies)
    factors = fc.rate_factors(params, config, copies, optimizer)
    ones = jax.tree.map(lambda _: 1.0, factors)
    before = changes_of_function(params, ones, optimizer, x, y)
    after = changes_of_function(grown, factors, optimizer, x, y)
    without = changes_of_function(grown, ones, optimizer, x, y)
    for small, large, plain, factor in zip(before, after, without, jax.tree.leaves(factors), strict=True):
        np.testing.assert_allclose(large, small, rtol=1e-6, atol=1e-6 * float(jnp.abs(small).max()))
        np.testing.assert_allclose(factor * plain, small, rtol=1e-6, atol=1e-6 * float(jnp.abs(small).max()))


def test_the_factors_of_an_mlp_are_those_of_the_maximal_update_parametrization():
    config = fc.MLPConfig((3, 4, 4, 1))
    tree = random_mlp(config.sizes, 0)
    weights = {o: [layer["weight"] for layer in fc.rate_factors(tree, config, 2, o)["layers"]] for o in UPDATES}
    np.testing.assert_allclose(weights["sgd"], [2, 1, 0.5])
    np.testing.assert_allclose(weights["adam"], [1, 0.5, 0.5])
    np.testing.assert_allclose(weights["adafactor"], [1, 0.5**0.5, 1])


K = 3
HIDDEN = {"sgd": 1, "adam": 1 / K, "adafactor": K**-0.5}
COPIED = {"sgd": K, "adam": 1, "adafactor": 1}
# docs/t5_fusion.md's table, by the name of the array's parent
TABLE = {
    **dict.fromkeys(("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"), HIDDEN),
    **dict.fromkeys(("shared", "layer_norm", "relative_attention_bias"), COPIED),
    "lm_head": {"sgd": 1 / K, "adam": 1 / K, "adafactor": 1},
}
FINAL_NORM = {"v1.0": {"sgd": 1, "adam": K**-0.5, "adafactor": 1}, "v1.1": COPIED}


@pytest.mark.parametrize("optimizer", UPDATES)
@pytest.mark.parametrize("style", FINAL_NORM)
def test_the_factors_of_every_parameter_of_t5_are_the_measured_ones(style, optimizer):
    config = tiny(style)
    factors = fc.rate_factors(parameter_shapes(config), config, K, optimizer)
    names = set()
    for path, factor in jax.tree_util.tree_leaves_with_path(factors):
        name = path[-2].key
        names.add(name)
        if name == "final_layer_norm":
            wanted = (FINAL_NORM[style] if path[0].key == "decoder" else COPIED)[optimizer]
        else:
            wanted = TABLE[name][optimizer]
        assert factor == pytest.approx(wanted), jax.tree_util.keystr(path)
    assert {"q", "wo", "shared", "final_layer_norm"} <= names


@pytest.mark.parametrize(
    ("copies", "optimizer", "message"), [(1, "sgd", "copies is 1"), (2, "lion", "no rate factors for .* 'lion'")]
)
def test_rate_factors_refuses(copies, optimizer, message):
    config = fc.MLPConfig((3, 4, 1))
    with pytest.raises(fc.InputError, match=message):
        fc.rate_factors(random_mlp(config.sizes, 0), config, copies, optimizer)


def test_params_of_another_network_are_refused():
    with pytest.raises(fc.InputError, match="pass the two of one network"):
        fc.rate_factors(random_mlp((3, 4, 1), 0), fc.MLPConfig((3, 4, 4, 1)), 2, "sgd")
