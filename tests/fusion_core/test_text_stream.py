"""Streams of batches: every token once, the same from any place on, the same from any number of processes."""

import collections
import dataclasses
import itertools
import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import (
    DataSource,
    Part,
    SpanCorruption,
    StreamedSpans,
    TextFiles,
    TextList,
    merge_states,
    split_documents,
    train_tokenizer,
)
from fusion_core.text import documents as streams
from fusion_core.text.documents import BlockStart, blocks, parts_of
from fusion_core.text.examples import ExampleBatches
from fusion_core.text.lanes import deal, groups
from fusion_core.text.packing import unpack, windows_of
from fusion_core.train.run import merged_position
from tests.strategies.texts import documents, sentences

ROOT = pathlib.Path(__file__).parent.parent.parent
quick = settings(max_examples=10, derandomize=True, deadline=None)

TOKENIZER = train_tokenizer(sentences(seed=0, n=300), 320)
# from one word to many windows
TEXTS = [text for n, length in ((40, 1), (20, 3), (10, 9), (3, 60)) for text in documents(seed=n, n=n, length=length)]
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


def rebuilt(source, target):
    """The tokens that a corrupted source and its target were made of."""
    sentinel = TOKENIZER.vocab_size - 100
    spans = collections.defaultdict(list)
    current = None
    for token in target[:-1]:
        if token >= sentinel:
            current = int(token)
        else:
            spans[current].append(int(token))
    tokens = []
    for token in source[:-1]:
        tokens += spans.pop(int(token)) if token >= sentinel else [int(token)]
    assert not spans
    return tuple(tokens)


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
                found.update(rebuilt(*pair) for pair in unpack(row))
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
    made = [rebuilt(*pair) for pair in zip(batch["encoder_ids"], batch["targets"], strict=True)]
    assert {len(tokens) for tokens in made} == {window}
    assert not collections.Counter(token for tokens in made for token in tokens) - text - text


def test_packed_rows_are_nearly_full():
    batches = [batch for batch, _ in first(stream(lanes=1, block_documents=10_000), 8, 10)]
    filled = np.mean([fc.text.packing_efficiency(batch) for batch in batches], axis=0)
    assert filled.min() > 0.9


# Order


def test_order_and_masks_depend_on_seed_and_epoch():
    a, b = (first(stream(seed=seed), 8, 3) for seed in (0, 1))
    assert not np.array_equal(a[0][0]["encoder_ids"], b[0][0]["encoder_ids"])
    reader = blocks(TextList(TEXTS), 0, BlockStart(), 10_000, 1 << 30)
    (_, one), (_, two) = itertools.islice(reader, 2)
    assert sorted(one) == sorted(two) == sorted(TEXTS)
    assert one != two


@pytest.mark.parametrize("n", [1, 7, len(TEXTS), len(TEXTS) + 1])
def test_blocks_hold_what_they_may_and_an_epoch_everything(n):
    found = [
        (place, texts)
        for place, texts in itertools.takewhile(
            lambda b: b[0].epoch < 2, blocks(TextList(TEXTS), 0, BlockStart(), n, 1 << 30)
        )
    ]
    assert [place.number for place, _ in found] == list(range(len(found)))
    assert max(len(texts) for _, texts in found) <= n
    for epoch in (0, 1):
        assert sorted(text for place, texts in found if place.epoch == epoch for text in texts) == sorted(TEXTS)


def test_a_block_ends_with_its_characters():
    reader = blocks(TextList(["x" * 10] * 10), 0, BlockStart(), 100, 25)
    assert [len(texts) for _, texts in itertools.islice(reader, 4)] == [3, 3, 3, 1]


@quick
@given(
    texts=st.lists(st.text("ab ", min_size=1, max_size=40), max_size=30),
    lanes=st.integers(1, 6),
    first=st.integers(0, 5),
)
def test_lanes_get_every_text_and_nearly_the_same_characters(texts, lanes, first):
    shares = deal(texts, lanes, first % lanes)
    assert sorted(text for share in shares for text in share) == sorted(texts)
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= max(map(len, texts), default=0)


@quick
@given(texts=st.lists(st.text("ab", min_size=1, max_size=40), max_size=30), characters=st.integers(1, 100))
def test_groups_are_runs_of_about_so_many_characters(texts, characters):
    found = groups(texts, characters, 1)
    assert [text for group in found for text in group] == texts
    for group in found:
        assert sum(map(len, group[:-1])) < characters


@quick
@given(text=st.text("ab é\n", min_size=1, max_size=60), longest=st.integers(2, 70))
def test_a_long_document_is_cut_between_words(text, longest):
    parts = list(parts_of(text, longest))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= longest
    for part in parts[:-1]:
        assert part.endswith(" ") or " " not in part[1:]


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


def test_states_of_different_steps_or_of_one_process_alone_are_refused():
    a = first(stream(process_index=0, process_count=2), 8, 2)
    b = first(stream(process_index=1, process_count=2), 8, 2)
    with pytest.raises(fc.InputError, match="states of step 1 and 2 cannot be merged; take those after one step"):
        merge_states([a[0][1], b[1][1]])
    with pytest.raises(fc.InputError, match=r"the state has no lanes \[4, 5, 6, 7\], it is another process's"):
        stream().batches(8, a[0][1])


GATHER = r"""
import json, sys
import jax
rank, port, states = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from fusion_core.train.run import merged_position
print(json.dumps(merged_position(states[rank])))
"""


