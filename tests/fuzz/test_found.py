"""The smallest input of every mistake that the fuzzer has found and this part of the tests has no better place for."""

import numpy as np
import pytest

from fusion_core.errors import InputError
from fusion_core.text import corpus, read_documents
from fusion_core.text.prepared import TOKENS, read_tokens
from fusion_core.text.tokenizer import Tokenizer
from tests.fuzz import bases
from tests.fuzz.cases import Cases
from tests.fuzz.mutations import varint
from tests.fuzz.targets import TARGETS

MODEL = b"\x0a\x0e\x0a\x05<pad>\x15\x00\x00\x00\x00\x18\x03"  # the first piece of a sentencepiece model
FOUND = {
    # the file's fields are read here too, and the library reads them otherwise
    "a number that does not end": ("sentencepiece", lambda: bases.sentencepiece_model() + b"\x80"),
    "a number of 100 bytes": ("sentencepiece", lambda: bases.sentencepiece_model() + b"\x80" * 100 + b"\x01"),
    "a field within another": ("sentencepiece", lambda: b"\x09" + bytes(8) + bases.sentencepiece_model()[:-3]),
    "a map of characters that is a number": (
        "sentencepiece",
        lambda: bases.sentencepiece_model() + b"\x1a\x02\x10\x05",
    ),
    "a kind that is a text": ("sentencepiece", lambda: MODEL + b"\x0a\x06\x0a\x01a\x1a\x01b"),
    # quotes that csv does not read
    "a line that ends within quotes": ("glue_stsb", lambda: b'"a"\n"b"c"\r"'),
    # tokens: a zip file, and arrays in it
    "a zip file of four bytes": ("tokens_npz", lambda: b"PK\x03\x04"),
    "no zip file": ("tokens_npz", lambda: b"\x93NUMPY"),
    "an empty zip file": ("tokens_npz", lambda: b"PK\x05\x06" + bytes(18)),
    "damaged tokens": ("tokens_npz", lambda: bases.tokens()[0][:200] + b"\xff" + bases.tokens()[0][201:]),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_refused(tmp_path, name):
    target, data = FOUND[name]
    outcome = Cases(TARGETS[target], tmp_path).outcome(data())
    assert outcome.kind == "refused", outcome


def test_tokens_of_another_kind_are_refused(tmp_path):
    for arrays in ({"train": np.zeros(3)}, {"train": np.zeros(3), "validation": np.zeros(3)}):
        np.savez(tmp_path / TOKENS, **arrays)
        with pytest.raises(InputError, match="cannot be read"):
            read_tokens(tmp_path)


def test_many_short_documents_count_as_the_memory_that_they_take(monkeypatch, tmp_path):
    (tmp_path / "many.txt").write_text("ab\n\n\n" * 100)
    monkeypatch.setattr(corpus, "MOST_TEXT", 6000)
    with pytest.raises(InputError, match="has more than 6,000 characters; stream it"):
        read_documents([tmp_path / "many.txt"])


def test_varints_of_models_are_read_up_to_64_bits(tmp_path):
    (tmp_path / "spiece.model").write_bytes(bases.sentencepiece_model() + varint(200 << 3) + varint(2**64 - 1))
    Tokenizer.load(tmp_path / "spiece.model")
