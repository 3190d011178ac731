"""Files of checkpoints that nobody would write: refused in one line, at once, before anything is made of their numbers."""

import json
import os
import shutil

import numpy as np
import pytest

import fusion_core as fc
from fusion_core import checkpoints
from fusion_core.checkpoints import describe, open_checkpoint
from fusion_core.checkpoints.ranges import read_header
from fusion_core.models.registry import MODEL_TYPES, config_from_json
from fusion_core.text.json_files import DEEPEST, parse, read_json
from tests.strategies.checkpoints import in_shards, raw_file, saved_decoder, saved_t5, write_index

HUGE = 10**30
T5_FIELDS = {
    "num_layers": [10**7, HUGE, True, 0, -1, "1", 1.5, [1], {}, None],
    "num_decoder_layers": [10**7, HUGE, True, "1"],
    "vocab_size": [HUGE, "many", True, -5, None, [[20]]],
    "d_model": [None, HUGE, 16.0, "16", False],
    "layer_norm_epsilon": ["small", None, -1, 1e39, 10**40, True, [1e-6], {"a": 1}],
    "decoder_start_token_id": ["<pad>", -1, HUGE, [0], True],
    "eos_token_id": [[[1]], [[]], [1, "2"], [-1], HUGE, {"id": 1}, "1"],
    "pad_token_id": [[[0]], -2, -1, HUGE, 0.5],
    "dropout_rate": [1, -0.5, "none", 1e300, None, True],
    "feed_forward_proj": [5, None, ["relu"], "gated-", "relu" * 10_000],
    "dense_act_fn": ["gelu_new", 1, ["relu"]],
    "is_gated_act": [True, "no"],
    "relative_attention_num_buckets": [HUGE, "8", 7, None],
    "tie_word_embeddings": ["false", 0, [False]],
    "scale_decoder_outputs": ["yes", 1],
    "model_type": [["t5"], {"t5": 1}, 5, None, True, "", "T5" * 10_000],
    "architectures": ["T5", [5], {}],
}
DECODER_FIELDS = {
    "num_hidden_layers": [10**7, HUGE, True, None, "2", -1],
    "hidden_size": [None, HUGE, 8.0, "8", 0],
    "num_attention_heads": [None, 0, HUGE, "2", 3],
    "num_key_value_heads": [0, True, HUGE, 2.0],
    "head_dim": [0, HUGE, "4", 5],
    "rms_norm_eps": ["1e-6", -1, 10**39, True, [0]],
    "rope_parameters": ["default", [1], 5, {"rope_theta": -1}, {"rope_theta": "big"}, {"rope_theta": [1e4]}, {"rope_type": 5}],
    "rope_scaling": ["linear", [], {"factor": "2"}, {"rope_type": "yarn", "factor": -2}, {"rope_type": ["yarn"]}],
    "max_position_embeddings": [-1, HUGE, "64"],
    "bos_token_id": [[1], -3, HUGE, "1"],
    "eos_token_id": [[[2]], [], "2"],
    "attention_bias": ["false", 0],
    "attention_dropout": ["0", 2, -1, {}],
    "hidden_act": [5, ["silu"]],
}  # fmt: skip
OTHERS = {
    "gpt2": {"n_embd": [None, HUGE, "8"], "n_layer": [10**7], "n_inner": ["x", 0], "layer_norm_epsilon": [-1, "x"]},
    "qwen2": {"use_sliding_window": ["yes"], "sliding_window": [-1], "max_window_layers": [-1, "1"], "layer_types": [5, [5]]},
    "gemma2": {"final_logit_softcapping": [-1, 0, "x"], "layer_types": [["a"] * 9, "full"], "rms_norm_eps": [-1]},
    "gpt_neox": {"rotary_emb_base": [-1, "x", [1]], "rotary_pct": [2, "x"], "layer_norm_eps": [-1]},
    "mistral": {"sliding_window": ["x", 0, -1], "rope_theta": [-1, "x", [1], 1e39]},
}  # fmt: skip


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    saved_t5(folder / "t5")
    saved_decoder(folder / "llama", "llama")
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine / "t5", tmp_path / "a")


