import numpy as np
import pytest

import fusion_core as fc
from fusion_core.text import train_tokenizer
from fusion_core.text.examples import (
    SORTED_DISPATCHES,
    ExampleBatches,
    batches_by_length,
    encode_texts,
    padded,
    width_for,
)
from tests.strategies.texts import sentences


def pairs(n, seed=0, longest=60):
    """Sources whose first token is their number, of many lengths."""
    rng = np.random.default_rng(seed)
    sources = [np.asarray([i + 10, *rng.integers(3, 9, rng.integers(0, longest)), 1], np.int32) for i in range(n)]
    return sources, [np.asarray([i % 2 + 3, 1], np.int32) for i in range(n)]


def numbers(batches, steps, size):
    return [(batches.batch(step, size)["encoder_ids"][:, 0] - 10).tolist() for step in range(steps)]


def test_every_epoch_visits_every_example_once():
    # 16 dispatches of 5 steps of 4 rows are 320 rows: exactly two epochs of 160, and then three
    batches = ExampleBatches(*pairs(160), seed=0, dispatch=5, pad=0)
    seen = np.concatenate(numbers(batches, SORTED_DISPATCHES * 5, 4)).tolist()
    assert sorted(seen) == sorted([*range(160)] * 2)
    batches = ExampleBatches(*pairs(100), seed=0, dispatch=5, pad=0)
    seen = np.concatenate(numbers(batches, SORTED_DISPATCHES * 5, 4)).tolist()
    assert set(np.bincount(seen)) == {3, 4}


def test_a_batch_depends_on_seed_and_step_alone():
    make = lambda seed: ExampleBatches(*pairs(70), seed=seed, dispatch=5, pad=0)
    one, two = make(0), make(0)
    forwards = [one.batch(step, 4) for step in range(12)]
    backwards = [two.batch(step, 4) for step in reversed(range(12))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert numbers(make(1), 12, 4) != numbers(make(0), 12, 4)


def test_source_and_target_stay_together():
    batches = ExampleBatches(*pairs(30), seed=0, dispatch=2, pad=0)
    for step in range(20):
        batch = batches.batch(step, 4)
        np.testing.assert_array_equal(batch["targets"][:, 0], batch["encoder_ids"][:, 0] % 2 + 3)


def test_a_dispatch_has_one_width_and_little_padding():
    sources, targets = pairs(3000)
    batches = ExampleBatches(sources, targets, seed=0, dispatch=5, pad=0)
    shapes = [batches.batch(step, 8)["encoder_ids"].shape for step in range(200)]
    for i in range(0, 200, 5):
        assert len(set(shapes[i : i + 5])) == 1
    assert len(set(shapes)) <= 6
    used = sum(len(sources[i]) for step in range(200) for i in numbers_of(batches, step))
    assert used / sum(rows * width for rows, width in shapes) > 0.75
    # widths follow no order, and the rows of a dispatch neither
    widths = [width for _, width in shapes[::5]]
    assert widths != sorted(widths)
    lengths = [len(sources[i]) for i in batches.rows(0, 8).flat]
    assert lengths != sorted(lengths)


def numbers_of(batches, step):
    return batches.batch(step, 8)["encoder_ids"][:, 0] - 10


def test_widths_hold_the_length_and_are_few():
    widths = [width_for(n) for n in range(1, 513)]
    assert all(width >= n for n, width in enumerate(widths, start=1))
    assert sorted(set(widths)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]


def test_texts_are_cut_with_their_end_kept_and_counted():
    texts = sentences(0, 40)
    tokenizer = train_tokenizer(texts, 320)
    whole, none = encode_texts(tokenizer, texts, 500)
    assert none == 0
    longest = sorted(map(len, whole))[20]
    ids, cut = encode_texts(tokenizer, texts, longest)
    assert cut == sum(len(x) > longest for x in whole) > 0
    for short, long in zip(ids, whole, strict=True):
        assert len(short) == min(len(long), longest)
        assert short[-1] == 1
        np.testing.assert_array_equal(short[:-1], long[: len(short) - 1])


def test_all_rows_are_answered_and_the_last_batch_is_filled():
    lengths = [5, 3, 9, 1, 7]
    batches = batches_by_length(lengths, 2)
    assert [b.tolist() for b in batches] == [[3, 1], [0, 4], [2, 2]]
    np.testing.assert_array_equal(padded([np.asarray([4, 1])], 4, 7), [[4, 1, 7, 7]])


def test_bad_input_is_refused():
    with pytest.raises(fc.InputError, match="0 sources and 0 targets"):
        ExampleBatches([], [], 0, 1, 0)
    with pytest.raises(fc.InputError, match="allow at least 2"):
        encode_texts(train_tokenizer(sentences(0, 40), 300), ["a"], 1)
