"""Norm modes of T5, Llama and GPT-2, against the weighted mean of the sources' logits; float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.growth import fused_config
from fusion_core.growth.norms import Moments, norm_factors
from fusion_core.models.norms import NormKind, unit_layer, unit_rms
from fusion_core.models.t5.model import shifted_right
from tests.strategies import decoders
from tests.strategies.networks import batch_of, logits, random_t5, tiny

ONE_LAYER = {"vocab_size": 30, "num_layers": 1, "num_decoder_layers": 1}
KINDS = ("v1.0", "v1.1", "llama", "llama, tied", "gpt2", "gpt2, untied")


def config_of(kind, i=0):
    if kind.startswith("v"):
        return tiny(kind, **ONE_LAYER, **({"d_model": 10, "num_heads": 3, "d_ff": 7} if i else {}))
    return decoders.small(kind, i)


@functools.cache
def network(kind, i, seed):
    """(params, config) number ``i`` of the kind, in float64. Sources of other seeds have other scales."""
    config = config_of(kind, i)
    with jax.enable_x64(True):
        params = random_t5(config, seed) if kind.startswith("v") else decoders.random_params(config, seed)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params), config


@functools.cache
def batch(kind):
    config = config_of(kind)
    return batch_of(config, 0) if kind.startswith("v") else {"ids": decoders.tokens(config)}


def outputs(params, config, tokens):
    if "ids" in tokens:
        return np.asarray(decoders.logits(params, config, tokens["ids"]))
    ids, targets = tokens["encoder_ids"], tokens["targets"]
    return np.asarray(logits(params, config, ids, np.asarray(shifted_right(jnp.asarray(targets), config)), ids != 0))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_with_grouped_norms_the_fused_logits_are_the_weighted_mean_and_the_loss_at_most_the_losses_mean(kind):
    """Unequal widths, any weights; the shapes are fixed, so every example but the first is compiled already."""
    tokens = batch(kind)

    @settings(max_examples=3, derandomize=True, deadline=None)
    @given(first=st.floats(0.05, 0.95), seed=st.integers(0, 3))
    def check(first, seed):
        networks = [network(kind, i, seed + i) for i in range(2)]
        weights = [first, 1 - first]
        fused, config = fc.fuse(networks, weights, norm="grouped")
        assert len(config.norm_groups) == 2
        own = [outputs(*n, tokens) for n in networks]
        mean = sum(w * out for w, out in zip(weights, own, strict=True))
        assert np.abs(own[0] - own[1]).mean() > 0.05
        np.testing.assert_allclose(outputs(fused, config, tokens), mean, rtol=0, atol=1e-12)
        # Jensen: cross-entropy is convex in the logits, so the fused loss is at most the mean of the losses
        losses = [cross_entropy(out, tokens) for out in own]
        fused_loss = cross_entropy(outputs(fused, config, tokens), tokens)
        assert fused_loss <= np.dot(weights, losses)
        # strictly, by half the variance of the logits' difference: an equality would be two equal sources
        assert fused_loss < np.dot(weights, losses) - 1e-4

    check()


def cross_entropy(out, tokens):
    """Mean over the tokens that count: a T5's targets, a decoder's next tokens."""
    out, wanted = (out[:, :-1], tokens["ids"][:, 1:]) if "ids" in tokens else (out, tokens["targets"])
    losses = np.log(np.exp(out).sum(-1)) - np.take_along_axis(out, wanted[..., None], -1)[..., 0]
    return losses[(wanted != 0) | ("ids" in tokens)].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_self_fusion_is_exact_under_every_norm_mode_and_with_noise(kind):
    source, tokens = network(kind, 0, 0), batch(kind)
    before = outputs(*source, tokens)
    assert 0.1 < np.abs(before).mean() < 5
    noise = {"off_diagonal": "antisymmetric", "noise": 0.3}
    for options in ({}, noise, {"norm": "calibrated", "calibration": tokens}, {"norm": "grouped"}):
        fused, config = fc.fuse([source] * 2, [0.3, 0.7], **options)
        np.testing.assert_allclose(outputs(fused, config, tokens), before, rtol=0, atol=1e-11, err_msg=str(options))


@pytest.mark.parametrize("kind", ["v1.0", "gpt2"])
def test_calibrated_norms_come_nearer_to_sources_of_unequal_scale(kind):
    """Source 2's stream is four times as large, which its own norms would undo."""
    first, (params, config) = network(kind, 0, 0), network(kind, 0, 1)
    louder = jax.tree.map(lambda x: x, params)
    for path in (("shared",),) if kind == "v1.0" else (("transformer", "wte"), ("transformer", "wpe")):
        node = functools.reduce(lambda tree, key: tree[key], path, louder)
        node["weight"] = 4 * node["weight"]
    if kind == "v1.0":  # the head is the embedding too
        norm = louder["decoder"]["final_layer_norm"]
        norm["weight"] = norm["weight"] / 4
    networks, tokens = [first, (louder, config)], batch(kind)
    mean = sum(outputs(*n, tokens) for n in networks) / 2
    deviation = {}
    for mode in ("plain", "calibrated"):
        extra = {"calibration": tokens} if mode == "calibrated" else {}
        fused, cfg = fc.fuse(networks, norm=mode, **extra)
        assert cfg.norm_groups == ()
        deviation[mode] = np.sqrt(np.mean((outputs(fused, cfg, tokens) - mean) ** 2))
    assert deviation["calibrated"] < 0.8 * deviation["plain"]


