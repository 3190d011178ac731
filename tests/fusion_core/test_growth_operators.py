"""Growth operators: what each declares against what it does, its linear map, and its replicas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bea
import fusion_core as fc
from benchmarks import growth_operators as benchmark
from fusion_core import testing
from fusion_core.growth import GROWTH_OPERATORS, copied_units
from fusion_core.models.registry import init as init_of
from fusion_core.models.t5 import init
from fusion_core.models.units import by_name
from tests.strategies import decoders
from tests.strategies.growth import CASES, label, relu_output
from tests.strategies.networks import batch_of, logits, random_mlp, random_t5, tiny

EXPORTED = [case for case in CASES if benchmark.exported(case[2])]
WITHOUT_TORCH = "the reference implementation is an extra: pip install 'deepfusion[parity]'"


@pytest.fixture(scope="module")
def rows():
    """Everything that the benchmark measures, once."""
    return {
        (row["operator"], row["noise"], row["network"]): row
        for row in benchmark.collect(exports=benchmark.can_export())
    }


@pytest.mark.parametrize("case", CASES, ids=label)
def test_an_operator_has_the_properties_that_it_declares(rows, case):
    operator = GROWTH_OPERATORS[case[0]]
    declared = operator.noisy if case[1] else operator.properties
    assert rows[case]["properties"] == declared, rows[case]["measured"]


@pytest.mark.parametrize("case", EXPORTED, ids=label)
def test_a_grown_network_is_read_by_transformers_with_equal_logits(rows, case):
    if rows[case]["export"] is None:
        pytest.skip(WITHOUT_TORCH)
    assert rows[case]["export"] <= benchmark.EXPORT_TOLERANCE


def test_the_table_in_the_docs_is_what_is_measured(rows):
    if not benchmark.can_export():
        pytest.skip(WITHOUT_TORCH)
    text = benchmark.DOC.read_text(encoding="utf-8")
    renewed = benchmark.with_table(text, benchmark.markdown(list(rows.values())))
    assert text == renewed, "renew it: python -m benchmarks.growth_operators --write"


def test_the_docs_explain_every_operator():
    text = benchmark.DOC.read_text(encoding="utf-8")
    for operator in GROWTH_OPERATORS.values():
        assert f"**`{operator.name}`**" in text
        assert operator.name == "random_init" or operator.source.split(",")[0] in text


def test_off_the_exact_cases_the_measured_differences_are_far_from_rounding(rows):
    """So that no property hangs on a threshold."""
    for row in rows.values():
        found = row["measured"]
        assert found.difference / found.scale < 1e-13 or found.difference / found.scale > 1e-2
        assert all(value < 1e-10 or value > 1e-2 for value in found.separation.values())


# The linear map.

# all of them on an MLP; on the others those whose rules differ
DIFFERENT = ("deep_fusion", "net2net_width", "aki", "identity_layers", "shrink_perturb")
LINEAR = [
    (name, network)
    for name, noise, network in CASES
    if noise == 0
    and name != "random_init"
    and (network == "MLP" or (network in ("T5 v1.0", "Llama", "GPT-2") and name in DIFFERENT))
]


@pytest.mark.parametrize(("operator", "network"), LINEAR)
def test_the_map_of_an_operator_is_linear_with_its_transpose_and_pseudo_inverse(operator, network):
    testing.check_map(fc.growth_map(benchmark.CONFIGS[network], operator, factor=2, seed=3))


@pytest.mark.parametrize("operator", ["aki", "net2net_width"])
def test_the_pseudo_inverse_is_theorys(operator):
    """Against conjugate gradients, which know nothing of copies."""
    config = fc.MLPConfig((2, 3, 3, 3, 1))
    with jax.enable_x64(True):
        mapping = fc.growth_map(config, operator, factor=2, seed=0)
        example = random_mlp(config.sizes, 0, jnp.float64)
        event = bea.GrowthEvent.from_linear(mapping.embed, example)
        w = random_mlp(mapping.config.sizes, 1, jnp.float64)
        for ours, theirs in ((mapping.pinv, event.pinv), (mapping.transpose, event.transpose)):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10), ours(w), theirs(w))


@pytest.mark.parametrize("operator", ["deep_fusion", "hypercloning", "net2net_width", "aki", "stacking"])
def test_grown_parameters_are_the_maps_image_where_nothing_is_drawn(operator):
    config = fc.MLPConfig((2, 3, 3, 3, 1))
    params = random_mlp(config.sizes, 0)
    grown, grown_config = fc.grow(params, config, operator, factor=2, seed=5)
    mapping = fc.growth_map(config, operator, factor=2, seed=5)
    assert grown_config == mapping.config
    jax.tree.map(np.testing.assert_array_equal, grown, mapping.embed(params))


def test_self_fusion_is_fuses():
    config = fc.MLPConfig((2, 3, 3, 1))
    params = random_mlp(config.sizes, 0)
    wanted, wanted_config = fc.fuse([(params, config)] * 3)
    grown, grown_config = fc.grow(params, config, "deep_fusion", factor=3)
    assert grown_config == wanted_config
    jax.tree.map(np.testing.assert_array_equal, grown, wanted)
    wanted, _ = fc.fuse([(params, config)] * 3, off_diagonal="antisymmetric", noise=0.3, seed=1)
    grown, _ = fc.grow(params, config, "deep_fusion", factor=3, noise=0.3, seed=1)
    jax.tree.map(np.testing.assert_array_equal, grown, wanted)


# Replication.


@st.composite
def mlp_growths(draw):
    """(sizes, grown hidden widths, seed): few different shapes, each is a compilation."""
    depth = draw(st.integers(1, 3))
    small = draw(st.lists(st.sampled_from([1, 3]), min_size=depth, max_size=depth))
    more = draw(st.lists(st.sampled_from([0, 4]), min_size=depth, max_size=depth).filter(any))
    return (2, *small, 3), tuple(n + m for n, m in zip(small, more, strict=True)), draw(st.integers(0, 999))


@settings(max_examples=15, derandomize=True, deadline=None)
@given(growth=mlp_growths(), dtype=st.sampled_from(["float32", "float64"]))
def test_net2net_keeps_the_outputs_of_an_mlp_at_any_width_and_for_any_activation(growth, dtype):
    sizes, width, seed = growth
    with jax.enable_x64(True):
        params = random_mlp(sizes, seed, dtype)
        grown, config = fc.grow(params, fc.MLPConfig(sizes), "net2net_width", width=width, seed=seed)
    assert config.sizes == (2, *width, 3)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(grown))
    x = np.random.default_rng(seed).standard_normal((4, 2)).astype(dtype)
    for activation in (np.tanh, lambda x: np.maximum(x, 0)):
        before, after = (relu_output(p, x, activation) for p in (params, grown))
        np.testing.assert_allclose(after, before, rtol=0, atol=100 * np.finfo(dtype).eps * (1 + np.abs(before).max()))


@pytest.mark.parametrize("style", ["v1.0", "v1.1"])
def test_net2net_keeps_the_logits_of_a_t5_with_unequal_numbers_of_copies(style):
    """Also with padding, and with heads that share one position bias over two layers."""
    config = tiny(style)
    params, batch = random_t5(config, 1), batch_of(config, 0)
    width = {"d_model": 32, "d_ff": 37, "num_heads": 5}
    grown, grown_config = fc.grow(params, config, "net2net_width", width=width, seed=1)
    counts = np.bincount(copied_units(config, "net2net_width", width=width, seed=1)["encoder.SelfAttention.heads"])
    assert len(set(counts)) > 1, "a case with equal counts would not show what unequal ones do"
    mask = batch["encoder_ids"] != 0
    before, after = (
        logits(p, c, batch["encoder_ids"], batch["targets"], mask) for p, c in ((params, config), (grown, grown_config))
    )
    assert (grown_config.d_model, grown_config.d_ff, grown_config.num_heads) == (32, 37, 5)
    assert 0.1 < np.abs(before).mean() < 2
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5)


def test_net2net_copies_different_units_by_different_seeds_and_keeps_every_unit():
    config = fc.MLPConfig((2, 5, 1))
    found = [copied_units(config, "net2net_width", width=(9,), seed=seed)["hidden.0"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    for units in found:
        assert set(units) == set(range(5))


def test_net2nets_noise_leaves_the_originals_as_they_were():
    config = fc.MLPConfig((2, 3, 3, 1))
    params = random_mlp(config.sizes, 0)
    plain, noisy = (fc.grow(params, config, "net2net_width", factor=2, seed=0, noise=n)[0] for n in (0.0, 0.5))
    moved = [
        jax.tree.map(lambda a, b: np.asarray(a != b), p, n)
        for p, n in zip(plain["layers"], noisy["layers"], strict=True)
    ]
    for layer in moved[:2]:
        assert not layer["weight"][:3].any()
        assert layer["weight"][3:].all()
    assert not moved[2]["weight"].any()
    assert not any(layer["bias"].any() for layer in moved)


@settings(max_examples=10, derandomize=True, deadline=None)
@given(factor=st.integers(2, 3), noise=st.sampled_from([0.1, 2.0]), seed=st.integers(0, 999))
@pytest.mark.parametrize("operator", ["hypercloning", "deep_fusion"])
def test_noise_that_cancels_over_the_copies_keeps_the_function_and_is_of_its_size(operator, factor, noise, seed):
    config = fc.MLPConfig((2, 32, 32, 2))
    with jax.enable_x64(True):
        params = random_mlp(config.sizes, seed, jnp.float64)
        plain, noisy = (fc.grow(params, config, operator, factor=factor, seed=seed, noise=n)[0] for n in (0.0, noise))
    x = np.random.default_rng(seed).standard_normal((4, 2))
    np.testing.assert_allclose(relu_output(noisy, x), relu_output(params, x), rtol=1e-10, atol=1e-10 * (1 + noise))
    for i, (a, b) in enumerate(zip(plain["layers"], noisy["layers"], strict=True)):
        old, new = np.asarray(a["weight"]), np.asarray(b["weight"])
        change = np.sqrt(np.mean((old - new) ** 2))
        wanted = noise * np.sqrt(np.sum(old * old) / np.count_nonzero(old)) if i else 0.0
        # the root mean square of n normal numbers is off by 1 / sqrt(2 n); n is at least size / factor²
        assert change == pytest.approx(wanted, rel=5 / np.sqrt(2 * old.size / factor**2))


def test_hypercloning_is_a_tile_of_halves():
    config = fc.MLPConfig((2, 3, 3, 1))
    params = random_mlp(config.sizes, 0)
    grown, _ = fc.grow(params, config, "hypercloning", factor=2)
    first, hidden, last = (layer["weight"] for layer in params["layers"])
    np.testing.assert_allclose(grown["layers"][0]["weight"], np.tile(first, (2, 1)))
    np.testing.assert_allclose(grown["layers"][1]["weight"], np.tile(hidden, (2, 2)) / 2)
    np.testing.assert_allclose(grown["layers"][2]["weight"], np.tile(last, (1, 2)) / 2)


def test_sparkling_keeps_the_root_mean_square_of_every_activation():
    config = fc.MLPConfig((2, 3, 4, 1))
    with jax.enable_x64(True):
        params = random_mlp(config.sizes, 0, jnp.float64)
        grown, _ = fc.grow(params, config, "sparkling", factor=3)
        plain, _ = fc.grow(params, config, "hypercloning", factor=3)
    jax.tree.map(np.testing.assert_array_equal, grown, plain)
    x = np.random.default_rng(0).standard_normal((5, 2))
    small, large = x, x
    for one, other in zip(*(jax.tree.map(np.asarray, p)["layers"] for p in (params, grown)), strict=True):
        small, large = (np.tanh(h @ p["weight"].T + p["bias"]) for h, p in ((small, one), (large, other)))
        before, after = (np.sqrt(np.mean(h * h, axis=1)) for h in (small, large))
        assert before.max() > 0.1
        np.testing.assert_allclose(after, before, rtol=1e-12)


def test_the_copies_of_sparkling_part_by_the_training_that_plans_take_for_it():
    known = GROWTH_OPERATORS["sparkling"]
    assert (known.rates, known.optimizer_state, known.noisy) == ("rewarm_new", "fresh_new", None)
    with pytest.raises(fc.InputError, match=r"sparkling takes no noise, but noise is 0.1; .* hypercloning"):
        fc.grow(random_mlp((2, 3, 1), 0), fc.MLPConfig((2, 3, 1)), "sparkling", factor=2, noise=0.1, seed=0)


@pytest.mark.parametrize("sizes", [{"factor": 3}, {"width": (70, 50)}])
def test_shrink_perturb_is_the_shrunk_network_in_a_corner_of_one_from_scratch(sizes):
    config = fc.MLPConfig((2, 30, 40, 3))
    grow = lambda params: fc.grow(params, config, "shrink_perturb", seed=0, **sizes)
    params = random_mlp(config.sizes, 0)
    (grown, grown_config), (drawn, _) = grow(params), grow(jax.tree.map(jnp.zeros_like, params))
    assert grown_config.sizes[1:3] == sizes.get("width", (90, 120))
    for old, new, scratch in zip(params["layers"], grown["layers"], drawn["layers"], strict=True):
        for name in ("weight", "bias"):
            wanted = np.asarray(scratch[name]).copy()
            wanted[tuple(slice(n) for n in old[name].shape)] += 0.4 * np.asarray(old[name])
            np.testing.assert_allclose(new[name], wanted, rtol=0, atol=1e-6)
    hidden = np.asarray(drawn["layers"][1]["weight"])
    assert hidden.std() == pytest.approx(hidden.shape[1] ** -0.5, rel=0.1)  # the large network's fan-in
    assert not drawn["layers"][1]["bias"].any()
    # the user's seed may be the source's: the same draws again would be no noise
    assert np.abs(hidden - init_of(grown_config, 0)["layers"][1]["weight"]).max() > 0.01


def test_shrink_perturb_leaves_norms_at_their_scales_and_finds_the_corners_of_packed_arrays():
    config = decoders.small("gpt2")
    params = jax.tree.map(lambda x: x + 0.5, decoders.random_params(config, 0))
    grow = lambda params: fc.grow(params, config, "shrink_perturb", factor=2, seed=0)[0]["transformer"]
    old, new, scratch = params["transformer"], grow(params), grow(jax.tree.map(jnp.zeros_like, params))
    width = config.n_embd
    for norm in (lambda p: p["ln_f"], lambda p: p["h"]["0"]["ln_1"]):
        for name, new_entry in (("weight", 1), ("bias", 0)):
            np.testing.assert_array_equal(norm(new)[name][:width], norm(old)[name])
            np.testing.assert_array_equal(norm(new)[name][width:], np.full(width, new_entry))
    packed = lambda p: np.asarray(p["h"]["0"]["attn"]["c_attn"]["weight"])
    moved = np.split(packed(new) - packed(scratch), 3, axis=1)
    for part, own in zip(moved, np.split(packed(old), 3, axis=1), strict=True):
        np.testing.assert_allclose(part[:width, :width], 0.4 * own, rtol=0, atol=1e-6)
        assert not part[width:].any()
        assert not part[:, width:].any()


def test_new_units_of_aki_are_made_by_the_layer_above():
    config = tiny("v1.1", num_layers=3)
    grown, _ = fc.grow(random_t5(config, 0), config, "aki", factor=2)
    plain, _ = fc.grow(random_t5(config, 0), config, "hypercloning", factor=2)
    grown, plain = by_name(grown), by_name(plain)
    q = "encoder.block.{}.layer.0.SelfAttention.q.weight".format
    own, rows = plain[q(0)], config.inner_dim
    np.testing.assert_array_equal(grown[q(0)][:rows], own[:rows])
    np.testing.assert_array_equal(grown[q(0)][rows:], plain[q(1)][rows:])
    np.testing.assert_array_equal(grown[q(2)], plain[q(2)])  # there is none above
    for name, array in grown.items():
        if "norm" in name or name in ("shared.weight", "lm_head.weight") or "bias" in name:
            np.testing.assert_array_equal(array, plain[name])


def test_aki_takes_weight_and_bias_of_an_mlp_layer_from_one_layer():
    """The input layer's bias has the shape of the next one's, its weight has not: both are copies."""
    config = fc.MLPConfig((2, 3, 3, 3, 1))
    params = random_mlp(config.sizes, 0)
    grown, plain = (fc.grow(params, config, operator, factor=2)[0]["layers"] for operator in ("aki", "hypercloning"))
    for i, above in enumerate((0, 2, 2, 3)):
        for name in ("weight", "bias"):
            rows = params["layers"][i][name].shape[0]
            np.testing.assert_array_equal(grown[i][name][:rows], plain[i][name][:rows])
            np.testing.assert_array_equal(grown[i][name][rows:], plain[above][name][rows:])


def test_random_off_diagonal_keeps_the_diagonal_and_draws_the_rest_as_from_scratch():
    config = fc.MLPConfig((2, 40, 40, 1))
    params = random_mlp(config.sizes, 0)
    grown, _ = fc.grow(params, config, "random_off_diagonal", factor=2, seed=0)
    fused, _ = fc.grow(params, config, "deep_fusion", factor=2)
    hidden, wanted = (np.asarray(p["layers"][1]["weight"]) for p in (grown, fused))
    np.testing.assert_array_equal(hidden[:40, :40], wanted[:40, :40])
    np.testing.assert_array_equal(grown["layers"][0]["weight"], fused["layers"][0]["weight"])
    assert hidden[:40, 40:].std() == pytest.approx(80**-0.5, rel=0.1)


def test_random_block_is_the_fusion_with_a_network_from_scratch_of_another_seed():
    config = tiny("v1.0", num_layers=1, num_decoder_layers=1)
    params = init(config, 0)
    grown, _ = fc.grow(params, config, "random_block", factor=2, seed=0)
    second = np.asarray(grown["shared"]["weight"][:, config.d_model :])
    np.testing.assert_array_equal(grown["shared"]["weight"][:, : config.d_model], params["shared"]["weight"])
    assert second.std() == pytest.approx(1, rel=0.1)
    assert np.abs(second - params["shared"]["weight"]).mean() > 0.5


def test_random_init_is_the_large_network_from_scratch():
    config = tiny("v1.0")
    width = {"d_model": 20, "num_heads": 3}
    grown, grown_config = fc.grow(random_t5(config, 0), config, "random_init", width=width, seed=7)
    assert grown_config == dataclasses.replace(config, **width)
    jax.tree.map(np.testing.assert_array_equal, grown, init(grown_config, 7))
    assert fc.grow(random_t5(config, 0), config, "random_init", depth=3, seed=7)[1].num_layers == 3
