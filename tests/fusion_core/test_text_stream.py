"""Streams of batches: every token once, the same from any place on, the same from any number of processes."""

import collections
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import (
    StreamedSpans,
    TextFiles,
    TextList,
    merge_states,
    train_tokenizer,
)
from fusion_core.text.documents import BlockStart, blocks
from fusion_core.text.packing import windows_of
from tests.strategies.packing import unpack
from tests.strategies.texts import documents, rebuilt, tokenizer

quick = settings(max_examples=10, derandomize=True, deadline=None)

TOKENIZER = tokenizer()
SENTINEL = TOKENIZER.vocab_size - 100  # the first id of one
# from one word to many windows
TEXTS = [text for n, length in ((40, 1), (20, 3), (10, 9), (2, 30)) for text in documents(seed=n, n=n, length=length)]
TEXTS += ["a", "go"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """So little text is tokenised faster without the library's threads."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def stream(**changes):
    settings = {"documents": TextList(TEXTS), "tokenizer": TOKENIZER, "source": 64, "seed": 3, "block_documents": 30}
    return StreamedSpans(**(settings | changes))


def first(source, size, n, state=None):
    return list(itertools.islice(source.batches(size, state), n))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Tokens


def epochs_of(source):
    """The epoch of each block, by its number, of the first two epochs."""
    reader = blocks(source.documents, source.seed, BlockStart(), source.block_documents, source.block_characters)
    return {place.number: place.epoch for place, _ in itertools.takewhile(lambda block: block[0].epoch < 2, reader)}


def first_epoch(source, lanes):
    """Counts of the windows that the rows of the first epoch were made of."""
    found, epochs = collections.Counter(), epochs_of(source)
    for batch, state in source.batches(lanes):
        ended = True
        # one row a lane, and the state says where it is from
        for i, (block, _, _) in enumerate(state["lanes"].values()):
            if epochs.get(block, 2) == 0:
                ended = False
                row = {name: array[i : i + 1] for name, array in batch.items()}
                found.update(tuple(rebuilt(*pair, SENTINEL)) for pair in unpack(row))
        if ended:
            return found


def windows_in(texts, source):
    window = source._window()[0]
    return collections.Counter(
        tuple(w.tolist()) for ids in TOKENIZER.encode(texts) for w in windows_of(ids[:-1], window)
    )


@quick
@given(lanes=st.sampled_from([1, 2, 4]), block=st.integers(1, 100), seed=st.integers(0, 99))
def test_every_documents_tokens_come_exactly_once_an_epoch(lanes, block, seed):
    source = stream(lanes=lanes, block_documents=block, seed=seed)
    assert first_epoch(source, lanes) == windows_in(TEXTS, source)


def test_a_document_more_would_be_missed():
    source = stream(lanes=2)
    assert first_epoch(source, 2) != windows_in([*TEXTS, "more"], source)


def test_joined_windows_are_full_and_of_the_text():
    source = stream(packed=False, lanes=1, block_documents=10_000)
    (batch, _), *_ = first(source, 50, 1)
    assert sorted(batch) == ["encoder_ids", "targets"]
    window, target = source._window()
    assert batch["encoder_ids"].shape == (50, 64)
    assert batch["targets"].shape == (50, target)
    text = collections.Counter(np.concatenate(TOKENIZER.encode(TEXTS)).tolist())
    made = [rebuilt(*pair, SENTINEL) for pair in zip(batch["encoder_ids"], batch["targets"], strict=True)]
    assert {len(tokens) for tokens in made} == {window}
    assert not collections.Counter(token for tokens in made for token in tokens) - text - text


def test_packed_rows_are_nearly_full():
    batches = [batch for batch, _ in first(stream(lanes=1, block_documents=10_000), 8, 10)]
    filled = np.mean([fc.text.packing_efficiency(batch) for batch in batches], axis=0)
    assert filled.min() > 0.9


# Order


def test_order_and_masks_depend_on_the_seed():
    a, b = (first(stream(seed=seed), 8, 3) for seed in (0, 1))
    assert not np.array_equal(a[0][0]["encoder_ids"], b[0][0]["encoder_ids"])


# Going on


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The texts in three files."""
    path = tmp_path_factory.mktemp("texts")
    for i in range(2):
        (path / f"{i}.txt").write_text("\n\n\n".join(TEXTS[i::3]), encoding="utf-8")
    (path / "2.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[2::3]), encoding="utf-8")
    return path


@quick
@given(
    n=st.integers(1, 60),
    packed=st.booleans(),
    lanes=st.sampled_from([1, 2, 4]),
    block=st.integers(1, 90),
    files=st.booleans(),
)
def test_a_state_goes_on_identically(folder, n, packed, lanes, block, files):
    texts = TextFiles([folder]) if files else TextList(TEXTS)
    # joined, a lane's share of a small block is shorter than a window
    changes = {"packed": packed, "block_documents": block if packed else 90, "source": 64 if packed else 16}
    source = stream(documents=texts, lanes=lanes, **changes)
    all_of_them = first(source, 4, n + 6)
    state = json.loads(json.dumps(all_of_them[n - 1][1]))
    for (a, x), (b, y) in zip(all_of_them[n:], first(source, 4, 6, state), strict=True):
        same(a, b)
        assert x == y


def test_the_state_is_small_after_epochs():
    source = stream(documents=TextList(TEXTS[:40]), block_documents=5)
    *_, (_, state) = first(source, 8, 60)
    assert state["from"]["epoch"] >= 3
    assert len(json.dumps(state)) < 1000


def test_going_on_tokenises_one_group_a_lane(monkeypatch):
    """And a source that does not go on from its block's start would read the corpus again."""
    source = stream(block_documents=5, lanes=1)
    *_, (_, state) = first(source, 4, 40)
    assert state["from"]["number"] > 4
    encoded = []
    encode = TOKENIZER.encode
    monkeypatch.setattr(TOKENIZER, "encode", lambda texts: encoded.extend(texts) or encode(texts))
    next(source.batches(1, state))
    assert len(encoded) <= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "the state is of another text or other settings: "),
        ({"documents": TextList(TEXTS[1:])}, "the state is of another text or other settings: "),
        ({"tokenizer": train_tokenizer(TEXTS, 320)}, "the state is of another text or other settings: "),
        ({"packed": False}, "the state is of another text or other settings: "),
        ({"lanes": 4}, "the state has 8 lanes, but these are 4; keep batch and lanes as they were"),
    ],
)
def test_a_state_of_another_source_is_refused(change, message):
    *_, (_, state) = first(stream(), 8, 1)
    with pytest.raises(fc.InputError, match=message):
        stream(**change).batches(8, state)