def changed(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def refused_by(use, folder, *words):
    """The only message of ``use``: one line with the words."""
    with pytest.raises(fc.InputError) as caught:
        use(folder)
    said = str(caught.value)
    assert len(said) < 1500
    assert "\n" not in said
    for word in words:
        assert word in said
    return said


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_every_field_of_another_type_or_range_is_refused_by_its_name(pristine, tmp_path, kind):
    folder = shutil.copytree(pristine / kind, tmp_path / "a")
    whole = json.loads((folder / "config.json").read_text())
    for name, values in (T5_FIELDS if kind == "t5" else DECODER_FIELDS).items():
        for value in values:
            (folder / "config.json").write_text(json.dumps(whole | {name: value}))
            refused_by(open_checkpoint, folder, name if value != 3 else "shape (8, 12)", str(folder))
    (folder / "config.json").write_text(json.dumps(whole))
    open_checkpoint(folder)


@pytest.mark.parametrize("kind", OTHERS)
def test_every_architecture_has_the_same_schema(kind):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = dict.fromkeys((*names, "n_positions", "n_embd", "n_layer", "n_head"), 2) | {"head_dim": 2}
    config_from_json({"model_type": kind, **sizes})
    for name, values in OTHERS[kind].items():
        for value in values:
            said = {"use_sliding_window": True, name: value}
            refused_by(lambda values: config_from_json(values), {"model_type": kind, **sizes, **said}, name)


def test_what_old_and_odd_files_say_is_read_as_before():
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = config_from_json(
        {"model_type": "llama", **sizes, "rms_norm_eps": 0, "rope_theta": 10000, "pad_token_id": -1}
    )
    assert (config.rms_norm_eps, config.pad_token_id) == (0.0, -1)
    assert type(config.rope_theta) is float
    for name, value in (("rope_scaling", None), ("unheard_of", [[{"a": "b"}]]), ("sliding_window", None)):
        assert config_from_json({"model_type": "llama", **sizes, name: value})
    for said, derived in (("gated-gelu", "gelu_new"), ("gated-silu", "swish"), ("relu", "relu")):
        values = {"model_type": "t5", "decoder_start_token_id": 0, "feed_forward_proj": said, "dense_act_fn": derived}
        assert config_from_json(values | {"is_gated_act": said != "relu"}).feed_forward_proj == said


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_configuration_of_nothing_or_of_nulls_is_one_line(model_type):
    for value in (None, "x", -1, [], {}, True, 1e308):
        names = (*T5_FIELDS, *DECODER_FIELDS, "n_embd", "n_layer", "n_head", "n_positions")
        refused_by(lambda values: config_from_json(values), dict.fromkeys(names, value) | {"model_type": model_type})
    if model_type not in ("t5", "mt5", "umt5"):
        refused_by(lambda values: config_from_json(values), {"model_type": model_type}, "is missing")


# sizes against what the files hold


def test_layers_are_compared_with_the_tensors_before_anything_is_made_for_each(folder, refused):
    changed(folder, num_layers=99_999)
    for command in (["info", folder], ["fuse", folder, folder, "--out", folder.parent / "out", "--dry-run"]):
        refused("num_layers is 99,999, but the files hold only 26 tensors", *command)
    changed(folder, num_layers=10**7)
    refused("num_layers is 10000000; it must be a positive integer, at most 100,000", "info", folder)


def test_the_layers_of_a_growth_are_compared_with_its_tensors(folder):
    out = folder.parent / "out"
    checkpoints.write_recipe(checkpoints.fusion_recipe([folder, folder], noise=0.1), out, probe=False)
    values = json.loads((out / "growth.json").read_text())
    values["sources"][0]["config"]["num_layers"] = 99_999
    (out / "growth.json").write_text(json.dumps(values))
    refused_by(lambda out: checkpoints.growth_file.read_growth(out).mapping(), out, "num_layers is 99,999")


# JSON

NESTED = 200_000
BROKEN = {
    "nested lists": ("[" * NESTED, "nested more than 100 deep"),
    "nested objects": ('{"a":' * NESTED, "nested more than 100 deep"),
    "nested and closed": ('{"a":' + "[" * 101 + "]" * 101 + "}", "nested more than 100 deep"),
    "a long number": ('{"a": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
    "a large number": ('{"a": 1e400}', "is too large"),
    "NaN": ('{"a": NaN}', "NaN"),
    "Infinity": ('{"a": -Infinity}', "Infinity"),
    "a name twice": ('{"a": 1, "a": 2}', "a name stands twice: 'a'"),
    "half of a character": ('{"a": "\\udc00"}', "half of a character"),
    "no UTF-8": (b'{"a": "\xff"}', "utf-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "a list": ("[]", "no JSON object"),
    "nothing": ("", "Expecting value"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_json_that_is_none_is_one_line_in_every_file_of_a_checkpoint(folder, case):
    content, message = BROKEN[case]
    content = content if isinstance(content, bytes) else content.encode()
    uses = {
        "config.json": open_checkpoint,
        "model.safetensors.index.json": open_checkpoint,
        "growth.json": checkpoints.growth_file.read_growth,
        "tokenizer.json": lambda folder: checkpoints.fusion_recipe(
            [folder, shutil.copytree(folder, folder.parent / "b")]
        ),
    }
    for name, use in uses.items():
        shutil.rmtree(copy := folder.parent / "copy", ignore_errors=True)
        shutil.rmtree(folder.parent / "b", ignore_errors=True)
        shutil.copytree(folder, copy)
        if name.endswith("index.json"):
            (copy / "model.safetensors").unlink()
        (copy / name).write_bytes(content)
        if name == "tokenizer.json":  # read by its library
            (copy / "vocab.json").write_bytes(content)
            (copy / "tokenizer.json").unlink()
            values = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps(values | {"n": 1}))
            other = shutil.copytree(copy, folder.parent / "b")
            (other / "vocab.json").write_text("{}")
            refused_by(lambda copy, other=other: checkpoints.fusion_recipe([copy, other]), copy, "vocab.json", message)
        else:
            refused_by(use, copy, name, message)
    header = raw_file(folder / "x.safetensors", content, b"")
    refused_by(read_header, header, message)


def test_json_as_people_have_it_is_read(tmp_path):
    file = tmp_path / "a.json"
    nested = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    text = '{"a": [1, -2.5, 1e-400, "\\ud83d\\ude00"], "b": ' + nested + ', "c": ' + "9" * 100 + "}"
    file.write_text("\ufeff" + text, encoding="utf-8")
    assert read_json(file) == json.loads(text) == parse(text.encode())
    assert np.isnan(parse("NaN", finite=False))
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    refused_by(lambda file: read_json(file, longest=10), file, "such a file has at most 10")


# indexes and headers


@pytest.mark.parametrize("name", ["a" * 5000, "/etc/passwd", "../../x", "..", ".", "", "a\0b", "a/b", "漢" * 100])
def test_an_index_names_files_of_its_folder_only(folder, name):
    in_shards(folder)
    write_index(folder, {"shared.weight": name})
    said = refused_by(open_checkpoint, folder, "index.json names")
    assert len(said) < 600


def test_a_weight_map_of_other_types_is_refused(folder):
    in_shards(folder)
    for weight_map in ([], "x", {"a": 1}, {"a": ["b"]}, None):
        write_index(folder, weight_map)
        refused_by(open_checkpoint, folder, "has no weight_map")


@pytest.mark.parametrize("shape", [[1] * 100_000, [2**63], [10**90], [2**62] * 64, [0] * 65, [1.0], ["1"], [[1]]])
def test_a_shape_that_no_array_has_is_refused_at_once(tmp_path, shape):
    file = raw_file(
        tmp_path / "a.safetensors", {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}, b"\0" * 4
    )
    refused_by(read_header, file, "x has ")


@pytest.mark.parametrize("name", ["a" * 2000, "a\nb", "a\x1b[31m", "\u2028"])
def test_a_name_of_a_tensor_that_no_line_holds_is_refused(tmp_path, name):
    file = raw_file(
        tmp_path / "a.safetensors", {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4
    )
    refused_by(read_header, file, "a tensor has the name")


# what is no regular file


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "merges.txt", "generation_config.json", "model.safetensors"]
)
@pytest.mark.parametrize("what", ["folder", "pipe", "device", "loop"])
def test_what_is_no_regular_file_is_one_line_at_once(folder, refused, name, what):
    file = folder / name
    file.unlink(missing_ok=True)
    if what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if what == "device" else file)
    if what == "loop" and name not in ("config.json", "model.safetensors"):
        return  # as if it were not there
    refused(name, "fuse", folder, folder, "--noise", 0.1, "--out", folder.parent / "out", "--dry-run")
    if name in ("config.json", "tokenizer.json", "model.safetensors"):
        refused(name, "info", folder)


@pytest.mark.parametrize("value", [["t5"], {"t5": 1}, 5, True])
def test_a_model_type_that_is_no_text_is_refused_by_every_reader(folder, value):
    changed(folder, model_type=value)
    for use in (describe, open_checkpoint, fc.load_pretrained):
        refused_by(use, folder, "model_type is")
