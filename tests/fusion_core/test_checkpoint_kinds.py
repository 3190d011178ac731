"""Checkpoints as people have them, read as transformers reads them or named: stale files, wrapped modules, other networks."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import fusion_core as fc
from fusion_core.checkpoints import describe, open_checkpoint
from fusion_core.checkpoints.comparison import logits_of
from fusion_core.models.units import by_name
from tests.strategies.checkpoints import (
    assert_same,
    in_shards,
    raw_file,
    replace_tensors,
    saved_decoder,
    saved_t5,
    tensors_of,
)


def change_config(folder, **changes) -> pathlib.Path:
    file = pathlib.Path(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return pathlib.Path(folder)


def refused(folder, message):
    for use in (open_checkpoint, describe, fc.load_pretrained):
        with pytest.raises(fc.InputError, match=message) as caught:
            use(folder)
        assert "\n" not in str(caught.value)
        assert "damaged" not in str(caught.value)


# Which file counts


def test_one_file_counts_before_an_index_that_an_earlier_save_has_left(tmp_path):
    old, new = saved_t5(tmp_path / "old", seed=0), saved_t5(tmp_path / "new", seed=1)
    in_shards(old)
    shutil.copy(new / "model.safetensors", old)
    for shards in (True, False):
        if not shards:
            for path in old.glob("model-*"):
                path.unlink()
        found = {entry.path.name for entry in open_checkpoint(old).tensors.values()}
        assert found == {"model.safetensors"}
        np.testing.assert_array_equal(fc.load_pretrained(old)[0]["shared"]["weight"], tensors_of(new)["shared.weight"])


# What stands in the place of a file


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            "is a pointer of git-lfs.*: git lfs pull",
        ),
        (b"<!DOCTYPE html><html>404</html>", "is a web page, not the file itself; download it again"),
    ],
)
def test_what_a_failed_download_leaves_is_named(tmp_path, file, content, message):
    folder = saved_t5(tmp_path / "t5")
    (folder / file).write_bytes(content)
    refused(folder, f"{file} {message}")


def test_a_pointer_is_not_read_as_text_or_tokenizer(tmp_path):
    from fusion_core.text import Tokenizer, read_documents

    for name, read in (("a.txt", lambda path: read_documents([path])), ("tokenizer.json", Tokenizer.load)):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
        with pytest.raises(fc.InputError, match="is a pointer of git-lfs"):
            read(tmp_path / name)


def test_a_byte_order_mark_in_a_config_is_read(tmp_path):
    folder = saved_t5(tmp_path / "t5")
    (folder / "config.json").write_text((folder / "config.json").read_text(), encoding="utf-8-sig")
    assert open_checkpoint(folder).parameters


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tf_model.h5", "tf_model.h5 is of TensorFlow: take the same network as PyTorch's safetensors"),
        ("a.gguf", "a.gguf is of llama.cpp"),
        ("model.fp16.safetensors", "only model.fp16.safetensors; copy the whole checkpoint"),
        ("adapter_model.safetensors", "is an adapter of PEFT"),
        ("pytorch_model.bin", r"by AutoModelForSeq2SeqLM.from_pretrained\(OLD\).save_pretrained\(NEW\)"),
    ],
)
def test_what_there_is_instead_of_weights_is_named(tmp_path, name, message):
    folder = saved_t5(tmp_path / "t5")
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, message)


# Names of wrapped modules


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model."])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_names_of_a_wrapped_module_are_explained(tmp_path, prefix, kind):
    folder = saved_t5(tmp_path / "a") if kind == "t5" else saved_decoder(tmp_path / "a", kind)
    replace_tensors(folder, {prefix + name: value for name, value in tensors_of(folder).items()})
    refused(folder, f"the names of its tensors have {prefix} in them, of a module wrapped by .*; save ")


# Other networks


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("t5", "T5EncoderModel", "T5EncoderModel is an encoder without a decoder.*AutoModelForSeq2SeqLM loads whole"),
        ("t5", "T5ForTokenClassification", "is a classifier"),
        ("t5", "T5ForQuestionAnswering", "marks answers"),
        ("llama", "LlamaForSequenceClassification", "is a classifier.*AutoModelForCausalLM loads whole"),
        ("gpt2", "GPT2DoubleHeadsModel", "two heads"),
    ],
)
def test_networks_that_end_otherwise_are_named(tmp_path, kind, name, message):
    folder = saved_t5(tmp_path / "a") if kind == "t5" else saved_decoder(tmp_path / "a", kind)
    change_config(folder, architectures=[name])
    refused(folder, message)


def test_an_encoder_alone_is_named_even_if_the_config_does_not_say_so(tmp_path):
    folder = saved_t5(tmp_path / "t5")
    replace_tensors(folder, {name: x for name, x in tensors_of(folder).items() if not name.startswith("decoder.")})
    refused(folder, "it has no decoder, only an encoder; take the whole network")


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_network_saved_without_its_own_head_is_refused(tmp_path, kind):
    folder = saved_t5(tmp_path / "a", "v1.1") if kind == "t5" else saved_decoder(tmp_path / "a", kind)
    replace_tensors(folder, {name: x for name, x in tensors_of(folder).items() if name != "lm_head.weight"})
    change_config(folder, architectures=["T5Model" if kind == "t5" else "LlamaModel"])
    saver = "AutoModelForSeq2SeqLM" if kind == "t5" else "AutoModelForCausalLM"
    refused(
        folder, f"lm_head.weight is missing.* saved by {'T5' if kind == 't5' else 'Llama'}Model without.*by {saver}$"
    )
    # with a tied head nothing is missing
    tied = saved_t5(tmp_path / "b") if kind == "t5" else saved_decoder(tmp_path / "b", "llama, tied")
    assert open_checkpoint(change_config(tied, architectures=["T5Model" if kind == "t5" else "LlamaModel"])).parameters


def test_a_quantised_checkpoint_is_named(tmp_path):
    folder = saved_decoder(tmp_path / "llama", "llama")
    tensors = tensors_of(folder)
    name = "model.layers.0.mlp.up_proj"
    packed = {other: x for other, x in tensors.items() if other != f"{name}.weight"}
    replace_tensors(folder, packed | {f"{name}.qweight": np.zeros((2, 2), np.int32)})
    refused(folder, f"{name}.qweight is of quantised weights.*take the checkpoint that it was made from")
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, r"the weights are quantised \(gptq, 4 bits\)")


@pytest.mark.parametrize(
    ("dtype", "bits", "message"),
    [
        ("F4", 4, "packed 4-bit"),
        ("F4", 8, "packed 4-bit"),
        ("F8_E8M0", 8, "8-bit scale"),
        ("F8_E4M3", 8, "8-bit float"),
        ("I8", 8, "an integer"),
    ],
)
def test_dtypes_of_quantised_weights_are_named(tmp_path, dtype, bits, message):
    folder = saved_t5(tmp_path / "t5")
    count = 20 * 16
    header = {"shared.weight": {"dtype": dtype, "shape": [20, 16], "data_offsets": [0, count * bits // 8]}}
    raw_file(folder / "model.safetensors", header, b"\0" * (count * bits // 8))
    refused(folder, f"shared.weight has dtype {dtype}; .* this is .*{message}")


@pytest.mark.parametrize("head", ["bfloat16", "float32"])
def test_a_copy_of_the_embedding_in_another_dtype_is_a_copy(tmp_path, head):
    import ml_dtypes

    folder = saved_decoder(tmp_path / "llama", "llama, tied")
    tensors = tensors_of(folder)
    name = "model.embed_tokens.weight"
    rounded = tensors[name].astype(ml_dtypes.bfloat16)
    if head == "bfloat16":
        tensors["lm_head.weight"] = rounded
    else:
        tensors |= {"lm_head.weight": rounded.astype(np.float32), name: rounded}
    replace_tensors(folder, tensors)
    assert open_checkpoint(folder).extra == ("lm_head.weight",)
    tensors["lm_head.weight"] = np.asarray(2 * tensors["lm_head.weight"])
    replace_tensors(folder, tensors)
    with pytest.raises(fc.InputError, match=r"lm_head\.weight should be a copy"):
        open_checkpoint(folder)


# Advice, tried with transformers


@pytest.fixture(scope="module")
def hf():
    pytest.importorskip("torch", reason="needs the extra parity")
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    transformers.logging.set_verbosity_error()
    return transformers


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_advice_on_a_pickle_gives_the_same_network(tmp_path, hf, kind):
    import torch

    folder = saved_t5(tmp_path / "a", "v1.1") if kind == "t5" else saved_decoder(tmp_path / "a", kind)
    expected, tensors = fc.load_pretrained(folder), tensors_of(folder)
    torch.save({name: torch.tensor(x) for name, x in tensors.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(fc.InputError, match=r"is a pickle.* by (\w+)\.from_pretrained") as caught:
        open_checkpoint(folder)
    saver = str(caught.value).rpartition(" by ")[2].partition(".")[0]
    getattr(hf, saver).from_pretrained(folder).save_pretrained(tmp_path / "new")
    found = fc.load_pretrained(tmp_path / "new")
    assert found[1] == expected[1]
    assert_same(by_name(found[0]), by_name(expected[0]))
    # what drops the head is not read as if it had one
    hf.AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "headless")
    with pytest.raises(fc.InputError, match=f"without its head; save it again from the whole network.* by {saver}"):
        open_checkpoint(tmp_path / "headless")


def test_the_advice_on_a_wrapped_module_gives_the_same_network(tmp_path, hf):
    import torch

    folder = saved_decoder(tmp_path / "a", "gpt2")
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    for number, (wrapped, own) in enumerate(
        ((torch.compile(model, backend="eager"), "_orig_mod"), (torch.nn.DataParallel(model), "module"))
    ):
        tensors = {name: x.numpy() for name, x in wrapped.state_dict().items() if "lm_head" not in name}
        replace_tensors(folder, tensors)
        with pytest.raises(fc.InputError, match=f"; save model.{own}$"):
            open_checkpoint(folder)
        getattr(wrapped, own).save_pretrained(tmp_path / f"new {number}")
        assert open_checkpoint(tmp_path / f"new {number}").parameters


def test_a_folder_that_transformers_saved_twice_is_read_as_transformers_reads_it(tmp_path, hf):
    import torch

    model = hf.AutoModelForCausalLM.from_pretrained(saved_decoder(tmp_path / "a", "gpt2")).eval()
    model.save_pretrained(tmp_path / "b", max_shard_size="2KB")
    with torch.no_grad():
        model.transformer.wte.weight.mul_(-2)
    model.save_pretrained(tmp_path / "b")
    ids = np.arange(6)[None]
    with torch.no_grad():
        expected = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits_of(open_checkpoint(tmp_path / "b"), {"ids": ids}), expected, atol=1e-5)