# Processes


@pytest.mark.parametrize("packed", [True, False])
def test_the_batch_is_the_same_from_1_2_and_4_processes(packed):
    # joined, the text of 8 lanes needs short windows
    change = {"packed": packed} if packed else {"packed": packed, "source": 16, "block_documents": 1000}
    whole = first(stream(**change), 16, 12)
    for count in (2, 4):
        shares = [first(stream(process_index=i, process_count=count, **change), 16, 12) for i in range(count)]
        for (batch, state), *parts in zip(whole, *shares, strict=True):
            same(batch, {name: np.concatenate([part[name] for part, _ in parts]) for name in batch})
            assert merge_states([part for _, part in parts]) == state


def test_another_number_of_processes_goes_on_from_the_merged_state():
    whole = first(stream(), 16, 15)
    halves = [first(stream(process_index=i, process_count=2), 16, 8)[-1][1] for i in range(2)]
    merged = json.loads(json.dumps(merge_states(halves)))
    quarters = [first(stream(process_index=i, process_count=4), 16, 7, merged) for i in range(4)]
    for (batch, _), *parts in zip(whole[8:], *quarters, strict=True):
        same(batch, {name: np.concatenate([part[name] for part, _ in parts]) for name in batch})


def test_a_process_tokenises_only_its_lanes(monkeypatch):
    encoded = []
    encode = TOKENIZER.encode
    monkeypatch.setattr(TOKENIZER, "encode", lambda texts: encoded.extend(texts) or encode(texts))
    first(stream(process_index=1, process_count=4, block_documents=1000), 8, 1)
    assert 0 < sum(map(len, encoded)) < 0.35 * sum(map(len, TEXTS))


@pytest.mark.parametrize(("size", "lanes", "count"), [(0, 8, 1), (6, 8, 4), (8, 3, 2), (-4, 8, 1)])
def test_a_batch_that_processes_cannot_share_is_refused(size, lanes, count):
    with pytest.raises(fc.InputError, match=f"cannot share a batch of {size} in {lanes} lanes"):
        stream(lanes=lanes, process_count=count).batches(size)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": 2}, "source is 2; it must be at least 3"),
        ({"source": 2100}, "a source of 2100 tokens needs more than 100 sentinels; take a shorter one"),
        ({"lanes": 0}, "lanes is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"target": 10}, "a target of 10 is too short: a source of 64 has one of 14 tokens"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2; count processes from 0"),
        ({"noise_density": 1.0}, "a noise density of 1.0 with spans of 3.0; they must lie between 0 and 1"),
        ({"mean_span": float("nan")}, "a noise density of 0.15 with spans of nan"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(fc.InputError, match=message):
        stream(**change)


def test_a_tokenizer_without_sentinels_is_refused():
    import tokenizers

    bare = fc.text.Tokenizer(
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 2, "<pad>": 0, "</s>": 1}, unk_token="a"))
    )
    with pytest.raises(fc.InputError, match="the tokenizer has no <extra_id_0>"):
        stream(tokenizer=bare)


def test_text_that_never_fills_a_window_is_refused():
    with pytest.raises(
        fc.InputError, match="1000 groups of documents gave no row: joined, they are shorter than a window"
    ):
        next(stream(documents=TextList(["go", "on"]), packed=False).batches(2))


def test_short_text_is_packed_all_the_same():
    ((batch, _),) = first(stream(documents=TextList(["go on"])), 4, 1)
    assert len(unpack(batch)) == 4
