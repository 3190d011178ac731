"""Two tokenizers are one if they compute the same, however they are spelled, in whichever file."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

import fusion_core as fc
from fusion_core.checkpoints.tokenizers import check_same_tokenizer
from fusion_core.text import Tokenizer
from tests.strategies.texts import sentences, tokenizer

TEXTS = sentences(seed=0, n=300)


def folder_of(path, content, name="tokenizer.json"):
    path.mkdir(exist_ok=True)
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def differ(a, b, message):
    for folders in ([a, b], [b, a]):
        with pytest.raises(fc.InputError, match=message) as caught:
            check_same_tokenizer(folders)
        assert str(a) in str(caught.value)
        assert str(b) in str(caught.value)


def unigram(change=lambda values: None) -> str:
    values = json.loads(tokenizer().backend.to_str())
    change(values)
    return json.dumps(values)


def bpe(change=lambda values: None) -> str:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    values = json.loads(backend.to_str())
    change(values)
    return json.dumps(values)


def older_metaspace(values):
    for part in (*values["pre_tokenizer"]["pretokenizers"], *values["decoder"]["decoders"]):
        if part.pop("prepend_scheme", None):
            del part["split"]
            part["add_prefix_space"] = True


def older_merges(values):
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]


def stored_settings(values):
    values["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    ("make", "change"),
    [(unigram, older_metaspace), (unigram, stored_settings), (bpe, older_merges), (bpe, stored_settings)],
)
def test_other_spellings_of_one_tokenizer_are_one(tmp_path, make, change):
    a, b = folder_of(tmp_path / "a", make()), folder_of(tmp_path / "b", make(change))
    assert (a / "tokenizer.json").read_bytes() != (b / "tokenizer.json").read_bytes()
    check_same_tokenizer([a, b])
    (tmp_path / "none").mkdir()
    check_same_tokenizer([a, tmp_path / "none", b])


def swapped_pieces(values):
    vocab = values["model"]["vocab"]
    vocab[300], vocab[301] = vocab[301], vocab[300]


def other_score(values):
    values["model"]["vocab"][300][1] -= 3.0


def other_space(values):
    values["pre_tokenizer"]["pretokenizers"] = values["pre_tokenizer"]["pretokenizers"][1:]


def lower_case(values):
    values["normalizer"] = {"type": "Lowercase"}


def other_end(values):
    values["post_processor"] = None


def swapped_merges(values):
    """Two merges that compete for the middle of one text, in the other order."""
    merges = values["model"]["merges"]
    first, second = next(
        (i, j) for j in range(len(merges)) for i in range(j) if merges[i][1] == merges[j][0] and merges[i] != merges[j]
    )
    merges[first], merges[second] = merges[second], merges[first]


def another_token(values):
    values["added_tokens"].append(dict(values["added_tokens"][0], id=len(values["model"]["vocab"]), content="<new>"))


def wider_token(values):
    values["added_tokens"][0]["lstrip"] = True


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (unigram, swapped_pieces, "is 30[01] and 30[01]"),
        (unigram, other_score, "the score of '.*' is -"),
        (unigram, other_space, r"is (... )?\["),
        (unigram, lower_case, r"is (... )?\["),
        (unigram, other_end, r"'' is \[1?\] and \[1?\]"),
        (unigram, another_token, "'<new>' is (not a piece and 4|4.* and not a piece)"),
        (bpe, swapped_merges, r"is (... )?\["),
        (bpe, lambda values: values["model"]["merges"].pop(), r"is (... )?\["),
        (bpe, wider_token, r"is (... )?\["),
        (bpe, lambda values: values["pre_tokenizer"].update(add_prefix_space=True), r"is (... )?\["),
    ],
)  # fmt: skip
def test_tokenizers_that_give_some_text_other_ids_are_two(tmp_path, make, change, message):
    a, b = folder_of(tmp_path / "a", make()), folder_of(tmp_path / "b", make(change))
    differ(a, b, rf"differ \(tokenizer.json, tokenizer.json: .*{message}.*equal ids mean equal pieces of text")


def spiece(kind="unigram", lines=TEXTS, **options) -> bytes:
    """A model of the library, with T5's special ids or Llama's."""
    model = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if kind == "unigram" else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type=kind, vocab_size=320, num_threads=1, minloglevel=2,
        **{"byte_fallback": True, **ids, **options},
    )  # fmt: skip
    return model.getvalue()


def test_a_sentencepiece_model_and_the_file_made_from_it_are_one(tmp_path):
    b = folder_of(tmp_path / "b", spiece(), "spiece.model")
    a = folder_of(tmp_path / "a", Tokenizer.load(b).backend.to_str())
    check_same_tokenizer([a, b])
    other = folder_of(tmp_path / "other", spiece(lines=sentences(seed=7, n=300)), "spiece.model")
    differ(a, other, r"differ \((tokenizer.json, spiece.model|spiece.model, tokenizer.json): ")


def test_a_model_of_merges_and_the_file_made_from_it_are_one(tmp_path):
    """Llama's kind: here the file is made from the model's pieces, whose scores are the order of the merges."""
    data = spiece("bpe", normalization_rule_name="identity", remove_extra_whitespaces=False)
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    pieces = {library.id_to_piece(i): i for i in range(library.vocab_size())}
    pairs = [
        (-library.get_score(i), piece[:cut], piece[cut:])
        for piece, i in pieces.items()
        if i > 258
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    merges = [(left, right) for _, left, right in sorted(pairs, key=lambda pair: pair[0])]
    backend = tokenizers.Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    a = folder_of(tmp_path / "a", backend.to_str())
    b = folder_of(tmp_path / "b", data, "tokenizer.model")
    check_same_tokenizer([a, b])
    backend.normalizer = normalizers.Replace(" ", "▁")
    differ(folder_of(tmp_path / "c", backend.to_str()), b, r"is (... )?\[")


def test_a_vocabulary_with_merges_and_the_file_of_both_are_one(tmp_path):
    a = folder_of(tmp_path / "a", bpe())
    model = json.loads(bpe())["model"]
    b = folder_of(tmp_path / "b", json.dumps(model["vocab"]), "vocab.json")
    lines = [" ".join(pair) for pair in model["merges"]]
    (b / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    check_same_tokenizer([a, b])
    (b / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines[::-1]) + "\n", encoding="utf-8")
    differ(a, b, "their merges, from")


def test_what_transformers_makes_of_a_model_is_the_same_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    b = folder_of(tmp_path / "b", spiece(byte_fallback=False), "spiece.model")
    theirs = transformers.T5Tokenizer.from_pretrained(b)
    theirs.save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "tokenizer.json").exists()
    check_same_tokenizer([tmp_path / "a", b])


def test_every_piece_is_in_the_texts_that_are_compared(tmp_path):
    from fusion_core.text.sameness import meaning, probes

    found = meaning(folder_of(tmp_path / "a", unigram()) / "tokenizer.json")
    ids = {i for row in found.encode(probes(found), True) for i in row}
    reached = {piece for piece, i in found.pieces.items() if i in ids}
    assert {f"<extra_id_{i}>" for i in range(100)} <= reached
    assert len(reached) > 0.9 * (len(found.pieces) - 256)  # bytes of letters in the vocabulary are never reached


def test_an_added_token_is_probed_beside_text(tmp_path):
    files = []
    for name, options in (("a", {}), ("b", {"single_word": True})):
        backend = tokenizers.Tokenizer.from_str(unigram())
        backend.add_tokens([AddedToken("<new>", **options)])
        files.append(folder_of(tmp_path / name, backend.to_str()))
    differ(*files, r"'a<new>b' is (... )?\[")
