import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import fusion_core as fc
from fusion_core import atomic
from fusion_core.models.t5 import files
from fusion_core.models.units import by_name, nested
from tests.strategies.networks import STYLES, random_t5, tiny

SMALL = {"vocab_size": 9, "num_layers": 1, "num_decoder_layers": 1}


@pytest.fixture(scope="module", params=sorted(STYLES))
def network(request):
    config = tiny(request.param, **SMALL)
    return random_t5(config, 0), config


@pytest.fixture(scope="module")
def tied():
    config = tiny("v1.0", **SMALL)
    return random_t5(config, 0), config


@pytest.fixture
def saved(tied, tmp_path):
    """A saved tied checkpoint, for a test to damage."""
    fc.save_pretrained(tmp_path / "saved", *tied)
    return tmp_path / "saved"


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def change(folder, **tensors):
    """Replaces tensors of a checkpoint; None removes one. Dots in names are written as double underscores."""
    all_tensors = tensors_of(folder)
    for name, tensor in tensors.items():
        all_tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            all_tensors[name.replace("__", ".")] = tensor
    safetensors.numpy.save_file(all_tensors, folder / "model.safetensors")


def change_config(folder, **values):
    file = folder / "config.json"
    found = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def assert_equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_saved_is_read_back_bit_for_bit(network, tmp_path, dtype):
    params, config = network
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    fc.save_pretrained(tmp_path / "a", params, config)
    read, read_config = fc.load_pretrained(str(tmp_path / "a"))
    assert read_config == config
    assert_equal_trees(read, params)


def test_float64_is_read_back_bit_for_bit(tied, tmp_path):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64) / 3, tied[0])
        fc.save_pretrained(tmp_path / "a", params, tied[1])
        assert_equal_trees(fc.load_pretrained(tmp_path / "a")[0], params)


def test_a_checkpoint_in_shards_is_read(tied, saved):
    tensors = tensors_of(saved)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in shards.items():
        safetensors.numpy.save_file({name: tensors[name] for name in inside}, saved / file)
    weight_map = {name: file for file, inside in shards.items() for name in inside}
    (saved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (saved / "model.safetensors").unlink()
    assert_equal_trees(fc.load_pretrained(saved)[0], tied[0])


def test_copies_of_the_embedding_and_a_tied_head_are_passed_over(tied, saved):
    embedding = tensors_of(saved)["shared.weight"]
    change(
        saved,
        encoder__embed_tokens__weight=embedding,
        decoder__embed_tokens__weight=embedding,
        lm_head__weight=embedding,
    )
    assert_equal_trees(fc.load_pretrained(saved)[0], tied[0])


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
def test_a_copy_of_the_embedding_that_differs_from_it_is_refused(saved, name):
    embedding = tensors_of(saved)["shared.weight"]
    change(saved, **{name.replace(".", "__"): embedding + np.float32(1e-3)})
    refused(saved, f"{name} should be a copy of shared.weight, but differs from it; remove the one that is wrong")


def test_a_bias_of_cross_attention_that_nothing_reads_is_passed_over(tied, saved):
    """The released v1.0 checkpoints carry one; the reference ignores it too."""
    bias = np.ones((8, 2), np.float32)
    change(saved, decoder__block__0__layer__1__EncDecAttention__relative_attention_bias__weight=bias)
    assert_equal_trees(fc.load_pretrained(saved)[0], tied[0])


@pytest.mark.parametrize(
    ("written", "tied"),
    [
        ({"tie_word_embeddings": None, "scale_decoder_outputs": None}, True),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": None}, True),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": None}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
    ],
)
def test_config_json_says_whether_the_head_is_tied(written, tied):
    values = files.config_to_json(tiny()) | written
    values = {k: v for k, v in values.items() if v is not None}
    assert files.config_from_json(values).tie_word_embeddings is tied