def test_the_first_calibrated_factor_is_the_least_squares_one():
    """The encoder's first norm sees embeddings: the factor can be worked out by hand."""
    networks, tokens = [network("v1.0", i, i) for i in range(2)], batch("v1.0")
    mapping = fc.calibrate(networks, tokens)
    rule = mapping.rules["encoder"]["block"]["0"]["layer"]["0"]["layer_norm"]["weight"]
    real = tokens["encoder_ids"][tokens["encoder_ids"] != 0]  # padding does not count
    streams = [np.asarray(params["shared"]["weight"])[real] for params, _ in networks]
    squares = [np.mean(s**2, axis=1) for s in streams]
    widths = [s.shape[1] for s in streams]
    ratio = np.sqrt(squares / (np.average(squares, axis=0, weights=widths)))
    np.testing.assert_allclose(rule.scales, (ratio.sum(axis=1) / (ratio**2).sum(axis=1)), rtol=1e-4)
    assert np.ptp(rule.scales) > 0.005


@pytest.mark.parametrize("centred", [False, True])
def test_factors_from_moments_are_those_of_the_activations(centred):
    """Least squares over the normed activations themselves, with a mean and scales that differ, padding left out."""
    rng, widths, epsilon = np.random.default_rng(0), (6, 10), 0.1
    streams = [jnp.asarray((i + 1) * rng.standard_normal((3, 7, n)) + i) for i, n in enumerate(widths)]
    counts = jnp.asarray(rng.integers(0, 2, (3, 7)), jnp.float64)
    unit = unit_layer if centred else unit_rms
    moments = [{("norm",): Moments(x.mean(-1), x.var(-1), counts)} for x in streams]
    found = norm_factors(moments, widths, NormKind(centred, epsilon))["norm",]
    common = jnp.split(unit(jnp.concatenate(streams, axis=-1), epsilon), [widths[0]], axis=-1)
    for factor, a, x in zip(found, common, streams, strict=True):
        a, b = counts[..., None] * a, unit(x, epsilon)
        assert factor == pytest.approx(float(jnp.vdot(a, b) / jnp.vdot(a, a)), rel=1e-12)


def test_grouped_fusion_nests():
    """fuse(fuse(A, B), C) is fuse(A, B, C), in arrays, groups and function."""
    a, b, c = network("v1.0", 0, 0), network("v1.0", 1, 1), network("v1.0", 0, 2)
    at_once, config = fc.fuse([a, b, c], norm="grouped")
    nested, nested_config = fc.fuse([fc.fuse([a, b], norm="grouped"), c], [2 / 3, 1 / 3], norm="grouped")
    assert config.norm_groups == (16, 10, 16)
    assert config == nested_config
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-13), nested, at_once)


def test_packed_fusion_nests():
    a, b, c = network("gpt2", 0, 0), network("gpt2", 1, 1), network("gpt2", 0, 2)
    at_once, _ = fc.fuse([a, b, c])
    nested, _ = fc.fuse([a, fc.fuse([b, c])], [1 / 3, 2 / 3])
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-13), nested, at_once)


def test_a_norm_of_groups_is_the_norm_of_each():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 7)))
    found = unit_rms(x, 1e-6, (4, 3))
    np.testing.assert_allclose(np.mean(np.asarray(found)[..., :4] ** 2, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.mean(np.asarray(found)[..., 4:] ** 2, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(unit_rms(x, 1e-6, (7,)), unit_rms(x, 1e-6))


@pytest.mark.parametrize("kind", ["v1.1", "llama", "gpt2"])
def test_grouped_norms_are_not_exported_and_the_reason_is_given(kind, tmp_path):
    fused, config = fc.fuse([network(kind, 0, 0)] * 2, norm="grouped")
    with pytest.raises(fc.InputError, match=r"norm_groups is .* cannot be exported .* fuse with norm='plain'"):
        fc.save_pretrained(tmp_path / "fused", fused, config)
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize("kind", ["v1.0", "llama", "gpt2"])
def test_groups_that_do_not_add_up_are_refused(kind):
    with pytest.raises(fc.InputError, match=r"norm_groups is \(3, 4\); it must be positive widths that add up to"):
        dataclasses.replace(config_of(kind), norm_groups=(3, 4))


def test_a_grouped_source_is_refused_by_the_modes_that_would_lose_its_groups():
    grouped = fused_config([config_of("v1.0")] * 2, "grouped")
    with pytest.raises(fc.InputError, match=r"network 1 has grouped norms \(norm_groups is \(16, 16\)\)"):
        fused_config([grouped, grouped])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "calibrated"}, "needs a batch of tokens"),
        ({"norm": "grouped", "calibration": {}}, "a calibration batch was given, but norm is 'grouped'"),
    ],
)
def test_calibration_and_its_batch_go_together(options, message):
    with pytest.raises(fc.InputError, match=message):
        fc.fuse([network("v1.0", 0, 0)] * 2, **options)


def test_calibration_on_padding_is_refused():
    tokens = {name: np.zeros_like(ids) for name, ids in batch("v1.0").items()}
    with pytest.raises(fc.InputError, match="give a batch of tokens that are not padding"):
        fc.calibrate([network("v1.0", 0, 0)] * 2, tokens)


def test_calibration_inside_jit_is_refused():
    params, config = network("v1.0", 0, 0)
    grow = lambda p: fc.fuse([(p, config)] * 2, norm="calibrated", calibration=batch("v1.0"))[0]
    with pytest.raises(fc.InputError, match=r"outside jax\.jit"):
        jax.jit(grow)(params)
