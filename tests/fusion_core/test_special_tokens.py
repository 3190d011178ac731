"""Ids of padding, end and sentinels come from the tokenizer and the configuration, in every path; never from habit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

import fusion_core as fc
from fusion_core.models.t5 import batch_loss
from fusion_core.models.t5.decoding import Decoding, generate
from fusion_core.runs import read_plan
from fusion_core.runs.answers import TextNetwork, answer, open_network
from fusion_core.text import SpanCorruption, StreamedSpans, TextList, Tokenizer
from fusion_core.text.examples import ExampleBatches, encode_texts, padded
from fusion_core.text.sources import first_batches
from tests.strategies.decoding import lively
from tests.strategies.networks import tiny
from tests.strategies.texts import documents, tokenizer

TEXTS = documents(seed=1, n=12)


def changed(change) -> Tokenizer:
    """The tests' tokenizer after ``change`` of the values of its file."""
    values = json.loads(tokenizer().backend.to_str())
    change(values)
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)))


def one_more_before(values) -> None:
    """Every id is one higher, as if the vocabulary began with a token of its own: pad is 1, and end 2."""
    values["model"]["vocab"].insert(0, ["<s>", 0.0])
    values["model"]["unk_id"] += 1
    for token in values["added_tokens"]:
        token["id"] += 1
    values["post_processor"]["special_tokens"]["</s>"]["ids"] = [2]


def sentinels_upward(values) -> None:
    """``<extra_id_0>`` is the first of the sentinels and not the last, as ByT5 has them."""
    vocab = values["model"]["vocab"]
    vocab[-100:] = reversed(vocab[-100:])
    ids = {piece: i for i, (piece, _) in enumerate(vocab)}
    for token in values["added_tokens"]:
        token["id"] = ids[token["content"]]
    values["added_tokens"].sort(key=lambda token: token["id"])


def a_token_after(values) -> None:
    values["added_tokens"].append(dict(values["added_tokens"][-1], id=len(values["model"]["vocab"]), content="<new>"))


def batches(tokens: Tokenizer):
    """One batch of each way from text to span corruption."""
    in_memory = SpanCorruption.from_documents(tokens.encode_ended(TEXTS), tokens, 40, 0)
    stream = {"documents": TextList(TEXTS), "tokenizer": tokens, "source": 40, "seed": 0, "target": 16}
    sources = (in_memory, StreamedSpans(**stream, packed=True), StreamedSpans(**stream, packed=False))
    return [first_batches(source, 8, 1)[0] for source in sources]


@pytest.mark.parametrize("change", [one_more_before, sentinels_upward, a_token_after])
def test_sentinels_end_and_padding_are_looked_up_by_name_in_every_path(change):
    tokens = changed(change)
    named = [tokens.backend.token_to_id(f"<extra_id_{i}>") for i in range(100)]
    assert tokens.special.sentinels == tuple(named)
    for batch in batches(tokens):
        for source, target in zip(batch["encoder_ids"], batch["targets"], strict=True):
            spelled = [tokens.backend.id_to_token(int(i)) for i in source]
            segments = spelled[: spelled.index("</s>") + 1]  # of the first document
            marks = [piece for piece in segments if piece.startswith("<extra")]
            assert marks == [f"<extra_id_{i}>" for i in range(len(marks))]
            assert set(spelled[len(segments) :]) <= {"<pad>"} or "encoder_segments" in batch
            assert tokens.backend.id_to_token(int(target[0])) == "<extra_id_0>"
        if "encoder_segments" in batch:
            empty = batch["target_segments"] == 0
            assert empty.any()
            assert set(batch["targets"][empty]) == {tokens.special.pad}