def test_an_absent_decoder_depth_is_the_encoders():
    values = files.config_to_json(tiny(num_layers=3, num_decoder_layers=3))
    del values["num_decoder_layers"]
    assert files.config_from_json(values).num_decoder_layers == 3


def test_by_name_are_hugging_faces_and_nest_again(network):
    flat = by_name(network[0])
    assert "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in flat
    assert_equal_trees(nested(flat), network[0])


# Bad input: one line that names the thing.


def refused(folder, message):
    with pytest.raises(fc.InputError, match=message) as caught:
        fc.load_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("folder", "why"), [("absent", "there is no such folder"), (".", "it has no config.json")])
def test_a_folder_without_config_is_refused(tmp_path, folder, why):
    refused(tmp_path / folder, f"is no checkpoint: {why}; give the folder that save_pretrained wrote")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_a_damaged_config_is_refused(saved, content):
    (saved / "config.json").write_bytes(content)
    refused(saved, r"config\.json (is not JSON|holds no JSON object).*damaged, copy it again")


def test_another_model_type_is_refused(saved):
    change_config(saved, model_type="bert")
    refused(saved, "model_type is 'bert'; only 't5', 'mt5', .* can be read")


def test_an_unsupported_activation_is_refused(saved):
    change_config(saved, feed_forward_proj="gated-tanh")
    refused(saved, "feed_forward_proj is 'gated-tanh'; it can be")


@pytest.mark.parametrize("kept", [0, 4, 100, 5000])
def test_a_truncated_weights_file_is_refused(saved, kept):
    file = saved / "model.safetensors"
    assert file.stat().st_size > 5000
    file.write_bytes(file.read_bytes()[:kept])
    refused(saved, r"model\.safetensors cannot be read .*truncated or damaged")


def test_a_header_that_lies_is_refused_by_the_loader_of_whole_networks(saved):
    """The offsets of two tensors of one shape are the same bytes: every shape fits, and the file's size too."""
    file = saved / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    block = "encoder.block.0.layer.0.SelfAttention."
    header[f"{block}q.weight"]["data_offsets"] = header[f"{block}k.weight"]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    refused(saved, r"model\.safetensors cannot be read \(.* overlaps with .*truncated or damaged")


def test_a_missing_weights_file_is_refused(saved):
    (saved / "model.safetensors").unlink()
    refused(saved, "has no model.safetensors or model.safetensors.index.json; copy the whole checkpoint$")


def test_a_pickle_is_never_loaded(saved):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused(saved, r"pytorch_model\.bin is a pickle, which is never loaded: save it again as safetensors")


def test_an_index_that_names_a_missing_file_is_refused(saved):
    (saved / "model.safetensors").unlink()
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(saved, r"index\.json names model-00001-of-00002\.safetensors, which is missing")


@pytest.mark.parametrize("index", [{}, {"weight_map": 3}, {"weight_map": {"shared.weight": 5}}])
def test_an_index_without_a_map_is_refused(saved, index):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(saved, r"index\.json .*weight_map")


def test_a_tensor_of_another_shape_is_refused(saved):
    change(saved, shared__weight=np.zeros((9, 15), np.float32))
    refused(saved, r"shared\.weight has shape \(9, 15\), but config\.json says \(9, 16\)")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_tensor_that_is_not_finite_is_refused(saved, value):
    tensor = tensors_of(saved)["shared.weight"]
    tensor[3, 4] = value
    change(saved, shared__weight=tensor)
    refused(saved, r"shared\.weight has entries that are not finite")


def test_a_missing_tensor_is_refused(saved):
    change(saved, encoder__final_layer_norm__weight=None)
    refused(saved, r"the tensor encoder\.final_layer_norm\.weight is missing")


def test_an_unknown_tensor_is_refused(saved):
    change(saved, encoder__block__7__extra__weight=np.zeros(3, np.float32))
    refused(saved, r"unknown tensors \['encoder\.block\.7\.extra\.weight'\]")


