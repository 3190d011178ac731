import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fusion_core as fc
from fusion_core.models.registry import config_from_json
from fusion_core.models.t5 import files, init, parameter_shapes, peak_flops, step_flops, token_loss
from fusion_core.models.t5.flops import utilisation
from fusion_core.models.t5.model import relative_buckets
from fusion_core.models.units import by_name
from tests.strategies.networks import STYLES, batch_of, logits, random_t5, tiny


def random_ids(config, seed, *shape):
    return np.random.default_rng(seed).integers(1, config.vocab_size, shape).astype(np.int32)


@pytest.fixture(scope="module", params=sorted(STYLES))
def network(request):
    config = tiny(request.param)
    return random_t5(config, 0), config


def run(network, batch):
    params, config = network
    return np.asarray(logits(params, config, batch["encoder_ids"], batch["targets"], batch["encoder_ids"] != 0))


def test_the_decoder_does_not_see_later_tokens(network):
    batch = batch_of(network[1], 0)
    before = run(network, batch)
    batch["targets"][:, 4:] = random_ids(network[1], 1, 3, 3)
    after = run(network, batch)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert np.abs(after[:, 4:] - before[:, 4:]).max() > 0.1


def test_every_target_position_sees_the_one_before_it(network):
    batch = batch_of(network[1], 0)
    before = run(network, batch)
    batch["targets"][:, 3] = 1 + batch["targets"][:, 3] % 50
    assert (np.abs(run(network, batch) - before)[:, 3:].max(axis=(0, 2)) > 1e-3).all()


def test_nothing_leaks_from_masked_source_tokens(network):
    """Tokens under the mask, whatever they are, change no logit."""
    params, config = network
    batch = batch_of(config, 0)
    mask = batch["encoder_ids"] != 0
    before = run(network, batch)
    garbage = np.where(mask, batch["encoder_ids"], random_ids(config, 2, *mask.shape))
    after = np.asarray(logits(params, config, garbage, batch["targets"], mask))
    np.testing.assert_array_equal(after, before)
    assert np.abs(np.asarray(logits(params, config, garbage, batch["targets"], mask | True)) - before).max() > 1e-2


def test_a_fully_masked_source_gives_finite_logits(network):
    params, config = network
    batch = batch_of(config, 0)
    assert np.isfinite(
        np.asarray(
            logits(params, config, batch["encoder_ids"], batch["targets"], batch["targets"][:, :1] < np.zeros((3, 11)))
        )
    ).all()


def test_the_loss_is_the_cross_entropy_of_the_tokens_that_are_not_padding(network):
    params, config = network
    batch = batch_of(config, 3)
    targets = batch["targets"]
    shifted = np.concatenate([np.zeros((3, 1), np.int32), targets[:, :-1]], axis=1)
    out = np.asarray(logits(params, config, batch["encoder_ids"], shifted, batch["encoder_ids"] != 0), np.float64)
    log_p = out - np.log(np.exp(out).sum(axis=-1, keepdims=True))
    expected = -sum(log_p[b, t, targets[b, t]] for b, t in zip(*np.nonzero(targets), strict=True))
    total, count = jax.jit(token_loss, static_argnums=1)(params, config, batch["encoder_ids"], targets)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert int(count) == np.count_nonzero(targets) < targets.size


def test_step_flops_are_those_that_the_compiler_counts():
    """XLA counts softmax, norms and the position bias too; at this width they are a tenth."""
    for style in STYLES:
        config = tiny(
            style, vocab_size=512, d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=1, num_decoder_layers=1
        )
        batch, source, target = 4, 64, 32
        shapes = parameter_shapes(config)
        ids = [jax.ShapeDtypeStruct((batch, n), jnp.int32) for n in (source, target)]
        counted = logits.lower(shapes, config, *ids).compile().cost_analysis()["flops"]
        # a step is three forward passes
        assert counted == pytest.approx(step_flops(config, batch, source, target) / 3, rel=0.1), style


def test_step_flops_are_proportional_to_the_batch():
    config = fc.T5Config.named("t5-small")
    assert step_flops(config, 8, 512, 114) == 8 * step_flops(config, 1, 512, 114)


def test_bidirectional_buckets_tell_before_from_after_and_causal_ones_do_not_see_after():
    config = tiny()
    both = relative_buckets(30, 30, config, bidirectional=True)
    causal = relative_buckets(30, 30, config, bidirectional=False)
    after = np.triu(np.ones((30, 30), bool), 1)
    assert both[after].min() >= 4 > both[~after].max()
    assert not causal[after].any()
    assert causal.max() == 7
    # the bucket depends on the distance alone, and does not fall with it
    assert (np.diff(causal[-1][::-1]) >= 0).all()
    np.testing.assert_array_equal(causal[5, :6], causal[25, 20:26])


@pytest.mark.parametrize("style", sorted(STYLES))
def test_initialisation_depends_on_the_seed_alone(style):
    config = tiny(style)
    one, again, other = init(config, 7), init(config, 7), init(config, 8)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one["shared"]["weight"], other["shared"]["weight"])


