"""sentencepiece's files: its library, our tokenizer and transformers' T5 give the same ids."""

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import Tokenizer, spiece, train_tokenizer
from fusion_core.text.spiece import read_model
from fusion_core.text.tokenizer import EOS, UNK
from tests.strategies.texts import sentences

quick = settings(max_examples=60, derandomize=True, deadline=None)

TEXTS = sentences(seed=0, n=300)
SAMPLES = [
    *TEXTS[:20],
    "naïve Ωmega 漢字 🙂 (unknown characters)",
    "  two  spaces, a\ttab\nand a line ",
    "ﬁne ½ ①  full　width ＡＢＣ",  # what NFKC changes
    "\u2028 \x0b a\u00a0b",
    "",
]


def train(path, **options):
    """A model as sentencepiece itself writes it, with T5's special ids."""
    model = io.BytesIO()
    settings = {"model_type": "unigram", "vocab_size": 300, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    settings |= {"num_threads": 1, "minloglevel": 2, "hard_vocab_limit": False} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return path


# what tokenizers' WhitespaceSplit splits at: Unicode's White_Space
WHITE_SPACE = (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)

# T5's own is like the first
OPTIONS = {
    "as T5": {"normalization_rule_name": "nmt_nfkc"},
    "bytes": {"normalization_rule_name": "nmt_nfkc", "byte_fallback": True},
    "user's pieces": {"normalization_rule_name": "nmt_nfkc", "user_defined_symbols": ["<br>"]},
}


@pytest.fixture(scope="module", params=list(OPTIONS))
def file(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp("spiece") / "spiece.model", **OPTIONS[request.param])


def theirs(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_a_model_gives_the_librarys_ids_and_text(file):
    library, ours = theirs(file), Tokenizer.load(file)
    assert ours.vocab_size == library.vocab_size() + 100
    for sample, ids in zip(SAMPLES, ours.encode(SAMPLES), strict=True):
        assert ids.tolist() == [*library.encode(sample), EOS], sample
        if UNK not in ids:
            assert ours.decode(ids) == library.decode(ids[:-1].tolist())


def test_one_white_space_is_no_space_to_t5s_normalizer_but_splits_in_tokenizers(tmp_path):
    """U+0085, next line: transformers' T5 has the same difference from sentencepiece."""
    path = train(tmp_path / "a.model", **OPTIONS["as T5"])
    library, ours = theirs(path), Tokenizer.load(path)
    samples = {code: f"a{chr(code)}b" for code in WHITE_SPACE}
    different = [
        code for code, text in samples.items() if ours.encode([text])[0].tolist() != [*library.encode(text), EOS]
    ]
    assert different == [0x85]
    assert ours.encode(["a\x85b"])[0].tolist() == [*library.encode("a b"), EOS]


@quick
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<▁"), max_size=30))
def test_any_text_has_the_librarys_ids(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.model"
    if not path.exists():
        train(path, **OPTIONS["bytes"])
    # what NFKC makes of one character may hold spaces, at which tokenizers would have split before
    text = " ".join(theirs(path).normalize(text).replace("▁", " ").split())
    (ids,) = Tokenizer.load(path).encode([text])
    assert ids.tolist() == [*theirs(path).encode(text), EOS]


def test_the_model_is_found_in_a_folder_and_tokenizer_json_goes_first(tmp_path):
    train(tmp_path / "spiece.model", **OPTIONS["as T5"])
    assert Tokenizer.load(tmp_path).encode(TEXTS[:1])[0].tolist() == [
        *theirs(tmp_path / "spiece.model").encode(TEXTS[0]),
        EOS,
    ]
    ours = train_tokenizer(TEXTS, 320)
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).backend.to_str() == ours.backend.to_str()


def test_sentinels_are_at_the_end_as_in_transformers(file):
    ours = Tokenizer.load(file)
    assert ours.backend.token_to_id("<extra_id_0>") == ours.sentinel(0) == ours.vocab_size - 1
    (ids,) = ours.encode(["a <extra_id_7> b"])
    assert ours.sentinel(7) in ids


def test_pieces_and_scores_are_the_librarys(file):
    library, model = theirs(file), read_model(file)
    assert [(text, score) for text, score, _ in model.pieces] == [
        (library.id_to_piece(i), library.get_score(i)) for i in range(library.vocab_size())
    ]
    for i, (_, _, kind) in enumerate(model.pieces):
        assert (kind == spiece.UNKNOWN) == library.is_unknown(i)
        assert (kind == spiece.CONTROL) == library.is_control(i)
        assert (kind == spiece.BYTE) == library.is_byte(i)


def test_transformers_t5_has_the_same_ids(tmp_path):
    """Its fast tokenizer has no bytes, as T5's model has none."""
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    path = train(tmp_path / "spiece.model", **OPTIONS["as T5"])
    library = theirs(path)
    vocab = [(library.id_to_piece(i), library.get_score(i)) for i in range(library.vocab_size())]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    reference = transformers.T5TokenizerFast(vocab=vocab, _spm_precompiled_charsmap=read_model(path).charsmap)
    ours = Tokenizer.load(path)
    for sample in [*SAMPLES, "a <extra_id_0> b <extra_id_99> c"]:
        assert reference(sample)["input_ids"] == ours.encode([sample])[0].tolist(), sample
    assert len(reference) == ours.vocab_size
    ours.save(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for sample in SAMPLES:
        assert saved(sample)["input_ids"] == ours.encode([sample])[0].tolist(), sample


# Bad input


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda data: b"no model", lambda data: b""])
def test_a_damaged_model_is_refused(tmp_path, damage):
    path = train(tmp_path / "spiece.model", **OPTIONS["as T5"])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(fc.InputError, match=r"spiece\.model cannot be read as a sentencepiece model .*; copy it again"):
        Tokenizer.load(path)


def test_models_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(fc.InputError, match=r"a\.model is not a unigram model, as T5's are; use its tokenizer\.json"):
        Tokenizer.load(train(tmp_path / "a.model", model_type="bpe"))
    for i, change in enumerate([{"add_dummy_prefix": False}, {"treat_whitespace_as_suffix": True}]):
        with pytest.raises(fc.InputError, match="treats white space unlike T5's tokenizers"):
            Tokenizer.load(train(tmp_path / f"{i}.model", **change))
    with pytest.raises(fc.InputError, match=r"has pad, end and unknown at \(-1, 1, 2\), but T5 at \(0, 1, 2\)"):
        Tokenizer.load(train(tmp_path / "b.model", pad_id=-1, unk_id=2, bos_id=0))


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(fc.InputError, match=r"there is no .*x\.model"):
        Tokenizer.load(tmp_path / "x.model")
