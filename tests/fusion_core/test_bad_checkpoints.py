"""Damaged, lying and unfit checkpoints: one clear error, and no output folder."""

import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest

import fusion_core as fc
from fusion_core import checkpoints as files
from fusion_core.checkpoints import fuse as fuse_module
from fusion_core.checkpoints.ranges import read_header
from tests.strategies.checkpoints import in_shards, raw_file, replace_tensors, saved_t5, tensors_of, write_index


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return saved_t5(tmp_path_factory.mktemp("pristine") / "a")


@pytest.fixture
def good(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "good")


@pytest.fixture
def bad(pristine, tmp_path):
    """A checkpoint for a test to damage."""
    return shutil.copytree(pristine, tmp_path / "bad")


def refused(good, bad, message):
    """Fusing says ``message`` in one line, and leaves neither the output nor anything temporary."""
    before = sorted(path.name for path in good.parent.iterdir())
    with pytest.raises(fc.InputError, match=message) as caught:
        files.write_recipe(files.fusion_recipe([good, bad]), good.parent / "out", probe=False)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in good.parent.iterdir()) == before


# headers

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
LIES = {
    "empty": (None, b"", "it has 0 bytes, fewer than the 8"),
    "absurd length": ({"x": ENTRY}, b"\0" * 16, "its header should have 1,000,000,000,000 bytes"),
    "no JSON": (b"{'x'", b"", "its header is no JSON"),
    "no UTF-8": (b"\xff\xfe", b"", "its header is no JSON"),
    "no object": (b"[1, 2]", b"", "its header is no JSON object"),
    "a name twice": (b'{"x": 1, "x": 2}', b"", "a name stands twice"),
    "no offsets": ({"x": {"dtype": "F32", "shape": [4]}}, b"\0" * 16, "x lacks dtype, shape or data_offsets"),
    "unknown dtype": ({"x": ENTRY | {"dtype": "F31"}}, b"\0" * 16, "x has the unknown dtype 'F31'"),
    "negative shape": ({"x": ENTRY | {"shape": [-2, -2]}}, b"\0" * 16, r"x has the shape \[-2, -2\]"),
    "shape of bool": ({"x": ENTRY | {"shape": [True, 4]}}, b"\0" * 16, r"x has the shape \[True, 4\]"),
    "three offsets": ({"x": ENTRY | {"data_offsets": [0, 8, 16]}}, b"\0" * 16, "x has the offsets"),
    "beyond the file": ({"x": ENTRY}, b"\0" * 12, "x should lie at bytes 0 to 16, but 12 bytes are there"),
    "backwards": ({"x": ENTRY | {"data_offsets": [16, 0]}}, b"\0" * 16, "x should lie at bytes 16 to 0"),
    "wrong size": ({"x": ENTRY | {"shape": [2, 3]}}, b"\0" * 16, r"x has 16 bytes, but F32 of shape \(2, 3\) takes 24"),
    "overlap": (
        {"x": ENTRY, "y": ENTRY | {"data_offsets": [8, 24]}}, b"\0" * 24, "y overlaps with x"
    ),
    "gap": ({"x": ENTRY | {"data_offsets": [8, 24]}}, b"\0" * 24, "x leaves a gap after the header"),
    "bytes left": ({"x": ENTRY}, b"\0" * 20, "4 bytes at its end belong to no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_a_header_that_lies_is_refused(tmp_path, case):
    header, data, message = LIES[case]
    path = tmp_path / "model.safetensors"
    if header is None:
        path.write_bytes(data)
    else:
        raw_file(path, header, data, 10**12 if case == "absurd length" else None)
    with pytest.raises(fc.InputError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "truncated or damaged, copy it again" in str(caught.value)


def test_a_header_that_tells_the_truth_is_read(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "y": ENTRY | {"data_offsets": [16, 32]}, "x": ENTRY}
    entries = read_header(raw_file(tmp_path / "model.safetensors", header, b"\0" * 32))
    assert {name: entry.shape for name, entry in entries.items()} == {"x": (2, 2), "y": (2, 2)}
    assert entries["y"].start - entries["x"].start == 16


# folders


@pytest.mark.parametrize("kept", [4, 500, -1])
def test_a_truncated_shard_is_refused_before_anything_is_written(good, bad, kept):
    shard = in_shards(bad) / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    refused(good, bad, r"model-00002-of-00003\.safetensors cannot be read .*truncated or damaged")


def test_an_index_that_names_a_missing_file_or_tensor_is_refused(good, bad):
    in_shards(bad)
    index = bad / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    write_index(bad, weight_map | {"shared.weight": "model-00004-of-00003.safetensors"})
    refused(good, bad, r"index\.json names model-00004-of-00003\.safetensors, which is missing")
    other = next(file for file in sorted(set(weight_map.values())) if file != weight_map["shared.weight"])
    write_index(bad, weight_map | {"shared.weight": other})
    refused(good, bad, rf"says that shared\.weight is in {other}, but it is not")
    write_index(bad, weight_map | {"shared.weight": "../good/model.safetensors"})
    refused(good, bad, "which is not a file in its folder")
    write_index(bad, {name: file for name, file in weight_map.items() if name != "shared.weight"})
    refused(good, bad, r"the tensor shared\.weight is missing")
    index.write_text("{}")
    refused(good, bad, "has no weight_map of file names")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_with_how_to_convert_them(good, bad, name):
    (bad / "model.safetensors").rename(bad / name)
    (bad / name).write_bytes(b"cos\nmkdir\n(S'" + str(good.parent / "pwned").encode() + b"'\ntR.")
    refused(
        good, bad, rf"{name} is a pickle, which is never loaded: save it again as safetensors, with transformers by"
    )
    refused(good, bad / name, "is a pickle, which is never loaded")
    write_index(bad, {"shared.weight": name})
    refused(good, bad, rf"{name} is a pickle")


def test_a_tensor_of_another_shape_or_dtype_is_refused(good, bad):
    tensors = tensors_of(bad)
    replace_tensors(bad, tensors | {"shared.weight": np.zeros((19, 16), np.float32)})
    refused(good, bad, r"shared\.weight has shape \(19, 16\), but config\.json says \(20, 16\)")
    replace_tensors(bad, tensors | {"shared.weight": np.zeros((20, 16), np.int8)})
    refused(good, bad, r"shared\.weight has dtype I8; weights of F64, F32, F16, BF16 can be read")
    replace_tensors(bad, tensors | {"colour": np.zeros(3, np.float32)})
    refused(good, bad, r"unknown tensors \['colour'\]")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["shared.weight", "encoder.block.0.layer.1.DenseReluDense.wo.weight"])
def test_entries_that_are_not_finite_are_refused_and_nothing_is_left(good, bad, value, name):
    tensors = tensors_of(bad)
    tensors[name][-1, -1] = value
    replace_tensors(bad, tensors)
    refused(good, bad, rf"{name} has entries that are not finite; the checkpoint is of a diverged run")


def test_unequal_depth_is_refused_with_what_to_do(good, tmp_path):
    deep = saved_t5(tmp_path / "deep", num_layers=2)
    refused(
        good,
        deep,
        r"cannot fuse depth 1 with depth 2 \(num_layers of networks 1 and 2\).*identity_layers.*num_layers.: 2",
    )


# tokenizers


def tokenizer(folder, **changes):
    content = {"version": "1.0", "truncation": None, "model": {"type": "Unigram", "vocab": [["a", -1.5], ["b", -2.5]]}}
    (folder / "tokenizer.json").write_text(json.dumps(content | changes))


def test_different_tokenizers_are_refused_by_what_they_say(good, bad):
    tokenizer(good)
    tokenizer(bad, model={"type": "Unigram", "vocab": [["a", -1.5], ["c", -2.5]]})
    refused(good, bad, r"differ \(tokenizer\.json, tokenizer\.json: 'b' is 1 and not a piece\)")
    tokenizer(bad, model={"type": "Unigram", "vocab": [["a", -1.5]]})
    refused(good, bad, r"'b' is 1 and not a piece")
    (bad / "tokenizer.json").write_text("{")
    refused(good, bad, r"tokenizer\.json cannot be read")


def test_tokenizers_that_say_the_same_in_other_words_are_equal(good, bad):
    tokenizer(good)
    tokenizer(bad, truncation={"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"})
    (bad / "tokenizer.json").write_text(json.dumps(json.loads((bad / "tokenizer.json").read_text()), indent=3))
    files.fusion_recipe([good, bad])


# the output


def test_an_output_folder_that_is_not_empty_is_refused_and_kept(good, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        files.write_recipe(files.fusion_recipe([good, good]), out, probe=False)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_disk_without_room_is_refused_before_anything_is_written(good, bad, monkeypatch):
    usage = shutil.disk_usage(good)
    monkeypatch.setattr(fuse_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(good, bad, r"needs [\d,]+ bytes, but the disk has 1,000 free; make room or choose another")


def test_a_disk_that_fills_up_half_way_leaves_nothing(good, bad, monkeypatch):
    write, calls = os.pwrite, []

    def full(handle, data, position):
        calls.append(len(data))
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    refused(good, bad, r"could not be written \(No space left on device.*Nothing was left behind")
    assert len(calls) > 20


def test_a_limit_on_the_size_of_files_leaves_nothing(good, bad):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the kernel cuts the write that crosses it
    try:
        refused(good, bad, r"could not be written \(File too large.*Nothing was left behind")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_may_not_be_written_is_refused(good, bad, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere")

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    refused(good, bad, r"could not be written \(Permission denied: somewhere\)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "the dtype is 'int8'; it can be bf16, f16, f32"),
        ({"noise": -1.0}, "the noise is -1.0; it must be finite and not negative"),
        ({"noise": float("nan")}, "the noise is nan"),
        ({"seed": -1}, "the seed is -1; it must not be negative"),
        ({"largest_shard": 0}, "the largest shard is 0 bytes"),
        ({"weights": [1.0]}, "1 weights were given for 2 networks"),
    ],
)
def test_options_that_make_no_sense_are_refused(good, options, message):
    with pytest.raises(fc.InputError, match=message):
        files.fusion_recipe([good, good], **options)
