import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core import testing
from fusion_core.growth import fused_config
from fusion_core.models.registry import parameter_shapes
from tests.strategies import decoders
from tests.strategies.networks import (
    STYLES,
    batch_of,
    logits,
    random_mlp,
    random_t5,
    tiny,
)
from toy_models import mlp

DTYPES = ("float32", "float64")


def mlp_output(params, x):
    """The MLP in NumPy: an independent forward pass, and nothing to compile."""
    *hidden, last = params["layers"]
    for layer in hidden:
        x = np.tanh(x @ np.asarray(layer["weight"]).T + np.asarray(layer["bias"]))
    return x @ np.asarray(last["weight"]).T + np.asarray(last["bias"])


@settings(max_examples=12, derandomize=True, deadline=None)
@given(drawn=testing.mlp_sources(), dtype=st.sampled_from(DTYPES), equal=st.booleans())
def test_fused_mlps_output_the_weighted_mean(drawn, dtype, equal):
    sizes, weights = [member.config.sizes for member in drawn.members], None if equal else list(drawn.weights)
    seed = drawn.members[0].seed
    with jax.enable_x64(True):
        networks = [(random_mlp(s, seed + i, dtype), fc.MLPConfig(s)) for i, s in enumerate(sizes)]
        fused, config = fc.fuse(networks, weights)
        x = np.random.default_rng(seed).standard_normal((5, sizes[0][0])).astype(dtype)
        mean = sum(
            w * mlp_output(params, x)
            for w, (params, _) in zip(weights or [1 / len(sizes)] * len(sizes), networks, strict=True)
        )
        output = mlp_output(fused, x)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(fused))
    assert config.sizes[1:-1] == tuple(sum(widths) for widths in zip(*(s[1:-1] for s in sizes), strict=True))
    # sums of at most 24 products a layer, four layers
    np.testing.assert_allclose(output, mean, rtol=0, atol=100 * np.finfo(dtype).eps * (1 + np.abs(mean).max()))


def test_fused_toy_models_output_the_mean():
    networks = [(mlp.init(s, seed=i), fc.MLPConfig(s)) for i, s in enumerate([(3, 8, 5, 2), (3, 4, 7, 2)])]
    fused, config = fc.fuse(networks)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)), jnp.float32)
    forward = jax.jit(mlp.forward)
    mean = sum(forward(params, x) for params, _ in networks) / 2
    assert config.sizes == (3, 12, 12, 2)
    np.testing.assert_allclose(forward(fused, x), mean, atol=1e-6)


@settings(max_examples=5, derandomize=True, deadline=None)
@given(drawn=testing.mlp_sources())
def test_the_fused_loss_is_at_most_the_mean_loss_where_the_loss_is_convex_in_the_outputs(drawn):
    networks, weights = drawn.networks, list(drawn.weights)
    sizes = [config.sizes for _, config in networks]
    fused, _ = fc.fuse(networks, weights)
    rng = np.random.default_rng(drawn.members[0].seed)
    x, y = rng.standard_normal((5, sizes[0][0])), rng.standard_normal((5, sizes[0][-1]))
    losses = {
        "square": lambda out: np.mean((out - y) ** 2),
        "absolute": lambda out: np.mean(np.abs(out - y)),
        "cross-entropy": lambda out: np.mean(np.log(np.exp(out).sum(axis=1)) - out[:, 0]),
    }
    for name, loss in losses.items():
        mean = sum(w * loss(mlp_output(params, x)) for w, (params, _) in zip(weights, networks, strict=True))
        assert loss(mlp_output(fused, x)) <= mean + 1e-6, name


def narrow(style, d_model, num_heads, d_ff):
    shape = {"d_model": d_model, "num_heads": num_heads, "d_ff": d_ff}
    return tiny(style, vocab_size=7, num_layers=1, num_decoder_layers=1, **shape)


def maps():
    """(configurations, weights) of every architecture, equal and unequal widths."""
    mlps = [fc.MLPConfig(s) for s in ((2, 3, 4, 2), (2, 1, 2, 2), (2, 2, 2, 2))]
    return {
        "mlp": (mlps, [0.2, 0.3, 0.5]),
        "v1.0": ([narrow("v1.0", 4, 1, 3), narrow("v1.0", 6, 2, 5)], None),
        "v1.1": ([narrow("v1.1", 4, 1, 3), narrow("v1.1", 6, 2, 5)], [0.25, 0.75]),
        "conv": ([fc.ConvConfig(channels, 3, 4) for channels in ((2, 3, 1), (2, 1, 2))], [0.3, 0.7]),
    } | {kind: ([decoders.small(kind, i) for i in range(2)], [0.3, 0.7]) for kind in decoders.KINDS}


