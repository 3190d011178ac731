"""Documents streamed: parts, blocks in another order every epoch, shares of lanes and their groups."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import Part, TextFiles, TextList, split_documents
from fusion_core.text import documents as streams
from fusion_core.text.documents import BlockStart, blocks, parts_of
from fusion_core.text.lanes import deal, groups
from tests.strategies.texts import documents

quick = settings(max_examples=10, derandomize=True, deadline=None)
TEXTS = [text for n, length in ((40, 1), (20, 3), (3, 60)) for text in documents(seed=n, n=n, length=length)]


def test_an_epoch_has_all_documents_in_an_order_of_its_own():
    (_, one), (_, two) = itertools.islice(blocks(TextList(TEXTS), 0, BlockStart(), 10_000, 1 << 30), 2)
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


def test_a_long_document_is_not_held_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(streams, "LONGEST", 50)
    (tmp_path / "a.txt").write_text(" ".join(["word"] * 100))
    parts = [text for text, _ in TextFiles([tmp_path]).read(0, 0)]
    assert "".join(parts) == " ".join(["word"] * 100)
    assert max(map(len, parts)) <= 100


def test_a_part_is_what_split_documents_gives():
    train, held_out = split_documents(TEXTS, 0.2, 7)
    for is_held_out, texts in ((False, train), (True, held_out)):
        part = Part(TextList(TEXTS), 0.2, 7, is_held_out)
        assert [text for text, _ in part.read(0, 0)] == texts
        after = [after for _, after in part.read(0, 0)][2]
        assert [text for text, _ in part.read(0, 0, after)] == texts[3:]
    assert Part(TextList(TEXTS), 0.2, 7, True).fingerprint() != Part(TextList(TEXTS), 0.2, 7, False).fingerprint()


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_an_empty_corpus_is_refused(texts):
    with pytest.raises(fc.InputError, match="there is no text in the corpus"):
        next(blocks(TextList(texts), 0, BlockStart(), 10, 100))


def test_a_damaged_file_is_named_when_it_is_reached(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(fc.InputError, match=r"a.jsonl, line 2: expected one JSON object a line"):
        list(TextFiles([tmp_path]).read(0, 0))
