"""The smallest input of every mistake that the fuzzer has found and this part of the tests has no better place for."""

import functools
import json

import numpy as np
import pytest

from fusion_core.errors import InputError
from fusion_core.schedule import run_curves
from fusion_core.text import corpus, read_documents
from fusion_core.text.prepared import TOKENS, read_tokens
from fusion_core.text.tokenizer import Tokenizer
from tests.fuzz import bases
from tests.fuzz.cases import Cases
from tests.fuzz.mutations import varint
from tests.fuzz.on_runs import DECISION
from tests.fuzz.targets import TARGETS
from tests.strategies.texts import tokenizer

MODEL = b"\x0a\x0e\x0a\x05<pad>\x15\x00\x00\x00\x00\x18\x03"  # the first piece of a sentencepiece model


def changed(text, *place):
    """A JSON file with another value, the last one, at a place."""
    tree = json.loads(text)
    inner = functools.reduce(lambda values, key: values[key], place[:-2], tree)
    inner[place[-2]] = place[-1]
    return json.dumps(tree).encode()


def run_with(node, **facts):
    """The results of a run, the second of its files, with other facts of a node."""
    results = json.loads(bases.run_files()[1]["results.json"])
    for nodes in (results["nodes"], *results["seeds"].values()):
        nodes[node] |= facts
    return b"\x01" + json.dumps(results).encode()


def template_without_id():
    """A tokenizer by which its library panics, with a backtrace on standard error."""
    facts = json.loads(tokenizer().backend.to_str())
    facts["post_processor"]["single"][1]["SpecialToken"]["id"] += "x"
    return json.dumps(
        facts | {"post_processor": {"type": "Sequence", "processors": [facts["post_processor"]]}}
    ).encode()


def page_of_a_gigabyte():
    """A .parquet of 4 kB whose first page says that it has 1.6 GB."""
    data = bases.texts()[".parquet"]
    size = data.index(b"\x15", 7) + 1  # kind, size unpacked, size
    return data[:size] + b"\xc4\xed\xa0\x80\x0c" + data[size + 2 :]


FOUND = {
    "a column's name that is not UTF-8": (
        "text.parquet",
        lambda: bases.texts()[".parquet"].replace(b"text", b"te\xf6t"),
    ),
    "a page of a gigabyte": ("text.parquet", page_of_a_gigabyte),
    "a page of a gigabyte in a large file": ("large.parquet", page_of_a_gigabyte),
    # the file's fields are read here too, and the library reads them otherwise
    "a number that does not end": ("sentencepiece", lambda: bases.sentencepiece_model() + b"\x80"),
    "a number of 100 bytes": ("sentencepiece", lambda: bases.sentencepiece_model() + b"\x80" * 100 + b"\x01"),
    "a field within another": ("sentencepiece", lambda: b"\x09" + bytes(8) + bases.sentencepiece_model()[:-3]),
    "a map of characters that is a number": (
        "sentencepiece",
        lambda: bases.sentencepiece_model() + b"\x1a\x02\x10\x05",
    ),
    "a kind that is a text": ("sentencepiece", lambda: MODEL + b"\x0a\x06\x0a\x01a\x1a\x01b"),
    # values of a right type that nobody would write
    "a scale too few": (
        "growth_json",
        lambda: changed(bases.growth_file(), "tensors", "shared.weight", "scales", [1.0]),
    ),
    "a source that is larger than what grew from it": (
        "growth_json",
        lambda: changed(bases.growth_file(), "sources", 0, "config", "d_ff", 10**9),
    ),
    "an axis of 10^9": (
        "growth_json",
        lambda: changed(bases.growth_file(), "tensors", "shared.weight", "shape", [64, 10**9]),
    ),
    "a role that there is not": ("law_json", lambda: changed(bases.laws()[0], "facts", "training", "other", {})),
    "a step of -1": ("decision_json", lambda: changed(json.dumps(DECISION), "step", -1)),
    "a rate of -1": ("decision_json", lambda: changed(json.dumps(DECISION), "learning_rate", -1.0)),
    "a factor of 0": ("decision_json", lambda: changed(json.dumps(DECISION), "factors", "q", 0.0)),
    "an index of nothing": ("index", lambda: b'{"weight_map": {}}'),
    "a node that comes from itself": ("law_runs", lambda: run_with("large", inputs=["large"])),
    "a loss that is a pair too many": ("law_runs", lambda: run_with("large", validation_loss=[[0, 1.0, 2.0]])),
    "a template with a token that has no id": ("tokenizer_json", template_without_id),
    "an order of 10^60": (
        "derive",
        lambda: b"--phases E1:h1:n,E2:h2 --where E1=x**2*y --where E2=y**2/2 --order 1" + b"0" * 60,
    ),
    # values of 10,000 letters, which a message would quote
    "a pad token of 10,000 letters": ("tokenizer_config", lambda: json.dumps({"pad_token": "x" * 10_000}).encode()),
    "a column's name of 10,000 letters": ("glue_sst2", lambda: b"hidden\t" + b"a" * 10_000 + b"\tb\nc\td\n"),
    # quotes that csv does not read
    "a line that ends within quotes": ("glue_stsb", lambda: b'"a"\n"b"c"\r"'),
    # tokens: a zip file, and arrays in it
    "a zip file of four bytes": ("tokens_npz", lambda: b"PK\x03\x04"),
    "no zip file": ("tokens_npz", lambda: b"\x93NUMPY"),
    "an empty zip file": ("tokens_npz", lambda: b"PK\x05\x06" + bytes(18)),
    "a kind of node that is a table": (
        "plan",
        lambda: bases.PLANS[0].replace("[node.a]", "[node.a]\nkind = { a = 1 }").encode(),
    ),
    "a source of 10^8 tokens": ("plan", lambda: bases.PLANS[0].replace("length = 16", "length = 100000000").encode()),
    "a source of 10^12 tokens": (
        "plan",
        lambda: bases.PLANS[0].replace("length = 16", "length = 1000000000000").encode(),
    ),
    "damaged tokens": ("tokens_npz", lambda: bases.tokens()[0][:200] + b"\xff" + bases.tokens()[0][201:]),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_refused(tmp_path, name):
    target, data = FOUND[name]
    outcome = Cases(TARGETS[target], tmp_path).outcome(data())
    assert outcome.kind == "refused", outcome


def test_rotary_positions_of_an_unknown_kind_without_a_base_are_written_as_they_are_read_again(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 4}
    values = {"model_type": "llama", "vocab_size": 3, **sizes, "rope_parameters": {"rope_type": "new"}}
    assert Cases(TARGETS["config"], tmp_path).outcome(json.dumps(values).encode()).kind == "read"


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


def test_a_network_whose_steps_cost_nothing_has_no_curve():
    node = {"kind": "train", "inputs": [], "start": 0, "step": 1, "flops": 0.0, "step_flops": 0.0}
    with pytest.raises(InputError, match=r"costs 0\.0 FLOPs"):
        run_curves({"0": {"a": node | {"validation_loss": [(0, 1.0), (1, 1.0)]}}}, scratch=["a"])


@pytest.mark.parametrize("field", ["start", "step_flops", "flops", "validation_loss"])
def test_a_network_without_a_fact_of_its_training_has_no_curve(field):
    node = {
        "kind": "",
        "inputs": [],
        "start": 0,
        "step": 1,
        "flops": 1.0,
        "step_flops": 1.0,
        "validation_loss": [(0, 1.0)],
    }
    del node[field]
    with pytest.raises(InputError, match=f"the node a has no {field}"):
        run_curves({"0": {"a": node}}, scratch=["a"])