def test_an_existing_folder_is_not_overwritten(tied, saved):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(
        FileExistsError, match=r"is not an empty folder; .* pass overwrite=True to replace the checkpoint"
    ):
        fc.save_pretrained(saved, *tied)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_checkpoint_is_overwritten_whole_where_that_is_asked_for(tied, saved):
    (saved / "README.md").write_text("of the old one")
    params = jax.tree.map(lambda x: x + 1, tied[0])
    fc.save_pretrained(saved, params, tied[1], overwrite=True)
    assert_equal_trees(fc.load_pretrained(saved)[0], params)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_folder_without_a_checkpoint_is_never_overwritten(tied, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("precious")
    with pytest.raises(FileExistsError, match="holds no checkpoint, so that it is not overwritten"):
        fc.save_pretrained(tmp_path / "mine", *tied, overwrite=True)
    assert (tmp_path / "mine" / "config.json").read_text() == "precious"


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_failure_while_overwriting_keeps_the_old_checkpoint(tied, saved, monkeypatch, step):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    replace = os.replace

    def fail(source, target):
        if pathlib.Path(target) == saved and pathlib.Path(source, "config.json").read_text() == "new":
            raise OSError("no space left on device")
        replace(source, target)

    def overwrite():
        with atomic.new_folder(saved, replace=True) as temporary:
            (temporary / "config.json").write_text("new")
            if step == "write":
                raise OSError("no space left on device")
            monkeypatch.setattr(os, "replace", fail)

    with pytest.raises(OSError, match="no space"):
        overwrite()
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_an_empty_folder_may_be_written_into(tied, tmp_path):
    (tmp_path / "empty").mkdir()
    fc.save_pretrained(tmp_path / "empty", *tied)
    assert_equal_trees(fc.load_pretrained(tmp_path / "empty")[0], tied[0])


def test_parameters_that_do_not_fit_the_configuration_are_not_saved(tied, tmp_path):
    with pytest.raises(fc.InputError, match=r"has shape \(24, 16\), but the config says \(25, 16\)"):
        fc.save_pretrained(tmp_path / "a", tied[0], tiny("v1.0", **SMALL, d_ff=25))
    assert not list(tmp_path.iterdir())


def test_a_network_that_no_checkpoint_holds_is_not_saved(tmp_path):
    with pytest.raises(fc.InputError, match=r"type MLPConfig; those of T5Config, .*GPT2Config.* are"):
        fc.save_pretrained(tmp_path / "a", {}, fc.MLPConfig((1, 2, 1)))
    assert not list(tmp_path.iterdir())


def test_a_failure_while_saving_leaves_nothing(tied, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        args[0].write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("fusion_core.checkpoints.pretrained.write_tensors", fail)
    with pytest.raises(OSError, match="no space"):
        fc.save_pretrained(tmp_path / "a", *tied)
    assert not list(tmp_path.iterdir())


# fusion_core.atomic


def test_a_new_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic.new_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
    assert path.read_text() == "half"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic.new_file(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_new_folder_appears_only_when_it_is_whole(tmp_path):
    def fail():
        with atomic.new_folder(tmp_path / "a") as temporary:
            (temporary / "x").write_text("x")
            assert not (tmp_path / "a").exists()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert not list(tmp_path.iterdir())
    with atomic.new_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "x"


def test_a_file_where_a_folder_should_come_is_refused(tmp_path):
    (tmp_path / "a").write_text("x")

    def write():
        with atomic.new_folder(tmp_path / "a"):
            pass

    with pytest.raises(FileExistsError, match="is not an empty folder"):
        write()


def test_others_may_read_what_is_written(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "é")
    with atomic.new_folder(tmp_path / "b"):
        pass
    assert os.stat(tmp_path / "a.txt").st_mode & 0o777 == 0o644
    assert os.stat(tmp_path / "b").st_mode & 0o777 == 0o755
    assert (tmp_path / "a.txt").read_bytes() == "é".encode()
