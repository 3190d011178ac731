"""Span corruption against T5's rule and its exact distribution; packing by round trip."""

import collections
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.text.packing import assign, corrupt_each, pack, packing_efficiency, unpack, windows_of
from fusion_core.text.span_corruption import corrupt, corrupted_lengths, noise_masks, span_counts, window_length

quick = settings(max_examples=30, derandomize=True, deadline=None)

LAST = 999
DENSITY, SPAN = 0.15, 3.0

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
    assert noise_masks(np.random.default_rng(0), 2, 1, DENSITY, SPAN).tolist() == [t5_mask(1, DENSITY, SPAN, list)] * 2
    (pair,) = corrupt_each(np.random.default_rng(0), [np.asarray([7], np.int32)], LAST, DENSITY, SPAN)
    assert [side.tolist() for side in pair] == [[7, 1], [LAST, 1]]


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


# Windows


@quick
@given(n=st.integers(0, 50), window=st.integers(1, 20))
def test_windows_are_the_tokens_in_order(n, window):
    ids = np.arange(n, dtype=np.int32)
    parts = windows_of(ids, window)
    assert [i for part in parts for i in part] == list(range(n))
    assert all(len(part) == window for part in parts[:-1])


@quick
@given(source=st.integers(3, 120))
def test_every_window_up_to_the_longest_fits_the_row(source):
    window, target = window_length(source, DENSITY, SPAN)
    for length in range(1, window + 1):
        s, t = corrupted_lengths(length, DENSITY, SPAN)
        assert s <= source
        assert t <= target


def rebuilt(source, target):
    spans, current, tokens = collections.defaultdict(list), None, []
    for token in target[:-1].tolist():
        if token > LAST - 100:
            current = token
        else:
            spans[current].append(token)
    for token in source[:-1].tolist():
        tokens += spans.pop(token) if token > LAST - 100 else [token]
    assert not spans
    return tokens


@quick
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_each_is_corrupted_on_its_own_and_comes_back(lengths, seed):
    rng = np.random.default_rng(seed)
    windows = [rng.integers(3, 800, n).astype(np.int32) for n in lengths]
    pairs = corrupt_each(rng, windows, LAST, DENSITY, SPAN)
    for window, (source, target) in zip(windows, pairs, strict=True):
        assert (len(source), len(target)) == corrupted_lengths(len(window), DENSITY, SPAN)
        assert source[-1] == target[-1] == 1
        assert rebuilt(source, target) == window.tolist()


def test_windows_of_equal_length_have_different_masks():
    windows = [np.arange(100, 140, dtype=np.int32)] * 20
    pairs = corrupt_each(np.random.default_rng(0), windows, LAST, DENSITY, SPAN)
    assert len({tuple(source.tolist()) for source, _ in pairs}) > 15


def test_corruption_of_one_row_is_that_of_many():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 800, (5, 30)).astype(np.int32)
    masks = noise_masks(rng, 5, 30, DENSITY, SPAN)
    source, target = corrupt(tokens, masks, LAST)
    for i in range(5):
        one = corrupt(tokens[i : i + 1], masks[i : i + 1], LAST)
        np.testing.assert_array_equal(one[0][0], source[i])
        np.testing.assert_array_equal(one[1][0], target[i])


# Packing

PAIRS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), max_size=30)


@quick
@given(sizes=PAIRS, source=st.integers(20, 40), target=st.integers(8, 16))
def test_every_pair_is_in_one_row_whole_and_segments_count_from_one(sizes, source, target):
    # all tokens are different
    number = itertools.count(1)
    pairs = [tuple(np.asarray([next(number) for _ in range(n)], np.int32) for n in size) for size in sizes]
    batch = pack(pairs, source, target)
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.dtype(np.int32))
    assert list(batch) == ["encoder_ids", "targets", "encoder_segments", "target_segments"]
    assert batch["encoder_ids"].shape == batch["encoder_segments"].shape == (len(batch["targets"]), source)
    assert batch["targets"].shape == batch["target_segments"].shape == (len(batch["targets"]), target)
    found = {(tuple(s.tolist()), tuple(t.tolist())) for s, t in unpack(batch)}
    assert found == {(tuple(s.tolist()), tuple(t.tolist())) for s, t in pairs}
    for ids, segments in (("encoder_ids", "encoder_segments"), ("targets", "target_segments")):
        for row, where in zip(batch[ids], batch[segments], strict=True):
            used = int((where > 0).sum())
            # documents one after the other, then padding
            assert (where[used:] == 0).all()
            assert (row[used:] == 0).all()
            assert where[0] == 1
            assert set(np.diff(where[:used])) <= {0, 1}
    for a, b in zip(batch["encoder_segments"], batch["target_segments"], strict=True):
        assert a.max() == b.max()


@quick
@given(sizes=PAIRS.filter(len))
def test_rows_hold_no_more_than_they_can_and_no_two_could_be_one(sizes):
    lengths, room = np.asarray(sizes), (25, 10)
    rows = assign(lengths, room)
    sums = np.asarray([lengths[rows == row].sum(axis=0) for row in range(rows.max() + 1)])
    assert (sums <= room).all()
    assert (sums > 0).all()
    for i, j in itertools.combinations(range(len(sums)), 2):
        assert ((sums[i] + sums[j]) > room).any()


def test_efficiency_is_the_share_of_tokens():
    batch = pack([(np.ones(6, np.int32), np.ones(2, np.int32)), (np.ones(3, np.int32), np.ones(1, np.int32))], 10, 4)
    assert packing_efficiency(batch) == (0.9, 0.75)


def test_documents_of_a_sixth_of_the_row_fill_it():
    rng = np.random.default_rng(0)
    windows = [rng.integers(3, 800, n).astype(np.int32) for n in rng.integers(10, 180, 400)]
    source, target = 512, window_length(512, DENSITY, SPAN)[1]
    batch = pack(corrupt_each(rng, windows, LAST, DENSITY, SPAN), source, target)
    alone = sum(corrupted_lengths(len(window), DENSITY, SPAN)[0] for window in windows) / (len(windows) * source)
    assert packing_efficiency(batch)[0] > 0.9 > 0.3 > alone
