"""Deepening, rates, the units of every architecture, grouped norms, and the growths that are refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from benchmarks import growth_operators as benchmark
from fusion_core import testing
from fusion_core.growth import GROWTH_OPERATORS, copied_units
from fusion_core.growth.units import first_copies
from fusion_core.models.registry import parameter_shapes
from fusion_core.models.units import by_name
from tests.strategies import decoders
from tests.strategies.growth import CASES, label, relu_output, shapes_of
from tests.strategies.networks import batch_of, logits, random_mlp, random_t5, shape_tree, tiny

# Deepening.


def test_stacking_puts_whole_copies_on_top_and_the_position_bias_once():
    config = tiny("v1.0", num_decoder_layers=1)
    params = random_t5(config, 0)
    grown, grown_config = fc.grow(params, config, "stacking", factor=2)
    assert (grown_config.num_layers, grown_config.num_decoder_layers) == (4, 2)
    assert shape_tree(grown) == shapes_of(grown_config)
    small, large = by_name(params), by_name(grown)
    for i in range(4):
        name = "encoder.block.{}.layer.1.DenseReluDense.wi.weight".format
        np.testing.assert_array_equal(large[name(i)], small[name(i % 2)])


def test_stacking_an_mlp_repeats_its_hidden_layers():
    params = random_mlp((2, 3, 3, 3, 1), 0)
    grown, config = fc.grow(params, fc.MLPConfig((2, 3, 3, 3, 1)), "stacking", depth=4)
    assert config.sizes == (2, 3, 3, 3, 3, 3, 1)
    for layer, source in zip(grown["layers"], (0, 1, 2, 1, 2, 3), strict=True):
        np.testing.assert_array_equal(layer["weight"], params["layers"][source]["weight"])


@pytest.mark.parametrize("style", ["v1.0", "v1.1"])
def test_identity_layers_keep_the_logits_at_any_depth(style):
    config = tiny(style)
    params, batch = random_t5(config, 1), batch_of(config, 0)
    grown, grown_config = fc.grow(params, config, "identity_layers", depth=3)
    before, after = (
        logits(p, c, batch["encoder_ids"], batch["targets"]) for p, c in ((params, config), (grown, grown_config))
    )
    assert grown_config.num_layers == grown_config.num_decoder_layers == 3
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
    new = grown["decoder"]["block"]["1"]["layer"]
    assert not new["0"]["SelfAttention"]["o"]["weight"].any()
    assert not new["1"]["EncDecAttention"]["o"]["weight"].any()
    assert not new["2"]["DenseReluDense"]["wo"]["weight"].any()
    assert new["0"]["SelfAttention"]["q"]["weight"].all()
    assert grown["decoder"]["block"]["2"]["layer"]["0"]["SelfAttention"]["o"]["weight"].any()


@settings(max_examples=10, derandomize=True, deadline=None)
@given(
    sizes=st.sampled_from([(2, 3, 1), (2, 3, 5, 1), (2, 4, 4, 3, 1)]), more=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_net2net_depth_keeps_the_outputs_of_relu_networks_and_not_of_tanh_ones(sizes, more, seed):
    params = random_mlp(sizes, seed)
    grown, config = fc.grow(params, fc.MLPConfig(sizes), "net2net_depth", depth=len(sizes) - 3 + more)
    assert len(config.sizes) == len(sizes) + more
    x = np.random.default_rng(seed).standard_normal((5, 2))
    np.testing.assert_allclose(relu_output(grown, x), relu_output(params, x), rtol=0, atol=1e-5)
    assert np.abs(relu_output(grown, x, np.tanh) - relu_output(params, x, np.tanh)).max() > 1e-3


# Rates.


def test_adafactors_rates_keep_the_velocity_after_hypercloning():
    """By directional derivatives, one array after another; the other optimizers are in the table."""
    config, k = fc.MLPConfig((3, 4, 4, 2)), 3
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((7, 2))

    def update(g, p):
        square = g * g if g.ndim < 2 else jnp.outer((g * g).mean(axis=1), (g * g).mean(axis=0)) / jnp.mean(g * g)
        return -g / jnp.sqrt(square) * jnp.sqrt(jnp.mean(p * p))

    def outputs(p):
        *hidden, last = p["layers"]
        h = x
        for layer in hidden:
            h = jnp.tanh(h @ layer["weight"].T + layer["bias"])
        return h @ last["weight"].T + last["bias"]

    @jax.jit
    def velocity(p, factors):
        gradient = jax.grad(lambda p: jnp.mean((outputs(p) - y) ** 2))(p)
        return jax.jvp(outputs, (p,), (jax.tree.map(lambda f, g, q: f * update(g, q), factors, gradient, p),))[1]

    with jax.enable_x64(True):
        params = random_mlp(config.sizes, 0, jnp.float64)
        grown, _ = fc.grow(params, config, "hypercloning", factor=k)
        factors = fc.growth_rate_factors(params, config, "hypercloning", "adafactor", factor=k)
        before = velocity(params, jax.tree.map(jnp.ones_like, params))
        np.testing.assert_allclose(velocity(grown, factors), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_rates_of_hypercloning_are_those_of_fusion(optimizer):
    """Both make every block of a hidden matrix train with one gradient."""
    config = tiny("v1.1", num_layers=1, num_decoder_layers=1)
    params = random_t5(config, 0)
    found = fc.growth_rate_factors(params, config, "hypercloning", optimizer, factor=2)
    wanted = fc.growth_rate_factors(params, config, "deep_fusion", optimizer, factor=2)
    assert wanted == fc.rate_factors(params, config, 2, optimizer)
    jax.tree.map(lambda array, number: np.testing.assert_allclose(array, number, rtol=1e-6), found, wanted)


def test_rates_are_refused_where_there_are_none():
    config = fc.MLPConfig((2, 3, 3, 1))
    params = random_mlp(config.sizes, 0)
    with pytest.raises(fc.InputError, match="no rate factors for stacking"):
        fc.growth_rate_factors(params, config, "stacking", "sgd", factor=2)
    with pytest.raises(fc.InputError, match="no rate factors for the optimizer 'lion'"):
        fc.growth_rate_factors(params, config, "hypercloning", "lion", factor=2)


# The table of axes.


CONFIGS_OF_ALL = [
    tiny("v1.0"),
    tiny("v1.1", num_decoder_layers=1),
    fc.MLPConfig((2, 3, 4, 1)),
    fc.ConvConfig((2, 3, 4), 3, 5),
    *[decoders.small(kind) for kind in decoders.KINDS],
]


@pytest.mark.parametrize("config", CONFIGS_OF_ALL, ids=lambda config: type(config).__name__)
def test_every_array_makes_or_reads_units_once_the_fields_count_them_and_the_start_has_their_shapes(config, x64):
    testing.check_table([config])


def test_first_copies():
    np.testing.assert_array_equal(first_copies(np.array([2, 0, 2, 1, 0])), [0, 1, 0, 3, 1])


def test_growth_can_be_traced():
    config = fc.MLPConfig((2, 3, 3, 1))
    params = random_mlp(config.sizes, 0)
    run = lambda p: fc.grow(p, config, "net2net_width", factor=2, seed=0, noise=0.1)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.jit(run)(params), run(params))


@pytest.mark.parametrize("case", CASES, ids=label)
def test_growth_keeps_the_dtype_and_has_the_shapes_of_its_configuration(case):
    """Traced only: nothing is compiled."""
    operator, noise, network = case
    config = benchmark.CONFIGS[network]
    small = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), parameter_shapes(config))
    seen = []

    def run(params):
        grown, grown_config = fc.grow(params, config, operator, factor=2, seed=0, noise=noise)
        seen.append(grown_config)
        return grown

    grown = jax.eval_shape(run, small)
    assert shape_tree(grown) == shapes_of(seen[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(grown)} == {jnp.dtype(jnp.bfloat16)}


# Grouped norms: copies of the stream keep their groups.

GROUPED = tiny(norm_groups=(10, 6))
TWOFOLD = [
    *[(name, {"factor": 2}) for name in ("deep_fusion", "hypercloning", "net2net_width", "aki", "random_block")],
    ("net2net_width", {"width": {"d_ff": 30, "num_heads": 3}}),
    ("random_off_diagonal", {"factor": 2}),
    ("random_init", {"factor": 2}),
    ("shrink_perturb", {"factor": 2}),
    ("stacking", {"factor": 2}),
    ("identity_layers", {"depth": {"num_decoder_layers": 3}}),
]


@pytest.mark.parametrize(("operator", "sizes"), TWOFOLD)
def test_growth_of_a_network_with_grouped_norms_keeps_the_groups_of_every_copy(operator, sizes):
    params, batch = random_t5(GROUPED, 1), batch_of(GROUPED, 0)
    grown, config = fc.grow(params, GROUPED, operator, seed=0, **sizes)
    copies = config.d_model // GROUPED.d_model
    assert config.norm_groups == (10, 6) * copies
    if not GROWTH_OPERATORS[operator].properties.function_preserving:
        return
    of = lambda p, c: np.asarray(logits(p, c, batch["encoder_ids"], batch["targets"]))
    before = of(params, GROUPED)
    np.testing.assert_allclose(of(grown, config), before, rtol=0, atol=2e-5)
    # the same arrays under one norm over the whole stream, as no operator may leave them
    assert np.abs(of(grown, dataclasses.replace(config, norm_groups=())) - before).max() > 0.01


def test_a_stream_with_grouped_norms_grows_in_whole_multiples_only():
    with pytest.raises(fc.InputError, match=r"norm_groups is \(10, 6\).* give a multiple of 16"):
        fc.grow({}, GROUPED, "random_init", width={"d_model": 24}, seed=0)


# Decoders: heads come in groups, or packed.


def test_copies_of_a_llamas_heads_keep_their_groups():
    config = decoders.small("llama", 1)
    grown, grown_config = fc.grow(
        decoders.random_params(config, 0), config, "net2net_width", width={"num_key_value_heads": 3}, seed=0
    )
    assert (grown_config.num_attention_heads, grown_config.num_key_value_heads) == (6, 3)
    small, large = (p["model"]["layers"]["0"]["self_attn"] for p in (decoders.random_params(config, 0), grown))
    units = copied_units(config, "net2net_width", width={"num_key_value_heads": 3}, seed=0)["layers.0.heads"]
    for name, block in (("q_proj", 2 * config.head_dim), ("k_proj", config.head_dim)):
        old, new = (np.split(np.asarray(p[name]["weight"]), len(p[name]["weight"]) // block) for p in (small, large))
        np.testing.assert_array_equal(new, [old[unit] for unit in units])


def test_a_gpt2s_stream_does_not_grow_without_its_heads():
    config = decoders.small("gpt2")
    with pytest.raises(
        fc.InputError, match=r"n_embd / n_head is 8 / 2 and 16 / 2; all heads of a GPT-2 are equally wide"
    ):
        fc.grow({}, config, "net2net_width", width={"n_embd": 16}, seed=0)
    with pytest.raises(fc.InputError, match="the small network has no place in the grown one: n_embd / n_head"):
        fc.grow({}, config, "shrink_perturb", width={"n_embd": 16}, seed=0)


def test_an_identity_convolution_needs_a_middle():
    with pytest.raises(fc.InputError, match="net2net_depth needs kernels with a middle"):
        fc.growth_map(fc.ConvConfig((2, 3, 3), 2, 4), "net2net_depth", depth=2)


# What is refused. Nothing here is compiled.

MLP = fc.MLPConfig((2, 3, 3, 1))
T5 = tiny("v1.0")


@pytest.mark.parametrize(
    ("config", "operator", "sizes", "message"),
    [
        (MLP, "net3net", {"factor": 2}, "no growth operator is named 'net3net'; there are deep_fusion, hypercloning"),
        ({}, "stacking", {"factor": 2}, "configuration of type dict; there are T5Config, .*LlamaConfig"),
        (MLP, "identity_layers", {"factor": 2}, "identity_layers does not take a MLPConfig: .* use net2net_depth"),
        (T5, "net2net_depth", {"factor": 2}, "net2net_depth does not take a T5Config: .* use identity_layers"),
        (MLP, "hypercloning", {"factor": 1}, "factor is 1; it must be an integer of at least 2"),
        (MLP, "hypercloning", {"factor": 2.5}, "factor is 2.5; it must be an integer"),
        (MLP, "hypercloning", {"factor": True}, "factor is True; it must be an integer"),
        (MLP, "stacking", {"depth": "4"}, "depth is '4'; it must be an integer"),
        (MLP, "hypercloning", {}, "hypercloning got no size; give exactly one of factor"),
        (MLP, "hypercloning", {"width": (4, 4)}, "hypercloning got width; give exactly one of factor"),
        (MLP, "stacking", {"factor": 2, "depth": 4}, "got factor and depth; give exactly one of factor, depth"),
        (T5, "stacking", {"depth": 3}, "cannot grow num_layers from 2 to 3: .* multiple of 2, or use identity_layers"),
        (T5, "identity_layers", {"depth": 2}, "depth is 2, but num_layers is 2 already"),
        (MLP, "net2net_depth", {"depth": 1}, "depth is 1, but the number of hidden-to-hidden layers is 1 already"),
        (fc.MLPConfig((2, 3, 1)), "net2net_depth", {"factor": 2}, "has none; give depth"),
        (fc.MLPConfig((2, 3, 4, 1)), "stacking", {"factor": 2}, r"hidden widths are \(3, 4\)"),
        (fc.MLPConfig((2, 3, 3, 1)), "aki", {"factor": 2}, "aki finds no layer with one of the same shape above it"),
        (T5, "random_init", {"depth": 2, "seed": 0}, "depth is 2, but num_layers is 2 already"),
        (T5, "identity_layers", {"depth": {"num_heads": 4}}, "of num_layers, num_decoder_layers: {'num_layers': 8}"),
        (T5, "identity_layers", {"depth": {}}, "depth is {}; give a number of layers"),
        (T5, "identity_layers", {"depth": {"num_layers": 2.0}}, "num_layers is 2.0; it must be an integer"),
        (T5, "stacking", {"depth": {"num_layers": 3}}, "cannot grow num_layers from 2 to 3"),
        (MLP, "net2net_depth", {"depth": {"num_layers": 3}}, "depth is {'num_layers': 3}; give a number of layers"),
        (MLP, "random_init", {"depth": 4, "seed": 0}, "random_init cannot make this network deeper"),
        (MLP, "net2net_width", {"width": (4,), "seed": 0}, r"width is \(4,\); give the 2 hidden widths"),
        (
            MLP,
            "net2net_width",
            {"width": (2, 4), "seed": 0},
            "width of hidden.0 is 2; it must be an integer of at least 3",
        ),
        (MLP, "net2net_width", {"width": (3, 3), "seed": 0}, "which the network has already"),
        (
            T5,
            "net2net_width",
            {"width": {"d_kv": 8}, "seed": 0},
            "give the fields that grow, of d_model, d_ff, num_heads",
        ),
        (T5, "net2net_width", {"width": {"d_ff": 30.0}, "seed": 0}, "width of d_ff is 30.0"),
        (
            T5,
            "net2net_width",
            {"width": {"d_model": 24}, "seed": 0},
            "d_model cannot grow from 16 to 24 by copying units",
        ),
        (MLP, "net2net_width", {"factor": 2}, "draws at random here, but seed is None"),
        (MLP, "hypercloning", {"factor": 2, "noise": 0.1}, "draws at random here, but seed is None"),
        (MLP, "net2net_width", {"factor": 2, "seed": -1}, "seed is -1; it must be an integer of at least 0"),
        (MLP, "hypercloning", {"factor": 2, "noise": -0.1}, "noise is -0.1; it must be a finite number"),
        (MLP, "hypercloning", {"factor": 2, "seed": 0, "noise": "1"}, "noise is '1'; it must be a finite number"),
        (MLP, "hypercloning", {"factor": 2, "noise": math.nan}, "noise is nan; it must be a finite number"),
        (MLP, "shrink_perturb", {"factor": 2}, "draws at random here, but seed is None"),
        (MLP, "shrink_perturb", {"depth": 4, "seed": 0}, "got depth; give exactly one of factor, width"),
        (MLP, "stacking", {"factor": 2, "noise": 0.1}, "stacking takes no noise, but noise is 0.1; .* hypercloning"),
    ],
)
def test_impossible_growths_are_refused(config, operator, sizes, message):
    params = random_mlp((2, 3, 3, 1), 0) if config is MLP else {}
    with pytest.raises(fc.InputError, match=message):
        fc.grow(params, config, operator, **sizes)


def test_params_of_another_network_or_not_finite_are_refused():
    params = random_mlp((2, 3, 3, 1), 0)
    with pytest.raises(fc.InputError, match=r"layers\.0\.bias has shape \(3,\), but its configuration says \(4,\)"):
        fc.grow(params, fc.MLPConfig((2, 4, 3, 1)), "hypercloning", factor=2)
    params["layers"][1]["weight"] = params["layers"][1]["weight"].at[0, 0].set(math.nan)
    with pytest.raises(fc.InputError, match=r"layers\.1\.weight has entries that are not finite"):
        fc.grow(params, MLP, "hypercloning", factor=2)


def test_a_map_of_nothing_is_refused():
    with pytest.raises(fc.InputError, match="random_init has no linear map"):
        fc.growth_map(MLP, "random_init", factor=2, seed=0)
