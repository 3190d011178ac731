"""Our own tokenizer: its ids, its training, its files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import Tokenizer, train_tokenizer
from fusion_core.text.tokenizer import EOS, PAD, SENTINELS, UNK, sampled
from tests.strategies import texts
from tests.strategies.texts import sentences

quick = settings(max_examples=40, derandomize=True, deadline=None)
PIECES = 320


@pytest.fixture(scope="module")
def tokenizer():
    return texts.tokenizer(PIECES)


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


def test_equal_text_gives_an_equal_tokenizer_and_it_is_read_back(tokenizer, tmp_path):
    assert train_tokenizer(sentences(seed=0, n=300), PIECES).backend.to_str() == tokenizer.backend.to_str()
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.backend.to_str() == tokenizer.backend.to_str()
    assert again.vocab_size == tokenizer.vocab_size


def test_text_in_one_long_line_trains_as_well_as_in_many(tokenizer):
    """The library drops lines above 4192 bytes, without an option."""
    lines = sentences(seed=0, n=300)
    one = train_tokenizer([" ".join(lines)], PIECES)
    assert one.vocab_size == PIECES + SENTINELS
    assert len(one.encode(lines[:1])[0]) <= 1.1 * len(tokenizer.encode(lines[:1])[0])


def test_a_sample_is_lines_drawn_with_the_seed_in_their_order():
    lines = [f"{i:03d}" * (i % 5 + 1) for i in range(200)]
    characters = sum(map(len, lines))
    for sample in (1, 300, characters - 1):
        found = sampled(lines, sample, 0)
        assert sample <= sum(map(len, found)) < sample + 15
        assert found == sorted(found)
        assert set(found) <= set(lines)
        assert found == sampled(lines, sample, 0)
    assert sampled(lines, 300, 0) != sampled(lines, 300, 1)
    assert sampled(lines, characters, 0) == sampled(lines, 0, 0) == lines


def test_a_tokenizer_is_trained_on_a_sample_if_the_text_is_longer(tokenizer):
    lines = sentences(seed=0, n=300)
    same = train_tokenizer(lines, PIECES, sample=sum(map(len, lines)))
    assert same.backend.to_str() == tokenizer.backend.to_str()
    other = train_tokenizer(lines, PIECES, sample=sum(map(len, lines)) // 2)
    assert other.backend.to_str() != tokenizer.backend.to_str()
    assert other.vocab_size == tokenizer.vocab_size


def test_the_lines_of_a_long_text_are_drawn_with_the_seed_and_nothing_else(monkeypatch):
    """sentencepiece's own draw heeds no seed, and differs between processes."""
    monkeypatch.setattr("fusion_core.text.tokenizer.MOST_LINES", 150)
    lines = sentences(seed=0, n=300)
    assert len(sampled(lines, 0, 0)) == 150
    found = [train_tokenizer(lines, PIECES, seed).backend.to_str() for seed in (0, 1)]
    assert found[0] == train_tokenizer(sampled(lines, 0, 0), PIECES).backend.to_str() != found[1]


@pytest.mark.parametrize(
    ("pieces", "n", "message"),
    [
        (0, 1, "a vocabulary of 0 is too small.* are 260"),
        (259, 1, "a vocabulary of 259 is too small.* are 260"),
        (270, 300, r"a vocabulary of 270 is too small: this text's characters, .* alone are \d+; take a larger one"),
        (5000, 20, r"the text supports \d+ pieces, but a vocabulary of 5000 was asked for; .* take a smaller one"),
    ],
)
def test_vocabularies_that_do_not_fit_the_text_are_refused(pieces, n, message):
    with pytest.raises(fc.InputError, match=message) as caught:
        train_tokenizer(sentences(seed=0, n=n), pieces)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path):
    with pytest.raises(fc.InputError, match=r"there is no .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(fc.InputError, match="cannot be read"):
        Tokenizer.load(tmp_path)