def test_a_plan_with_a_tokenizer_without_sentinels_is_refused_before_training(tmp_path):
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "<pad>": 2, "</s>": 3}, []))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "corpus.txt").write_text("a b")
    plan = tmp_path / "plan.toml"
    data = '[data]\ntext = ["corpus.txt"]\ntokenizer = "."\n'
    plan.write_text(data + "[node.a]\nmodel = { d_model = 8 }\nsteps = 10\n")
    with pytest.raises(fc.InputError, match="line 3: the tokenizer has no <extra_id_0>"):
        read_plan(plan)
    Tokenizer(backend)
    backend.add_special_tokens([f"<extra_id_{i}>" for i in range(3)])
    with pytest.raises(fc.InputError, match="a source of 100 tokens needs more than 3 sentinels"):
        StreamedSpans(TextList(TEXTS), Tokenizer(backend), 100, 0)
    backend = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(
        fc.InputError, match="has no pad token <pad> and no end token </s> and no sentinel <extra_id_0>"
    ):
        StreamedSpans(TextList(TEXTS), Tokenizer(backend), 100, 0)


def test_a_plans_model_takes_its_ids_from_the_tokenizer(tmp_path):
    changed(one_more_before).save(tmp_path)
    (tmp_path / "corpus.txt").write_text("a b")
    plan = tmp_path / "plan.toml"
    data = '[data]\ntext = ["corpus.txt"]\ntokenizer = "."\n'
    plan.write_text(data + "[node.a]\nmodel = { d_model = 8 }\nsteps = 10\n")
    config = read_plan(plan).nodes[0].model
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (1, 2, 1)
    plan.write_text(data + "[node.a]\nmodel = { d_model = 8, pad_token_id = 0 }\nsteps = 10\n")
    with pytest.raises(fc.InputError, match="line 5: node a: the model's pad_token_id is 0, but the tokenizer's 1"):
        read_plan(plan)


@pytest.mark.parametrize("stored", ["truncation", "padding"])
def test_truncation_and_padding_that_a_file_stores_are_not_obeyed(tmp_path, stored):
    backend = tokenizers.Tokenizer.from_str(tokenizer().backend.to_str())
    backend.enable_truncation(4) if stored == "truncation" else backend.enable_padding(length=500)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert [x.tolist() for x in loaded.encode(TEXTS)] == [x.tolist() for x in tokenizer().encode(TEXTS)]
    ids, cut = encode_texts(loaded, TEXTS, 9)
    assert cut == len(TEXTS)
    assert all(len(x) == 9 for x in ids)


