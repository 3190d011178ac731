import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fusion_core as fc
from fusion_core.models.t5 import cache
from fusion_core.models.t5.decoding import Decoding, generate, restricted
from tests.strategies.decoding import LENGTH, ends, talkative
from tests.strategies.networks import STYLES, batch_of, logits, random_t5, tiny


@functools.cache
def network(style="v1.0", seed=0, **changes):
    config = tiny(style, **changes)
    return random_t5(config, seed), config


@functools.partial(jax.jit, static_argnums=(1, 4))
def cached(params, config, encoder_ids, decoder_ids, length):
    """Logits of every position, a token at a time; decoder_ids are [batch, sequences, length]."""
    memory = cache.remember(params, config, encoder_ids, encoder_ids != 0, length)
    kept = cache.empty_cache(params, config, *decoder_ids.shape[:2], length)

    def one(kept, read):
        out, kept = cache.next_logits(params, config, memory, kept, *read)
        return kept, out

    steps = (jnp.moveaxis(decoder_ids, 2, 0), jnp.arange(decoder_ids.shape[2]))
    return jnp.moveaxis(jax.lax.scan(one, kept, steps)[1], 0, 2)


def both(params, config, *, target=26):
    """Cached logits and the whole pass's, with sequences longer than the buckets' range."""
    batch = batch_of(config, 0, batch=4, target=target)
    ids, decoder_ids = jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["targets"])
    whole = np.asarray(logits(params, config, ids, decoder_ids, ids != 0))
    step = np.asarray(cached(params, config, ids, decoder_ids[:, None], target + 3))[:, 0]
    return step, whole


@pytest.mark.parametrize("style", sorted(STYLES))
def test_logits_token_by_token_equal_the_whole_passs(style):
    step, whole = both(*network(style))
    assert np.abs(whole).mean() > 0.1
    np.testing.assert_allclose(step, whole, rtol=0, atol=1e-5)
    # a position off by one in the bias or the cache would show
    assert np.abs(step[:, 1:] - whole[:, :-1]).max() > 0.1


def test_logits_token_by_token_equal_the_whole_passs_in_double_precision():
    with jax.enable_x64(True):
        params, config = network("v1.1", num_layers=1, num_decoder_layers=1)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        step, whole = both(params, config, target=9)
    assert step.dtype == np.float64
    np.testing.assert_allclose(step, whole, rtol=0, atol=1e-13)


def test_logits_token_by_token_equal_the_whole_passs_with_grouped_norms():
    config = tiny("v1.1", num_layers=1, num_decoder_layers=1)
    fused, fused_config = fc.fuse([(random_t5(config, 0), config), (random_t5(config, 1), config)], norm="grouped")
    assert fused_config.norm_groups == (16, 16)
    step, whole = both(fused, fused_config, target=9)
    np.testing.assert_allclose(step, whole, rtol=0, atol=1e-5)


def test_sequences_of_one_source_do_not_see_each_other():
    params, config = network(num_layers=1, num_decoder_layers=1)
    batch = batch_of(config, 0)
    ids = jnp.asarray(batch["encoder_ids"])
    two = jnp.asarray(np.random.default_rng(1).integers(1, config.vocab_size, (3, 2, 7)))
    together = cached(params, config, ids, two, 7)
    for i in range(2):
        alone = cached(params, config, ids, two[:, i : i + 1], 7)[:, 0]
        np.testing.assert_allclose(together[:, i], alone, rtol=0, atol=1e-5)


def greedy_by_whole_passes(params, config, encoder_ids, length):
    """The definition: the most probable token of the whole pass, again and again."""
    written = np.zeros((len(encoder_ids), length + 1), np.int32)
    for t in range(length):
        out = logits(params, config, encoder_ids, written[:, :length], encoder_ids != 0)
        written[:, t + 1] = np.asarray(out)[:, t].argmax(axis=-1)
    written = written[:, 1:]
    for row in written:
        ends = np.flatnonzero(row == config.eos_token_id)
        if len(ends):
            row[ends[0] + 1 :] = config.pad_token_id
    return written


def test_greedy_answers_are_the_most_probable_tokens_and_end_with_the_end_token():
    params, config, ids = talkative("v1.0")
    found = generate(params, config, ids, max_length=LENGTH)
    np.testing.assert_array_equal(found, greedy_by_whole_passes(params, config, ids, LENGTH))
    assert len(ends(found, config.eos_token_id)) > 2


def test_an_answer_does_not_depend_on_the_padding_or_the_batch():
    params, config, ids = talkative("v1.0")
    found = generate(params, config, ids, max_length=LENGTH)
    wider = np.pad(ids, ((0, 0), (0, 5)))
    np.testing.assert_array_equal(generate(params, config, wider, max_length=LENGTH), found)
    np.testing.assert_array_equal(generate(params, config, ids[4:5], max_length=LENGTH), found[4:5])


def test_one_beam_is_greedy():
    params, config, ids = talkative("v1.0")
    one = generate(params, config, ids, max_length=LENGTH, method="beam", length_penalty=0.0)
    np.testing.assert_array_equal(one, generate(params, config, ids, max_length=LENGTH))


