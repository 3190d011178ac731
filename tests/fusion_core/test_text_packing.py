"""Packing by round trip."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.text.packing import assign, corrupt_each, pack, packing_efficiency, windows_of
from fusion_core.text.span_corruption import MEAN_SPAN, NOISE_DENSITY, corrupted_lengths, target_length
from fusion_core.text.tokenizer import SpecialIds
from tests.strategies.packing import unpack
from tests.strategies.texts import rebuilt

quick = settings(max_examples=30, derandomize=True, deadline=None)

LAST = 999
SPECIAL = SpecialIds(0, 1, tuple(range(LAST, LAST - 100, -1)))
NOISE = NOISE_DENSITY, MEAN_SPAN

# Windows


@quick
@given(n=st.integers(0, 50), window=st.integers(1, 20))
def test_windows_are_the_tokens_in_order(n, window):
    ids = np.arange(n, dtype=np.int32)
    parts = windows_of(ids, window)
    assert [i for part in parts for i in part] == list(range(n))
    assert all(len(part) == window for part in parts[:-1])


@quick
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_each_is_corrupted_on_its_own_and_comes_back(lengths, seed):
    rng = np.random.default_rng(seed)
    windows = [rng.integers(3, 800, n).astype(np.int32) for n in lengths]
    pairs = corrupt_each(rng, windows, SPECIAL, *NOISE)
    for window, (source, target) in zip(windows, pairs, strict=True):
        assert (len(source), len(target)) == corrupted_lengths(len(window))
        assert source[-1] == target[-1] == 1
        assert rebuilt(source, target, LAST - 99) == window.tolist()


def test_windows_of_equal_length_have_different_masks():
    windows = [np.arange(100, 140, dtype=np.int32)] * 20
    pairs = corrupt_each(np.random.default_rng(0), windows, SPECIAL, *NOISE)
    assert len({tuple(source.tolist()) for source, _ in pairs}) > 15


def test_a_single_token_is_kept():
    (pair,) = corrupt_each(np.random.default_rng(0), [np.asarray([7], np.int32)], SPECIAL, *NOISE)
    assert [side.tolist() for side in pair] == [[7, 1], [LAST, 1]]


# Packing

PAIRS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), max_size=30)


@quick
@given(sizes=PAIRS, source=st.integers(20, 40), target=st.integers(8, 16))
def test_every_pair_is_in_one_row_whole_and_segments_count_from_one(sizes, source, target):
    # all tokens are different
    number = itertools.count(1)
    pairs = [tuple(np.asarray([next(number) for _ in range(n)], np.int32) for n in size) for size in sizes]
    batch = pack(pairs, source, target, 0)
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
    batch = pack([(np.ones(6, np.int32), np.ones(2, np.int32)), (np.ones(3, np.int32), np.ones(1, np.int32))], 10, 4, 0)
    assert packing_efficiency(batch) == (0.9, 0.75)


def test_documents_of_a_sixth_of_the_row_fill_it():
    rng = np.random.default_rng(0)
    windows = [rng.integers(3, 800, n).astype(np.int32) for n in rng.integers(10, 180, 400)]
    source, target = 512, target_length(512)
    batch = pack(corrupt_each(rng, windows, SPECIAL, *NOISE), source, target, 0)
    alone = sum(corrupted_lengths(len(window))[0] for window in windows) / (len(windows) * source)
    assert packing_efficiency(batch)[0] > 0.9 > 0.3 > alone