def test_processes_gather_their_states():
    states = [first(stream(process_index=i, process_count=2), 16, 3)[-1][1] for i in range(2)]
    states[1]["lanes"]["7"][2] += 10_000  # of another length
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", GATHER, str(rank), port, json.dumps(states)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in running]
    assert found == [merge_states(states)] * 2
    assert merged_position(states[0]) == states[0]


@pytest.mark.parametrize(("size", "lanes", "count"), [(0, 8, 1), (6, 8, 4), (8, 3, 2), (-4, 8, 1)])
def test_a_batch_that_processes_cannot_share_is_refused(size, lanes, count):
    with pytest.raises(fc.InputError, match=f"cannot share a batch of {size} in {lanes} lanes"):
        stream(lanes=lanes, process_count=count).batches(size)


def in_memory(kind, **changes):
    """A source whose batch is a function of the step: windows, or pairs of texts."""
    ids = TOKENIZER.encode(changes.pop("texts", TEXTS))
    if kind is ExampleBatches:
        return ExampleBatches(ids, ids, **({"seed": 5, "dispatch": 3} | changes))
    source = SpanCorruption.from_documents(ids, TOKENIZER, 32, changes.pop("seed", 5))
    return dataclasses.replace(source, **changes)


@pytest.mark.parametrize("kind", [SpanCorruption, ExampleBatches])
def test_sources_in_memory_are_shared_and_go_on(kind):
    whole = in_memory(kind)
    batches = first(whole, 8, 6)
    for step, (batch, _) in enumerate(batches):
        same(batch, whole.batch(step, 8))
    state = json.loads(json.dumps(batches[2][1]))
    for i in range(2):
        half = in_memory(kind, process_index=i, process_count=2)
        for (batch, after), (part, own) in zip(batches[3:], first(half, 8, 3, state), strict=True):
            assert merge_states([own, own]) == after
            same({name: array[4 * i : 4 * i + 4] for name, array in batch.items()}, part)
    with pytest.raises(fc.InputError, match="2 processes cannot share a batch of 7"):
        half.batches(7)
    with pytest.raises(fc.InputError, match="process 2 of 2; count processes from 0"):
        in_memory(kind, process_index=2, process_count=2)


@pytest.mark.parametrize(
    ("kind", "change", "size"),
    [
        (SpanCorruption, {}, 16),
        (SpanCorruption, {"seed": 6}, 8),
        (SpanCorruption, {"texts": TEXTS[1:]}, 8),
        (ExampleBatches, {}, 16),
        (ExampleBatches, {"seed": 6}, 8),
        (ExampleBatches, {"dispatch": 4}, 8),
        (ExampleBatches, {"texts": [*TEXTS[1:], TEXTS[0]]}, 8),
        (ExampleBatches, {"targets": TOKENIZER.encode(["no"] * len(TEXTS))}, 8),
    ],
)
def test_a_state_of_other_text_in_memory_is_refused(kind, change, size):
    *_, (_, state) = first(in_memory(kind), 8, 2)
    targets = change.pop("targets", None)
    other = in_memory(kind, **change)
    if targets is not None:
        other = dataclasses.replace(other, targets=targets)
    with pytest.raises(fc.InputError, match="the state is of another text or other settings"):
        other.batches(size, state)


def test_all_are_data_sources():
    for source in (stream(), in_memory(SpanCorruption), in_memory(ExampleBatches)):
        assert isinstance(source, DataSource)


def test_a_part_is_what_split_documents_gives():
    train, held_out = split_documents(TEXTS, 0.2, 7)
    for is_held_out, texts in ((False, train), (True, held_out)):
        part = Part(TextList(TEXTS), 0.2, 7, is_held_out)
        assert [text for text, _ in part.read(0, 0)] == texts
        after = [after for _, after in part.read(0, 0)][2]
        assert [text for text, _ in part.read(0, 0, after)] == texts[3:]
    assert Part(TextList(TEXTS), 0.2, 7, True).fingerprint() != Part(TextList(TEXTS), 0.2, 7, False).fingerprint()


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

    bare = fc.text.Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(fc.InputError, match="the tokenizer has no <extra_id_0>"):
        stream(tokenizer=bare)


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_an_empty_corpus_is_refused(texts):
    with pytest.raises(fc.InputError, match="there is no text in the corpus"):
        next(stream(documents=TextList(texts)).batches(8))


def test_text_that_never_fills_a_window_is_refused():
    with pytest.raises(
        fc.InputError, match="1000 groups of documents gave no row: joined, they are shorter than a window"
    ):
        next(stream(documents=TextList(["go", "on"]), packed=False).batches(2))


def test_short_text_is_packed_all_the_same():
    ((batch, _),) = first(stream(documents=TextList(["go on"])), 4, 1)
    assert len(unpack(batch)) == 4


def test_a_long_document_is_not_held_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(streams, "LONGEST", 50)
    (tmp_path / "a.txt").write_text(" ".join(["word"] * 100))
    parts = [text for text, _ in TextFiles([tmp_path]).read(0, 0)]
    assert "".join(parts) == " ".join(["word"] * 100)
    assert max(map(len, parts)) <= 100


def test_a_missing_path_an_empty_folder_and_a_single_string_are_refused(tmp_path):
    with pytest.raises(fc.InputError, match="there is no file or folder"):
        TextFiles([tmp_path / "absent"])
    with pytest.raises(fc.InputError, match=r"no text in .*\(0 files read\)"):
        TextFiles([tmp_path])
    with pytest.raises(fc.InputError, match="give a list of paths"):
        TextFiles(str(tmp_path))


def test_a_damaged_file_is_named_when_it_is_reached(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(fc.InputError, match=r"a.jsonl, line 2: expected one JSON object a line"):
        first(stream(documents=TextFiles([tmp_path])), 8, 10)
