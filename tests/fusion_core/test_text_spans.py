"""Span corruption against T5's rule and its exact distribution; windows and batches of tokens in memory."""

import collections
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import SpanCorruption
from fusion_core.text.span_corruption import (
    MEAN_SPAN,
    NOISE_DENSITY,
    corrupt,
    corrupted_lengths,
    noise_masks,
    span_counts,
    target_length,
    window_length,
)
from fusion_core.text.tokenizer import EOS, SpecialIds
from tests.strategies.texts import documents, rebuilt, tokenizer

quick = settings(max_examples=40, derandomize=True, deadline=None)
SHAPES = st.tuples(st.integers(4, 200), st.sampled_from([0.1, 0.15, 0.3, 0.5]), st.sampled_from([1.0, 2.0, 3.0, 5.0]))

COUNTING_DOWN = SpecialIds(0, EOS, tuple(range(999, 899, -1)))

# T5's rule


def t5_mask(length, density, mean_span, shuffle):
    """``random_spans_noise_mask`` as the paper's code has it, step by step; ``shuffle`` mixes a list."""
    asked, length = length, max(length, 2)
    noise = int(np.round(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    spans = max(int(np.round(np.float32(noise) / np.float32(mean_span))), 1)

    def segments(items):
        first = [False, *shuffle([i < spans - 1 for i in range(items - 1)])]
        return list(collections.Counter(itertools.accumulate(first)).values())

    mask = []
    for kept, hidden in zip(segments(length - noise), segments(noise), strict=True):
        mask += [False] * kept + [True] * hidden
    return mask[:asked]


@pytest.mark.parametrize(("density", "mean_span"), [(0.15, 3.0), (0.15, 1.0), (0.3, 2.0), (0.5, 5.0)])
def test_the_numbers_of_noise_tokens_and_spans_are_t5s(density, mean_span):
    """At 190 tokens, among others, T5's rounding in float32 is not that of float64."""
    for length in [*range(2, 700), 1023, 4096]:
        mask = t5_mask(length, density, mean_span, list)
        edges = sum(b and not a for a, b in itertools.pairwise(mask))
        assert span_counts(length, density, mean_span) == (sum(mask), edges), length
    assert span_counts(190, 0.15, 3.0)[0] != round(190 * 0.15)


def test_a_single_token_is_kept_as_by_t5():
    masks = noise_masks(np.random.default_rng(0), 2, 1, NOISE_DENSITY, MEAN_SPAN)
    assert masks.tolist() == [t5_mask(1, NOISE_DENSITY, MEAN_SPAN, list)] * 2


def compositions(items, parts):
    """All ways to cut ``items`` into ``parts`` non-empty pieces."""
    for cuts in itertools.combinations(range(1, items), parts - 1):
        yield tuple(np.diff([0, *cuts, items]).tolist())


def lengths_of(mask):
    return tuple(len(list(run)) for _, run in itertools.groupby(mask.tolist()))


def p_value(masks, length, noise, spans):
    """Of the chi-square test that all masks are equally likely: all compositions of kept and of noise tokens."""
    possible = [
        tuple(itertools.chain(*zip(a, b, strict=True)))
        for a in compositions(length - noise, spans)
        for b in compositions(noise, spans)
    ]
    assert len(possible) == math.comb(length - noise - 1, spans - 1) * math.comb(noise - 1, spans - 1)
    counts = collections.Counter(map(lengths_of, masks))
    assert counts.keys() <= set(possible)
    return scipy.stats.chisquare([counts[p] for p in possible]).pvalue


@pytest.mark.parametrize(
    ("length", "density", "mean_span"), [(12, 0.5, 2.0), (20, 0.3, 3.0), (9, 0.5, 1.0), (15, 0.2, 1.5)]
)
def test_masks_are_uniform_over_all_that_are_possible(length, density, mean_span):
    noise, spans = span_counts(length, density, mean_span)
    masks = noise_masks(np.random.default_rng(0), 20_000, length, density, mean_span)
    assert p_value(masks, length, noise, spans) > 1e-3


def test_cuts_drawn_otherwise_would_be_found_out():
    """Spans whose lengths come from dropping tokens into bins one by one are not uniform."""
    rng = np.random.default_rng(0)
    length, noise, spans = 12, 6, 3
    masks = []
    for _ in range(20_000):
        kept, hidden = (1 + rng.multinomial(items - spans, [1 / spans] * spans) for items in (length - noise, noise))
        masks.append(np.concatenate([[False] * a + [True] * b for a, b in zip(kept, hidden, strict=True)]))
    assert p_value(masks, length, noise, spans) < 1e-12


# Masks, sources and targets


@quick
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_masks_have_exactly_the_noise_asked_for_and_begin_with_a_kept_token(shape, seed):
    length, density, mean_span = shape
    masks = noise_masks(np.random.default_rng(seed), 5, length, density, mean_span)
    noise, spans = span_counts(length, density, mean_span)
    assert masks.shape == (5, length)
    assert (masks.sum(axis=1) == noise).all()
    assert abs(noise - density * length) <= 0.5 or noise == 1
    for mask in masks:
        assert not mask[0]
        assert mask[-1]
        assert len(lengths_of(mask)) == 2 * spans


def test_noise_spans_have_the_mean_length_and_all_lengths_from_one_on():
    masks = noise_masks(np.random.default_rng(0), 2000, 100, 0.15, 3.0)
    lengths = np.concatenate([lengths_of(mask)[1::2] for mask in masks])
    assert lengths.mean() == 3.0
    assert lengths.min() == 1
    # 15 noise tokens in 5 pieces: a piece is one long in C(13, 3) / C(14, 4) = 2/7 of all ways to cut
    share = (lengths == 1).mean()
    assert share == pytest.approx(2 / 7, abs=4 * (share * (1 - share) / len(lengths)) ** 0.5)


@quick
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_source_and_target_together_are_the_window(shape, seed):
    length, density, mean_span = shape
    last_id = 400
    rng = np.random.default_rng(seed)
    windows = rng.integers(2, 200, (4, length)).astype(np.int32)
    source, target = corrupt(
        windows,
        noise_masks(rng, 4, length, density, mean_span),
        SpecialIds(0, EOS, tuple(range(last_id, last_id - 200, -1))),
    )
    noise, spans = span_counts(length, density, mean_span)
    assert source.shape == (4, length - noise + spans + 1)
    assert target.shape == (4, noise + spans + 1)
    assert source.dtype == target.dtype == np.int32
    for window, s, t in zip(windows, source, target, strict=True):
        assert s[-1] == t[-1] == EOS
        # sentinels count down from the last id, in the same order on both sides
        expected = [last_id - i for i in range(spans)]
        assert [x for x in s if x > 200] == [x for x in t if x > 200] == expected
        assert t[0] == last_id
        assert rebuilt(s, t, 201) == window.tolist()


def test_corruption_of_one_row_is_that_of_many():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 800, (5, 30)).astype(np.int32)
    masks = noise_masks(rng, 5, 30, NOISE_DENSITY, MEAN_SPAN)
    source, target = corrupt(tokens, masks, COUNTING_DOWN)
    for i in range(5):
        one = corrupt(tokens[i : i + 1], masks[i : i + 1], COUNTING_DOWN)
        np.testing.assert_array_equal(one[0][0], source[i])
        np.testing.assert_array_equal(one[1][0], target[i])


# Windows


@pytest.mark.parametrize(("source", "window", "target"), [(512, 568, 114), (128, 141, 29)])
def test_windows_have_t5s_lengths(source, window, target):
    """T5 reads 568 raw tokens into 512 source tokens and 114 target tokens."""
    assert window_length(source) == (window, target)
    assert target_length(source) == target


@quick
@given(
    source=st.integers(3, 300),
    density=st.sampled_from([0.01, 0.1, 0.15, 0.5, 0.9]),
    span=st.sampled_from([1.0, 1.5, 3.0, 50.0]),
)
def test_a_window_is_the_first_that_the_next_does_not_fit_after(source, density, span):
    tried = 2  # T5's search
    while corrupted_lengths(tried + 1, density, span)[0] <= source:
        tried += 1
    assert window_length(source, density, span)[0] == tried


@quick
@given(source=st.integers(3, 300), density=st.sampled_from([0.1, 0.15, 0.5]))
def test_a_window_is_the_longest_that_fits_the_source(source, density):
    window, _ = window_length(source, density, 3.0)
    assert corrupted_lengths(window, density)[0] <= source < corrupted_lengths(window + 1, density)[0]
    shorter = np.asarray([corrupted_lengths(n, density) for n in range(1, window)])
    assert (shorter <= corrupted_lengths(window, density)).all()


@pytest.fixture(scope="module")
def stream():
    return SpanCorruption.from_documents(tokenizer().encode(documents(seed=3, n=30)), tokenizer(), source=32, seed=5)


def test_windows_are_the_joined_documents(stream):
    joined = np.concatenate(tokenizer().encode(documents(seed=3, n=30)))
    flat = stream.windows.ravel()
    np.testing.assert_array_equal(flat, joined[: len(flat)])
    assert len(joined) - len(flat) < stream.windows.shape[1]


def test_batches_have_the_source_length_and_depend_on_seed_and_step_alone(stream):
    batch = stream.batch(7, 4)
    assert batch["encoder_ids"].shape == (4, 32)
    again = stream.with_seed(9).with_seed(5)
    for name, array in again.batch(7, 4).items():
        np.testing.assert_array_equal(array, batch[name])
    for other in (stream.batch(8, 4), stream.with_seed(6).batch(7, 4)):
        assert not np.array_equal(other["encoder_ids"], batch["encoder_ids"])


@pytest.mark.parametrize("size", [1, 7, 64])
def test_every_window_comes_once_an_epoch(stream, size):
    n = len(stream.windows)
    steps = -(-3 * n // size)
    rows = np.concatenate([stream._rows(step * size, size) for step in range(steps)])[: 3 * n]
    for epoch in rows.reshape(3, n):
        assert sorted(epoch) == list(range(n))
    assert not np.array_equal(rows[:n], rows[n : 2 * n])


def test_a_batch_may_be_larger_than_the_text():
    ids = tokenizer().encode(documents(seed=3, n=1))
    few = SpanCorruption.from_documents(ids, tokenizer(), source=32, seed=0)
    assert few.batch(0, 50)["targets"].shape[0] == 50 > len(few.windows)


@pytest.mark.parametrize(
    ("texts", "source", "message"),
    [
        ([], 128, r"the text has 0 tokens, but one window needs 141; give more text"),
        (["short"], 128, r"the text has \d tokens, but one window needs 141; give more text"),
        (["x"], 2100, "a source of 2100 tokens needs more than 100 sentinels"),
    ],
)
def test_texts_without_a_window_and_more_spans_than_sentinels_are_refused(texts, source, message):
    with pytest.raises(fc.InputError, match=message):
        SpanCorruption.from_documents(tokenizer().encode(texts), tokenizer(), source, 0)