@pytest.mark.parametrize("kind", sorted(maps()))
def test_the_fusion_map_is_linear_with_its_transpose_and_pseudo_inverse(kind):
    """For any tree of the fused space, not only for images: off-diagonal blocks must not count. Shapes are checked too."""
    testing.check_map(fc.fusion_map(*maps()[kind]))


def test_the_pseudo_inverse_of_an_averaged_bias_is_the_least_norm_one():
    config = fc.MLPConfig((1, 1, 1))
    mapping = fc.fusion_map([config] * 2, [0.25, 0.75])
    fused = jax.tree.map(lambda struct: 2.0 * jnp.ones(struct.shape), parameter_shapes(mapping.config))
    found = [source["layers"][1]["bias"] for source in mapping.pinv(fused)]
    np.testing.assert_allclose(np.concatenate(found), np.linalg.pinv([[0.25, 0.75]]) @ [2.0], rtol=1e-6)


# T5


@pytest.fixture(scope="module", params=sorted(STYLES))
def source(request):
    config = tiny(request.param)
    return random_t5(config, 1), config


def outputs(params, config, seed=0):
    batch = batch_of(config, seed, padded=False)
    return np.asarray(logits(params, config, batch["encoder_ids"], batch["targets"], batch["encoder_ids"] != 3))


@pytest.mark.parametrize("copies", [2, 3])
def test_self_fusion_of_a_t5_keeps_the_logits(source, copies):
    fused, config = fc.fuse([source] * copies)
    before = outputs(*source)
    assert 0.1 < np.abs(before).mean() < 2  # a test on logits of no size would pass always
    np.testing.assert_allclose(outputs(fused, config), before, rtol=0, atol=1e-5)


def test_self_fusion_with_unequal_weights_keeps_the_logits(source):
    fused, config = fc.fuse([source] * 2, [0.3, 0.7])
    np.testing.assert_allclose(outputs(fused, config), outputs(*source), rtol=0, atol=1e-5)


def test_the_weights_of_a_t5_fusion_decide_how_much_a_source_counts(source):
    """Sources that differ in the last map only share all norm statistics, so their weighted mean is exact."""
    params, config = source
    other = jax.tree.map(lambda x: x, params)
    if config.tie_word_embeddings:
        scale = other["decoder"]["final_layer_norm"]["weight"]
        other["decoder"]["final_layer_norm"] = {"weight": 2.0 * scale[::-1]}
    else:
        other["lm_head"] = {"weight": 2.0 * other["lm_head"]["weight"][::-1]}
    fused, fused_cfg = fc.fuse([(params, config), (other, config)], [0.3, 0.7])
    mean = 0.3 * outputs(params, config) + 0.7 * outputs(other, config)
    np.testing.assert_allclose(outputs(fused, fused_cfg), mean, rtol=0, atol=1e-5)


def test_different_sources_are_not_averaged_exactly_under_the_plain_norm(source):
    """The norms see the mean square of the whole stream: each source is rescaled by rmsᵢ / rms (t5_fusion.md)."""
    params, config = source
    other = random_t5(config, 2)
    fused, fused_cfg = fc.fuse([source, (other, config)])
    mean = (outputs(params, config) + outputs(other, config)) / 2
    deviation = np.abs(outputs(fused, fused_cfg) - mean).max()
    assert deviation > 0.01


def test_the_fused_configuration_adds_widths_and_keeps_the_rest():
    a, b = tiny("v1.1"), tiny("v1.1", d_model=10, num_heads=3, d_ff=7)
    fused = fused_config([a, b])
    assert (fused.d_model, fused.num_heads, fused.d_ff) == (26, 5, 31)
    assert dataclasses.replace(fused, d_model=16, num_heads=2, d_ff=24) == a


def test_hidden_blocks_between_different_sources_are_zero():
    config = tiny("v1.0")
    fused, _ = fc.fuse([(random_t5(config, i), config) for i in range(2)])
    q = fused["encoder"]["block"]["0"]["layer"]["0"]["SelfAttention"]["q"]["weight"]
    assert not q[:12, 16:].any()
    assert not q[12:, :16].any()
    assert q[:12, :16].all()
    assert q[12:, 16:].all()


def test_fusion_can_be_traced(source):
    params, config = source
    jitted = jax.jit(lambda p: fc.fuse([(p, config), (p, config)])[0])(params)
    jax.tree.map(np.testing.assert_array_equal, jitted, fc.fuse([source, source])[0])


# What is refused. Nothing here is compiled.

MLP = (random_mlp((2, 3, 1), 0), fc.MLPConfig((2, 3, 1)))


def shapes_only(config):
    return jax.tree.map(lambda struct: np.zeros(struct.shape), parameter_shapes(config)), config


def grown_as_told(message, params, config):
    """What comes of the call of ``fusion_core.grow`` in an error message."""
    call = re.search(r"fusion_core\.grow\(.*?\)", message)
    assert call, message
    return eval(call[0], {"fusion_core": fc, "params": params, "config": config})