def test_names_of_pad_and_end_are_read_from_the_files_beside_the_tokenizer(tmp_path):
    def renamed(values):
        text = json.dumps(values).replace("<pad>", "[PAD]").replace("</s>", "[END]")
        values.clear()
        values.update(json.loads(text))

    tokens = changed(renamed)
    tokens.backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(fc.InputError, match="has no pad token <pad> and no end token </s>"):
        assert Tokenizer.load(tmp_path).special
    named = {"pad_token": {"content": "[PAD]"}, "eos_token": "[END]"}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(named))
        loaded = Tokenizer.load(tmp_path)
        assert (loaded.special.pad, loaded.special.end) == (0, 1)
        (tmp_path / name).unlink()
    loaded.save(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (written["pad_token"], written["eos_token"], written["unk_token"]) == ("[PAD]", "[END]", "<unk>")


def test_the_width_of_a_batch_changes_neither_loss_nor_answer_wherever_pad_is(tmp_path):
    tokens = changed(one_more_before)
    ids = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = tiny(vocab_size=tokens.vocab_size, num_layers=1, num_decoder_layers=1, **ids)
    fc.save_pretrained(tmp_path, lively(config, 0), config)
    tokens.save(tmp_path)
    network = open_network(tmp_path)
    (short, long), _ = encode_texts(network.tokenizer, [TEXTS[0][:20], TEXTS[1]], 60)
    assert long[-1] == 2
    rows = ExampleBatches([short] * 2, [short[-4:]] * 2, seed=0, dispatch=1, pad=1).batch(0, 2)
    assert set(rows["encoder_ids"][0, len(short) :]) == {1}
    losses = []
    for width in (len(short), 64):
        batch = {"encoder_ids": padded([short], width, 1), "targets": padded([short[-4:]], width, 1)}
        total, sums = jax.jit(batch_loss, static_argnums=1)(network.params, network.config, batch)
        assert int(sums["tokens"]) == 4
        losses.append(float(total))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    how = Decoding(6)
    assert answer(network, [short], how) == answer(network, [short, long], how)[:1]


def test_no_end_token_of_several_is_shown_in_an_answer(tmp_path):
    config = tiny(vocab_size=tokenizer().vocab_size, num_layers=1, num_decoder_layers=1)
    params = lively(config, 0)
    network = TextNetwork(params, config, tokenizer())
    source = encode_texts(tokenizer(), [TEXTS[0][:20]], 60)[0]
    free = generate(params, config, padded(source, 32, 0), max_length=6)[0]
    ends = dataclasses.replace(config, eos_token_id=(1, int(free[1])))
    (short,) = answer(network._replace(config=ends), source, Decoding(6))
    first = [] if free[0] == free[1] else free[:1]
    assert short == tokenizer().decode(first)
    assert answer(network, source, Decoding(6)) != [short]


def test_a_tokenizer_without_an_end_in_its_template_still_ends_its_texts(tmp_path):
    tokens = changed(lambda values: values.update(post_processor=None))
    ended = tokens.encode_ended(["", *TEXTS])
    assert [x.tolist() for x in ended] == [x.tolist() for x in tokenizer().encode_ended(["", *TEXTS])]
    assert all(x[-1] == 1 for x in encode_texts(tokens, TEXTS, 500)[0])


def test_an_added_token_beyond_the_vocabulary_counts_as_a_row():
    tokens = changed(lambda values: None)
    size = tokens.vocab_size
    tokens.backend.add_tokens([AddedToken("<new>")])
    assert Tokenizer(tokens.backend).vocab_size == size + 1


# Ids in config.json


def t5_json(tmp_path, **ids):
    config = tiny(vocab_size=40)
    fc.save_pretrained(tmp_path, lively(config, 0), config, overwrite=True)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text()) | ids
    file.write_text(json.dumps({name: value for name, value in values.items() if value != "missing"}))
    return tmp_path


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"decoder_start_token_id": None}, "config.json: decoder_start_token_id is null; a T5 needs one .*usually 0"),
        ({"decoder_start_token_id": "missing", "pad_token_id": 3}, "decoder_start_token_id is missing; .*usually 3"),
        ({"eos_token_id": []}, r"eos_token_id is \[\]"),
        ({"eos_token_id": None}, "eos_token_id is null"),
        ({"pad_token_id": [0]}, r"pad_token_id is \[0\]"),
        ({"pad_token_id": 40}, "T5Config.pad_token_id is 40; it must be an id from 0 to 39"),
        ({"pad_token_id": True}, "pad_token_id is True"),
    ],
)
def test_ids_that_training_lacks_are_refused_wherever_a_folder_is_opened(tmp_path, ids, message):
    from fusion_core.checkpoints import describe, fusion_recipe, open_checkpoint

    folder = t5_json(tmp_path / "t5", **ids)
    for use in (describe, open_checkpoint, fc.load_pretrained, lambda folder: fusion_recipe([folder, folder])):
        with pytest.raises(fc.InputError, match=message):
            use(folder)


def test_each_of_several_end_tokens_ends_an_answer(tmp_path):
    folder = t5_json(tmp_path / "t5", eos_token_id=[1, 7])
    params, config = fc.load_pretrained(folder)
    assert config.ends == (1, 7)
    fc.save_pretrained(tmp_path / "again", params, config)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [1, 7]
    assert fc.load_pretrained(t5_json(tmp_path / "t5", eos_token_id=[1]))[1].eos_token_id == 1