def test_initialisation_has_the_deviations_of_the_reference():
    config = fc.T5Config(vocab_size=400, d_model=64, d_kv=16, d_ff=256, num_layers=1, num_decoder_layers=1, num_heads=8)
    layers = init(config, 0)["decoder"]["block"]["0"]["layer"]
    attention, ff = layers["0"]["SelfAttention"], layers["2"]["DenseReluDense"]
    deviations = {
        (64 * 16) ** -0.5: attention["q"],
        64**-0.5: attention["k"],
        128**-0.5: attention["o"],
        256**-0.5: ff["wo"],
    }
    for expected, array in deviations.items():
        assert float(array["weight"].std()) == pytest.approx(expected, rel=0.05)
    assert (layers["0"]["layer_norm"]["weight"] == 1).all()


def test_matched_cross_attention_starts_with_scaled_keys_as_queries():
    config = tiny()
    params = init(config, 0, match_cross_attention=True)
    for block in params["decoder"]["block"].values():
        weights = block["layer"]["1"]["EncDecAttention"]
        np.testing.assert_allclose(weights["q"]["weight"], weights["k"]["weight"] / 6**0.5, rtol=1e-6)


# Configurations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "T5Config.d_model is 0; it must be a positive integer"),
        ({"num_layers": -1}, "T5Config.num_layers is -1"),
        ({"feed_forward_proj": "gated-tanh"}, "'gated-tanh'; it can be relu, .* with 'gated-' before it"),
        ({"relative_attention_num_buckets": 7}, "must be an even number, at least 4"),
        ({"relative_attention_num_buckets": 2}, "must be an even number, at least 4"),
        (
            {"relative_attention_max_distance": 4},
            "relative_attention_max_distance is 4; it must be above 4, half of the buckets",
        ),
    ],
)
def test_configurations_that_are_none_are_refused(changes, message):
    with pytest.raises(fc.InputError, match=message):
        tiny(**changes)


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(fc.InputError, match=r"no T5 is named 't5-tiny'; known are t5-small, .*t5-v1_1-xxl"):
        fc.T5Config.named("t5-tiny")


def test_a_named_configuration_can_be_changed():
    assert fc.T5Config.named("t5-v1_1-small", num_layers=2).num_layers == 2


@pytest.mark.parametrize(
    ("name", "millions"),
    [("t5-efficient-tiny", 15.58), ("t5-efficient-mini", 31.23)],
)
def test_the_efficient_sizes_have_the_published_number_of_parameters(name, millions):
    """The model cards' counts; a d_kv of 32, as the paper's table has it, would give 13.5 and 26.5 million."""
    shapes = by_name(parameter_shapes(fc.T5Config.named(name)))
    assert sum(int(np.prod(struct.shape)) for struct in shapes.values()) == pytest.approx(millions * 1e6, rel=1e-3)


def test_two_of_the_papers_sizes_fuse_to_the_next():
    sizes = [fc.T5Config.named(f"deep-fusion-{size}") for size in "sml"]
    assert sizes[0] == fc.T5Config.named("t5-small")
    for small, large in itertools.pairwise(sizes):
        assert fc.growth.fused_config([small, small]) == large


# Dropout in configurations


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_dropout_rate_that_is_none_is_refused(rate):
    with pytest.raises(fc.InputError, match=r"T5Config.dropout_rate is .*; it must be at least 0 and below 1"):
        tiny(dropout_rate=rate)


def test_the_dropout_rate_is_kept_in_files_and_is_the_references_where_none_is_given():
    written = files.config_to_json(tiny(dropout_rate=0.25))
    assert written["dropout_rate"] == 0.25
    assert files.config_from_json(written).dropout_rate == 0.25
    del written["dropout_rate"]
    assert files.config_from_json(written).dropout_rate == 0.1
    assert files.config_from_json(written | {"dropout_rate": 0}).dropout_rate == 0.0
    with pytest.raises(fc.InputError, match="dropout_rate is 'none'; it must be at least 0 and below 1"):
        config_from_json(written | {"dropout_rate": "none"})


def test_sources_of_different_dropout_are_not_fused():
    with pytest.raises(fc.InputError, match=r"dropout_rate is 0.1 and 0.0; it must agree"):
        fc.growth.fused_config([tiny(dropout_rate=0.1), tiny()])


# Utilisation


def test_peaks_are_found_by_the_names_that_jax_gives_devices():
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 67e12
    assert peak_flops("TPU v4") == 275e12
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5e") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("TPU v4", "float32") is None


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40S", "AMD MI300X", ""])
def test_the_peak_of_an_unknown_device_is_none(kind):
    assert peak_flops(kind) is None
    assert utilisation(1e12, 1.0, kind) is None


def test_utilisation_is_the_share_of_all_devices_peak():
    assert utilisation(312e12, 0.5, "NVIDIA A100-SXM4-40GB", devices=4) == pytest.approx(0.5)