@pytest.mark.parametrize("operator", ["identity_layers", "stacking"])
@pytest.mark.parametrize("field", ["num_layers", "num_decoder_layers"])
@pytest.mark.parametrize("depths", [(1, 2), (2, 1)])
def test_unequal_t5_depths_are_refused_and_what_is_said_to_do_makes_them_equal(depths, field, operator):
    networks = [shapes_only(tiny(**{field: depth})) for depth in depths]
    with pytest.raises(fc.InputError, match=rf"depth . with depth . \({field} of networks 1 and 2\)") as caught:
        fc.fuse(networks)
    message, shallow = str(caught.value), depths.index(1)
    assert f"depth {depths[0]} with depth {depths[1]}" in message
    assert f"bring network {shallow + 1} to the same depth first" in message
    assert '"stacking"' in message
    networks[shallow] = grown_as_told(message.replace("identity_layers", operator), *networks[shallow])
    assert getattr(fused_config([config for _, config in networks]), field) == 2


def test_unequal_mlp_depths_are_refused_and_what_is_said_to_do_makes_them_equal():
    deep = (2, 3, 4, 3, 1)
    networks = [(random_mlp(deep, 0), fc.MLPConfig(deep)), MLP]
    with pytest.raises(fc.InputError, match=r"depth 4 with depth 2 \(networks 1 and 2\).* bring network 2") as caught:
        fc.fuse(networks)
    networks[1] = grown_as_told(str(caught.value), *MLP)
    assert fc.fuse(networks)[1].sizes == (2, 6, 7, 6, 1)


def test_mlps_of_other_inputs_or_outputs_are_refused():
    with pytest.raises(fc.InputError, match=r"networks 1 and 2: sizes\[0\] is 2 and 4; it must agree"):
        fc.fuse([MLP, (random_mlp((4, 3, 1), 0), fc.MLPConfig((4, 3, 1)))])


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("vocab_size", (60, 61)),
        ("d_kv", (6, 8)),
        ("tie_word_embeddings", (True, False)),
        ("feed_forward_proj", ("relu", "gated-gelu")),
        ("layer_norm_epsilon", (1e-6, 1e-5)),
    ],
)
def test_t5s_that_disagree_are_refused_and_the_field_is_named(field, values):
    with pytest.raises(fc.InputError, match=f"networks 1 and 3: {field} is {values[0]!r} and {values[1]!r}"):
        fused_config([tiny(), tiny(), tiny(**{field: values[1]})])


@pytest.mark.parametrize("networks", [[], [MLP]])
def test_fewer_than_two_networks_are_refused(networks):
    with pytest.raises(fc.InputError, match=f"at least two networks, but got {len(networks)}"):
        fc.fuse(networks)


def test_networks_of_different_kinds_are_refused():
    with pytest.raises(fc.InputError, match="different kinds: MLPConfig, T5Config"):
        fc.fuse([MLP, shapes_only(tiny())])


def test_a_configuration_without_rules_is_refused():
    with pytest.raises(fc.InputError, match="no architecture has a configuration of type dict; there are T5Config"):
        fc.fuse([(MLP[0], {}), (MLP[0], {})])


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], [math.inf, 0.5], [1.0, 0.0]])
def test_weights_that_are_no_mean_are_refused(weights):
    with pytest.raises(fc.InputError, match="they must be positive and sum to 1"):
        fc.fuse([MLP, MLP], weights)


def test_a_weight_too_few_is_refused():
    with pytest.raises(fc.InputError, match="1 weights were given for 2 networks"):
        fc.fuse([MLP, MLP], [1.0])


def test_an_array_of_another_shape_is_refused_and_named():
    params = random_mlp((2, 4, 1), 0)
    with pytest.raises(
        fc.InputError, match=r"network 2: layers.0.bias has shape \(4,\), but its configuration says \(3,\)"
    ):
        fc.fuse([MLP, (params, MLP[1])])


def test_a_missing_array_is_refused_and_named():
    params, config = shapes_only(tiny("v1.1"))
    del params["lm_head"]
    with pytest.raises(fc.InputError, match=r"network 1: .*lm_head\.weight"):
        fc.fuse([(params, config), shapes_only(config)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_entries_that_are_not_finite_are_refused_and_named(value):
    params = jax.tree.map(lambda x: x, MLP[0])
    params["layers"][1]["weight"] = params["layers"][1]["weight"].at[0, 1].set(value)
    with pytest.raises(fc.InputError, match=r"network 2: layers\.1\.weight has entries that are not finite"):
        fc.fuse([MLP, (params, MLP[1])])


@pytest.mark.parametrize("sizes", [(2, 1), (2, 0, 1)])
def test_an_mlp_without_a_hidden_width_is_refused(sizes):
    with pytest.raises(fc.InputError, match="at least one hidden"):
        fc.MLPConfig(sizes)
