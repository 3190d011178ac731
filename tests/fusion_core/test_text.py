import gzip
import json
import pathlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import SpanCorruption, Tokenizer, corpus, read_documents, split_documents, train_tokenizer
from fusion_core.text.span_corruption import corrupt, noise_masks, span_counts, window_length
from fusion_core.text.tokenizer import EOS, PAD, SENTINELS, UNK
from tests.strategies.texts import documents, sentences

quick = settings(max_examples=40, derandomize=True, deadline=None)

# Files


def test_documents_of_a_text_file_are_separated_by_two_empty_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nstill one\n\n \nthe second\r\n\r\n\r\nthe third\n", newline="")
    assert read_documents([tmp_path / "a.txt"]) == ["one\ntwo\n\nstill one", "the second", "the third\n"]


def test_a_folder_is_read_in_the_order_of_its_paths_and_other_files_are_passed_over(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "sub" / "a.md").write_text("sub a")
    (tmp_path / "picture.png").write_bytes(b"\xff\xd8")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("zipped ä")
    (tmp_path / "c.jsonl").write_text('{"text": "json"}\n')
    assert read_documents([str(tmp_path)]) == ["zipped ä", "b", "json", "sub a"]


@pytest.mark.parametrize("zipped", [False, True])
def test_json_lines_are_one_document_each(tmp_path, zipped):
    texts = ["first", "two\nlines\n\n\nin one document", "a line separator   inside, and \x0b\x1c\x85"]
    content = "\n".join(json.dumps({"text": t, "id": 1}, ensure_ascii=False) for t in texts).encode() + b"\n\n"
    path = tmp_path / ("a.jsonl.gz" if zipped else "a.jsonl")
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert read_documents([path]) == texts


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "world"}\n')
    assert read_documents([tmp_path / "a.txt", tmp_path / "b.jsonl"]) == ["hello", "world"]


def refused(path, message):
    with pytest.raises(fc.InputError, match=message) as caught:
        read_documents([path])
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_path_is_refused(tmp_path):
    refused(tmp_path / "absent", "there is no file or folder")


@pytest.mark.parametrize("content", ["", " \n\t\n\n\n\n"])
def test_text_that_is_empty_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    refused(tmp_path / "a.txt", r"no text in .*\(1 files read\)")


def test_a_folder_without_text_is_refused_and_what_would_be_read_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    refused(tmp_path, r"no text in .*\(0 files read\).*\.txt.*\.jsonl .or these with \.gz")


@pytest.mark.parametrize("zipped", [False, True])
def test_bytes_that_are_not_utf8_are_refused_with_file_and_offset(tmp_path, zipped):
    content = "grün".encode("latin-1")
    path = tmp_path / ("a.txt.gz" if zipped else "a.txt")
    path.write_bytes(gzip.compress(content) if zipped else content)
    refused(path, "is not UTF-8: byte 0xfc at offset 2; convert it")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-9], id="truncated"),
        pytest.param(lambda data: b"plain text", id="not zipped"),
        pytest.param(lambda data: data[:12] + bytes(b ^ 0xFF for b in data[12:40]) + data[40:], id="damaged inside"),
        pytest.param(lambda data: data[:-8] + bytes(4) + data[-4:], id="wrong checksum"),
    ],
)
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damage(gzip.compress(("\n".join(sentences(0, 50))).encode())))
    refused(path, "cannot be read: .*; check the file, or leave it out")