def test_a_network_fused_with_itself_writes_the_same():
    params, config, ids = talkative("v1.0")
    fused, fused_config = fc.fuse([(params, config), (params, config)])
    assert fused_config.d_model == 2 * config.d_model
    for options in ({}, {"method": "beam", "beams": 3}):
        small = generate(params, config, ids, max_length=LENGTH, **options)
        np.testing.assert_array_equal(generate(fused, fused_config, ids, max_length=LENGTH, **options), small)


# Samples


def distribution(params, config, ids, how):
    """Probabilities of the first token by NumPy, from the whole pass's logits."""
    first = np.asarray(logits(params, config, ids, np.zeros((1, 1), np.int32)), np.float64)[0, 0] / how.temperature
    order = np.argsort(-first)
    if how.top_k:
        first[order[how.top_k :]] = -np.inf
    p = np.exp(first - first.max())
    p /= p.sum()
    if how.top_p < 1:
        reached = np.cumsum(p[order])
        p[order[1 + np.searchsorted(reached, how.top_p) :]] = 0
    return p / p.sum()


OPTIONS = [{"temperature": 0.5}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 20, "top_p": 0.8}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_samples_have_the_distribution_of_the_softmax(options):
    params, config = network(num_layers=1, num_decoder_layers=1)
    n, ids = 10_000, batch_of(config, 5, batch=1, padded=False)["encoder_ids"]
    drawn = generate(params, config, np.repeat(ids, n, axis=0), max_length=1, method="sample", seed=1, **options)
    counts = np.bincount(drawn[:, 0], minlength=config.vocab_size)
    p = distribution(params, config, ids, Decoding(1, "sample", **options))
    assert counts[p == 0].sum() == 0

    def p_value(p):
        order = np.argsort(p)
        rare = n * np.cumsum(p[order]) < 5  # too rare for the approximation: counted as one
        expected = np.append(n * p[order][~rare], n * p[order][rare].sum())
        seen = np.append(counts[order][~rare], counts[order][rare].sum())
        return stats.chisquare(seen[expected > 0], expected[expected > 0]).pvalue

    assert p_value(p) > 1e-3
    # the test has the power to tell a temperature that is off by a fifth
    hotter = np.where(p > 0, p, 1.0) ** (1 / 1.2) * (p > 0)
    assert p_value(hotter / hotter.sum()) < 1e-3


def test_samples_are_those_of_the_seed_and_of_the_rows_number():
    params, config, ids = talkative("v1.0")
    draw = functools.partial(generate, params, config, max_length=LENGTH, method="sample")
    once = draw(ids, seed=3)
    np.testing.assert_array_equal(draw(ids, seed=3), once)
    assert (draw(ids, seed=4) != once).any()
    backwards = np.arange(len(ids))[::-1]
    np.testing.assert_array_equal(draw(ids[backwards], seed=3, rows=backwards.tolist()), once[backwards])
    equal = draw(np.repeat(ids[:1], len(ids), axis=0), seed=3)
    assert len(np.unique(equal, axis=0)) > 1


def test_one_token_to_draw_from_is_greedy():
    params, config, ids = talkative("v1.0")
    one = generate(params, config, ids, max_length=LENGTH, method="sample", top_k=1)
    np.testing.assert_array_equal(one, generate(params, config, ids, max_length=LENGTH))


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    p = np.asarray([[0.1, 0.4, 0.2, 0.3]])
    kept = lambda **options: np.isfinite(restricted(jnp.log(jnp.asarray(p)), Decoding(1, "sample", **options)))[0]
    assert kept(top_p=0.39).tolist() == [False, True, False, False]
    assert kept(top_p=0.5).tolist() == [False, True, False, True]
    assert kept(top_p=0.95).tolist() == [True, True, True, True]
    assert kept(top_p=1e-6).tolist() == kept(top_k=1).tolist() == [False, True, False, False]
    # after top_k the probabilities are those among the k
    assert kept(top_k=2, top_p=0.5).tolist() == [False, True, False, False]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"method": "sample", "temperature": 0.0}, "the temperature is 0.0"),
        ({"method": "sample", "top_k": -1}, "top_k is -1"),
        ({"method": "sample", "top_p": 0.0}, "top_p is 0.0"),
        ({"method": "beam", "beams": 0}, "beams is 0"),
        ({"method": "beam", "beams": 31}, "31 beams need 62 tokens, but the vocabulary has 60"),
        ({"method": "beam", "length_penalty": float("nan")}, "the length penalty is nan"),
        ({"seed": 2**31}, "the seed is 2147483648"),
        ({"temperature": 0.5}, "have no meaning for the method 'greedy'"),
        ({"method": "beam", "top_k": 3}, "have no meaning for the method 'beam'"),
        ({"beams": 4}, "beams, length_penalty and early_stopping have no meaning for the method 'greedy'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    params, config = network()
    with pytest.raises(fc.InputError) as refused:
        generate(params, config, np.ones((1, 3), np.int32), **{"max_length": 4, **options})
    assert message in str(refused.value)


def test_ids_that_are_no_tokens_are_refused():
    params, config = network()
    for ids, message in (([[60]], "range from 60 to 60, but there are 60"), ([3, 4], "must be integers")):
        with pytest.raises(fc.InputError, match=message):
            generate(params, config, np.asarray(ids), max_length=4)