@pytest.mark.parametrize("line", ["{", '{"txt": "a"}', '{"text": 5}', "[1]", '"text"', r'{"text": "\ud800"}'])
def test_a_bad_json_line_is_refused_with_its_number(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n\n' + line + "\n")
    refused(tmp_path / "a.jsonl", 'line 3: expected one JSON object a line, {"text": "..."}')


# The split

TEXTS = documents(seed=0, n=400, length=1)


def test_the_split_keeps_documents_whole_and_every_one_on_one_side():
    train, validation = split_documents(TEXTS, 0.1, seed=0)
    assert sorted(train + validation) == sorted(TEXTS)
    assert not set(train) & set(validation)
    assert 0.05 < len(validation) / len(TEXTS) < 0.15


def test_the_split_depends_on_seed_and_content_alone():
    _, validation = split_documents(TEXTS, 0.1, seed=0)
    assert split_documents(TEXTS, 0.1, seed=0)[1] == validation
    assert split_documents(TEXTS, 0.1, seed=1)[1] != validation
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert sorted(split_documents(shuffled, 0.1, seed=0)[1]) == sorted(validation)
    # a document more moves no other
    assert [t for t in split_documents([*TEXTS, "another"], 0.1, seed=0)[1] if t != "another"] == validation


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_documents_have_both_sides(n):
    texts = documents(seed=1, n=n, length=20)
    for seed in range(5):
        for fraction in (0.05, 0.95):
            train, validation = split_documents(texts, fraction, seed)
            assert train
            assert validation
            assert all(train)
            assert all(validation)
            assert sum(map(len, train + validation)) == sum(map(len, texts))


# The default corpus


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Stands for the installed packages: sources with docstrings, texts, and what is not to be read."""
    long = "A sentence that says something. " * 10
    (tmp_path / "tests").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.py").write_text(
        f'"""Module. {long}"""\ndef f():\n    """Function.\n\n    Indented."""\n    return "no"\n'
    )
    (tmp_path / "a.rst").write_text(f"Text. {long}\n")
    (tmp_path / "sub" / "copy.rst").write_text(f"Text.  {long}\n\n")
    (tmp_path / "sub" / "latin.py").write_bytes(f'# -*- coding: latin-1 -*-\n"""Grün. {long}"""\n'.encode("latin-1"))
    (tmp_path / "broken.py").write_text('"""Broken."""\ndef f(:\n')
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short.py").write_text('"""Short."""\n')
    (tmp_path / "tests" / "t.py").write_text(f'"""Test. {long}"""\n')
    (tmp_path / "data.csv").write_text(long)
    monkeypatch.setattr(corpus, "default_folders", lambda packages: [tmp_path])
    return tmp_path


def test_the_default_corpus_is_docstrings_and_texts_in_order_without_repetitions(library):
    found = corpus.default_corpus(packages=())
    assert [text.split()[0] for text in found] == ["Text.", "Module.", "Grün."]
    assert found[1].endswith("Function.\n\nIndented.")


def test_the_default_corpus_is_the_same_every_time(library):
    assert corpus.default_corpus(()) == corpus.default_corpus(())


def test_progress_sees_every_file_of_the_default_corpus(library):
    seen = []
    corpus.default_corpus((), lambda files: (seen.append(path) or path for path in files))
    assert [path.name for path in seen] == [
        "a.rst",
        "b.py",
        "binary.md",
        "broken.py",
        "short.py",
        "copy.rst",
        "latin.py",
    ]


def test_the_default_corpus_comes_from_the_standard_library_and_from_what_is_installed():
    folders = corpus.default_folders(("numpy", "no_such_package_at_all"))
    assert [folder.name for folder in folders[1:]] == ["numpy"]
    assert (folders[0] / "json" / "__init__.py").exists()


# The tokenizer

PIECES = 320


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(sentences(seed=0, n=300), PIECES)


def test_the_vocabulary_has_special_tokens_first_and_sentinels_last(tokenizer):
    token = tokenizer.backend.id_to_token
    assert tokenizer.vocab_size == PIECES + SENTINELS == PIECES + 100
    assert [token(i) for i in (PAD, EOS, UNK)] == ["<pad>", "</s>", "<unk>"]
    assert token(3) == "<0x00>"
    assert token(258) == "<0xFF>"
    assert [token(PIECES + i) for i in range(100)] == [f"<extra_id_{99 - i}>" for i in range(100)]
    assert tokenizer.sentinel(0) == tokenizer.vocab_size - 1
    assert token(tokenizer.sentinel(7)) == "<extra_id_7>"


def test_encoding_ends_with_the_end_token_and_decoding_gives_the_text_back(tokenizer):
    texts = sentences(seed=0, n=300)
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids.dtype == np.int32
        assert ids[-1] == EOS
        assert (ids[:-1] > UNK).all()
        assert tokenizer.decode(ids) == text


@quick
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1), min_size=1, max_size=4))
def test_any_text_comes_back_through_bytes(tokenizer, words):
    """Characters that the training text has not, too; runs of white space become one space."""
    text = " ".join(word.replace("▁", "_").replace("<", "(") for word in words)
    (ids,) = tokenizer.encode([text])
    assert UNK not in ids
    assert tokenizer.decode(ids) == text


def test_white_space_is_one_space(tokenizer):
    a, b = tokenizer.encode(["  ba  bo\n\tbu ", "ba bo bu"])
    np.testing.assert_array_equal(a, b)


def test_equal_text_gives_an_equal_tokenizer(tokenizer):
    again = train_tokenizer(sentences(seed=0, n=300), PIECES)
    assert again.backend.to_str() == tokenizer.backend.to_str()


def test_a_tokenizer_is_read_back(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.backend.to_str() == tokenizer.backend.to_str()
    assert again.vocab_size == tokenizer.vocab_size


def test_text_in_one_long_line_trains_as_well_as_in_many():
    """The library drops lines above 4192 bytes, unless told."""
    lines = sentences(seed=0, n=300)
    one = train_tokenizer([" ".join(lines)], PIECES)
    assert one.vocab_size == PIECES + SENTINELS
    many = train_tokenizer(lines, PIECES)
    assert len(one.encode(lines[:1])[0]) <= 1.1 * len(many.encode(lines[:1])[0])


def test_a_vocabulary_that_the_text_does_not_support_is_refused():
    with pytest.raises(
        fc.InputError, match=r"the text supports \d+ pieces, but a vocabulary of 5000 was asked for"
    ) as e:
        train_tokenizer(sentences(seed=0, n=20), 5000)
    assert "\n" not in str(e.value)
    assert str(e.value).endswith("give more text, or take a smaller one")


@pytest.mark.parametrize("pieces", [0, 259])
def test_a_vocabulary_without_room_for_bytes_is_refused(pieces):
    with pytest.raises(fc.InputError, match=f"a vocabulary of {pieces} is too small.* are 260"):
        train_tokenizer(["text"], pieces)


def test_a_vocabulary_without_room_for_the_texts_characters_is_refused():
    message = r"a vocabulary of 270 is too small: this text's characters, .* alone are \d+; take a larger one"
    with pytest.raises(fc.InputError, match=message):
        train_tokenizer(sentences(seed=0, n=300), 270)


def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path):
    with pytest.raises(fc.InputError, match=r"there is no .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(fc.InputError, match="cannot be read"):
        Tokenizer.load(tmp_path)


# Span corruption

SHAPES = st.tuples(st.integers(4, 200), st.sampled_from([0.1, 0.15, 0.3, 0.5]), st.sampled_from([1.0, 2.0, 3.0, 5.0]))


def spans_of(mask):
    """Lengths of the runs of a mask, kept and noise alternately."""
    edges = np.flatnonzero(np.diff(mask)) + 1
    return np.diff(np.concatenate([[0], edges, [len(mask)]]))


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
        assert len(spans_of(mask)) == 2 * spans


def test_noise_spans_have_the_mean_length_and_all_lengths_from_one_on():
    masks = noise_masks(np.random.default_rng(0), 2000, 100, 0.15, 3.0)
    lengths = np.concatenate([spans_of(mask)[1::2] for mask in masks])
    assert lengths.mean() == 3.0
    assert lengths.min() == 1
    # 15 noise tokens in 5 pieces: a piece is one long in C(13, 3) / C(14, 4) = 2/7 of all ways to cut
    share = (lengths == 1).mean()
    assert share == pytest.approx(2 / 7, abs=4 * (share * (1 - share) / len(lengths)) ** 0.5)


def test_every_place_but_the_first_is_noise_about_equally_often():
    masks = noise_masks(np.random.default_rng(1), 4000, 100, 0.15, 3.0)
    often = masks.mean(axis=0)
    assert 0.1 < often[20:80].min() < often[20:80].max() < 0.16


def rebuilt(source, target, first_sentinel, last_id):
    """The window, from the corrupted source and its target: what the model is asked to be able to do."""
    spans, current = {}, None
    for token in target[:-1]:
        if token > first_sentinel:
            current = spans.setdefault(int(token), [])
        else:
            current.append(int(token))
    window = []
    for token in source[:-1]:
        window += spans.pop(int(token)) if token > first_sentinel else [int(token)]
    assert not spans
    return window


@quick
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_source_and_target_together_are_the_window(shape, seed):
    length, density, mean_span = shape
    last_id = 400
    rng = np.random.default_rng(seed)
    windows = rng.integers(2, 200, (4, length)).astype(np.int32)
    source, target = corrupt(windows, noise_masks(rng, 4, length, density, mean_span), last_id)
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
        assert rebuilt(s, t, 200, last_id) == window.tolist()


@pytest.mark.parametrize(("source", "window", "target"), [(512, 568, 114), (128, 141, 29)])
def test_windows_have_t5s_lengths(source, window, target):
    """T5 reads 568 raw tokens into 512 source tokens and 114 target tokens."""
    assert window_length(source, 0.15, 3.0) == (window, target)


@quick
@given(source=st.integers(3, 300), density=st.sampled_from([0.1, 0.15, 0.5]))
def test_a_window_is_the_longest_that_fits_the_source(source, density):
    window, _ = window_length(source, density, 3.0)

    def corrupted(raw):
        noise, spans = span_counts(raw, density, 3.0)
        return raw - noise + spans + 1

    assert corrupted(window) <= source < corrupted(window + 1)


@pytest.fixture(scope="module")
def stream(tokenizer):
    ids = tokenizer.encode(documents(seed=3, n=30))
    return SpanCorruption.from_documents(ids, tokenizer, source=32, seed=5)


def test_windows_are_the_joined_documents(tokenizer, stream):
    joined = np.concatenate(tokenizer.encode(documents(seed=3, n=30)))
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


def test_a_batch_may_be_larger_than_the_text(tokenizer):
    ids = tokenizer.encode(documents(seed=3, n=1))
    few = SpanCorruption.from_documents(ids, tokenizer, source=32, seed=0)
    assert few.batch(0, 50)["targets"].shape[0] == 50 > len(few.windows)


@pytest.mark.parametrize("texts", [[], ["short"]])
def test_text_shorter_than_a_window_is_refused(tokenizer, texts):
    with pytest.raises(fc.InputError, match=r"the text has \d tokens, but one window needs 141; give more text"):
        SpanCorruption.from_documents(tokenizer.encode(texts), tokenizer, 128, 0)


def test_more_spans_than_sentinels_are_refused(tokenizer):
    with pytest.raises(fc.InputError, match="a source of 2100 tokens needs more than 100 sentinels"):
        SpanCorruption.from_documents(tokenizer.encode(["x"]), tokenizer, 2100, 0)


def test_paths_may_be_given_as_strings(tmp_path):
    pathlib.Path(tmp_path / "a.txt").write_text("hello")
    assert read_documents([str(tmp_path / "a.txt")]) == ["hello"]
