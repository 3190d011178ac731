"""Fusion of files: the same as in memory, bit for bit, whatever the shards, dtypes and pieces."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import fusion_core as fc
from fusion_core import checkpoints as files
from fusion_core.checkpoints import ranges, stream
from fusion_core.growth import Rule
from fusion_core.growth.maps import Block
from fusion_core.growth.units import Selection, beside
from fusion_core.models.units import Space, by_name
from tests.strategies.checkpoints import (
    NARROW,
    assert_same,
    fused,
    in_memory,
    in_shards,
    replace_tensors,
    saved_decoder,
    saved_t5,
    tensors_of,
)
from tests.strategies.decoders import KINDS as DECODERS
from tests.strategies.networks import STYLES


@pytest.mark.parametrize("style", sorted(STYLES))
def test_three_files_of_unequal_widths_fuse_as_in_memory_bit_for_bit(tmp_path, style):
    a, b = saved_t5(tmp_path / "a", style), saved_t5(tmp_path / "b", style, 1, **NARROW)
    weights = [0.3, 0.5, 0.2]
    wanted, config = in_memory([a, b, a], weights)
    found = fused([a, b, a], tmp_path / "c", weights=weights)
    assert_same(found, wanted)
    read, read_config = fc.load_pretrained(tmp_path / "c")
    assert read_config == config
    assert_same({name: np.asarray(leaf) for name, leaf in by_name(read).items()}, wanted)


@pytest.mark.parametrize("kind", DECODERS)
def test_files_of_decoders_fuse_as_in_memory_bit_for_bit(tmp_path, kind):
    a, b = saved_decoder(tmp_path / "a", kind), in_shards(saved_decoder(tmp_path / "b", kind, 1, 1))
    wanted, config = in_memory([a, b], [0.3, 0.7])
    assert_same(fused([a, b], tmp_path / "c", weights=[0.3, 0.7]), wanted)
    assert fc.load_pretrained(tmp_path / "c")[1] == config


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_saved_in_old_ways_fuse_alike(tmp_path, kind):
    """The bare model's names, buffers of old files, a tied head beside the embedding."""
    a = saved_decoder(tmp_path / "a", kind)
    wanted = fused([a, a], tmp_path / "b")
    tensors = {
        name.split(".", 1)[1] if not name.startswith("lm_head") else name: x for name, x in tensors_of(a).items()
    }
    gpt2 = kind.startswith("gpt2")
    embedding = "wte.weight" if gpt2 else "embed_tokens.weight"
    buffer = "h.0.attn.bias" if gpt2 else "layers.0.self_attn.rotary_emb.inv_freq"
    tensors.setdefault("lm_head.weight", tensors[embedding])
    replace_tensors(a, tensors | {buffer: np.ones(3, np.uint8)})
    assert_same(fused([a, a], tmp_path / "c"), wanted)
    replace_tensors(a, tensors | {"odd.weight": np.ones(3, np.float32)})
    with pytest.raises(fc.InputError, match=r"unknown tensors \['odd\.weight'\]"):
        files.open_checkpoint(a)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_blocks_of_scale_one_keep_their_bits(tmp_path, dtype):
    a, b = (saved_t5(tmp_path / name, "v1.1", seed, dtype) for seed, name in enumerate("ab"))
    found, left, right = fused([a, b], tmp_path / "c"), tensors_of(a), tensors_of(b)
    name = "decoder.block.0.layer.2.DenseReluDense.wo.weight"
    rows, columns = left[name].shape
    assert found[name].dtype == left[name].dtype
    assert found[name][:rows, :columns].tobytes() == left[name].tobytes()
    assert found[name][rows:, columns:].tobytes() == right[name].tobytes()
    assert not found[name][rows:, :columns].any()
    assert not found[name][:rows, columns:].any()
    assert (
        found["shared.weight"].tobytes() == np.concatenate([left["shared.weight"], right["shared.weight"]], 1).tobytes()
    )
    half = (0.5 * left["lm_head.weight"].astype(np.float32)).astype(left["lm_head.weight"].dtype)
    np.testing.assert_array_equal(found["lm_head.weight"][:, :16], half)


def test_sources_in_shards_and_in_one_file_fuse_alike(tmp_path):
    a, b = saved_t5(tmp_path / "a"), saved_t5(tmp_path / "b", seed=1)
    wanted = fused([a, b], tmp_path / "whole")
    assert_same(fused([in_shards(a), in_shards(b, 2)], tmp_path / "c"), wanted)


def test_the_result_comes_in_shards_of_at_most_the_size_asked_for(tmp_path):
    a, b = saved_t5(tmp_path / "a"), saved_t5(tmp_path / "b", seed=1)
    wanted = fused([a, b], tmp_path / "whole")
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors")] == ["model.safetensors"]
    limit = max(tensor.nbytes for tensor in wanted.values())
    assert_same(fused([a, b], tmp_path / "c", largest_shard=limit), wanted)
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in wanted.values())
    shards = sorted({*index["weight_map"].values()})
    assert len(shards) > 3
    assert shards == [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file in shards:
        with safetensors.safe_open(tmp_path / "c" / file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            inside = set(opened.keys())
        assert inside == {name for name, where in index["weight_map"].items() if where == file}
        assert sum(wanted[name].nbytes for name in inside) <= limit
    read, _ = fc.load_pretrained(tmp_path / "c")
    assert_same({name: np.asarray(leaf) for name, leaf in by_name(read).items()}, wanted)


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", ml_dtypes.bfloat16), ("f16", np.float16), ("f32", np.float32)])
def test_a_dtype_that_is_asked_for_is_rounded_to_once(tmp_path, dtype, kind):
    a, b = saved_t5(tmp_path / "a", "v1.1"), saved_t5(tmp_path / "b", "v1.1", 1)
    wanted = {name: tensor.astype(kind) for name, tensor in in_memory([a, b])[0].items()}
    assert_same(fused([a, b], tmp_path / "c", dtype=dtype), wanted)
    named = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[dtype]
    assert json.loads((tmp_path / "c" / "config.json").read_text())["dtype"] == named


def test_unequal_dtypes_meet_where_both_fit(tmp_path):
    a, b, c = (saved_t5(tmp_path / str(kind), dtype=kind) for kind in ("bfloat16", "float16", None))
    assert {tensor.dtype for tensor in fused([a, b], tmp_path / "ab").values()} == {np.dtype(np.float32)}
    wide = saved_t5(tmp_path / "wide")
    replace_tensors(wide, {name: tensor.astype(np.float32) for name, tensor in tensors_of(a).items()})
    # widened first, then scaled: a scale in bfloat16 would lose bits that float32 has
    assert_same(fused([a, c], tmp_path / "ac"), in_memory([wide, c])[0])


def test_a_number_that_the_dtype_cannot_hold_is_refused_and_nothing_is_left(tmp_path):
    a = saved_t5(tmp_path / "a")
    tensors = tensors_of(a)
    tensors["shared.weight"][3, 4] = 1e6
    replace_tensors(a, tensors)
    with pytest.raises(fc.InputError, match=r"shared\.weight has an entry of 1e\+06, which F16 cannot hold"):
        fused([a, a], tmp_path / "c", dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# what the rules can say, beyond T5


def rule(axes, scales, shapes, packed=None):
    """Blocks side by side along ``axes``; ``packed``: (axis, number of arrays in it)."""
    grown, selections = list(shapes[0]), [None] * len(shapes[0])
    for axis in axes:
        count = packed[1] if packed and packed[0] == axis else 1
        sizes = [Space("units", shape[axis] // count, "").makes(*[1] * count) for shape in shapes]
        selections[axis], grown[axis] = beside(tuple(sizes)), sum(shape[axis] for shape in shapes)
    return Rule(tuple(Block(i, "x", scale) for i, scale in enumerate(scales)), tuple(selections), tuple(grown))


def copied(units):
    """Rows and columns copied as ``units`` says, those that are read divided by the number of copies."""
    index = np.asarray(units)
    counts = np.bincount(index)[index]
    axes = (Selection(index, copies=counts), Selection(index, copies=counts, reads=True))
    return Rule((Block(0, "x"),), axes, (len(index), len(index)))


RULES = {
    "block-diagonal": ((0, 1), (1.0, 1.0, 0.5), [(4, 3), (2, 5), (3, 1)]),
    "rows": ((0,), (1.0, 1.0), [(4, 3), (2, 3)]),
    "columns, scaled": ((1,), (0.25, 0.75), [(4, 3), (4, 2)]),
    "vector": ((0,), (1.0, 2.0), [(5,), (3,)]),
    "sum": ((), (0.25, 0.5, 0.25), [(7,), (7,), (7,)]),
    "sum of matrices": ((), (0.25, 0.75), [(7, 2), (7, 2)]),
    "scalar": ((), (0.25, 0.75), [(), ()]),
    "packed columns": ((0, 1), (1.0, 1.0), [(2, 6), (3, 9)], (1, 3)),
    "packed rows": ((0, 1), (1.0, 0.5), [(6, 2), (9, 3)], (0, 3)),
    "three axes": ((0, 2), (1.0, 1.0), [(2, 3, 2), (1, 3, 4)]),
}
RULES = {name: (rule(axes, scales, shapes, *packed), shapes) for name, (axes, scales, shapes, *packed) in RULES.items()}
RULES["copies"] = (copied([0, 1, 2, 0, 1, 2]), [(3, 3)])
RULES["copies of some"] = (copied([0, 1, 2, 2, 0, 2]), [(3, 3)])


def entries_of(folder, blocks):
    found = []
    for i, block in enumerate(blocks):
        safetensors.numpy.save_file({"x": block}, folder / f"{i}.safetensors")
        found.append(ranges.read_header(folder / f"{i}.safetensors")["x"])
    return tuple(found)


@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("chunk", [1, 60, 1 << 20])
def test_rows_are_those_of_the_rule_in_memory_whatever_the_number_at_a_time(tmp_path, case, chunk):
    rule, shapes = RULES[case]
    rng = np.random.default_rng(0)
    blocks = [np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes]
    tensor = stream.GrownTensor("x", rule, entries_of(tmp_path, blocks), "F32")
    with ranges.Reader() as reader:
        parts = [part.copy() for part in tensor.rows(reader, chunk)]
    wanted = np.asarray(rule.embed([jnp.asarray(block) for block in blocks]))
    np.testing.assert_array_equal(np.concatenate(parts).reshape(tensor.shape), wanted)
    assert tensor.shape == wanted.shape
    if chunk == 1:
        assert all(len(part) == 1 for part in parts)


@pytest.mark.parametrize("code", sorted(ranges.FLOATS))
def test_an_entry_that_is_not_finite_is_seen_by_its_bits(code):
    dtype = ranges.FLOATS[code]
    largest = ml_dtypes.finfo(dtype).max
    good = np.array([0.0, -0.0, 1.5, -3.0, largest, -largest], dtype)
    assert ranges.all_finite(good)
    assert ranges.all_finite(good[:0])
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        for position in range(len(good)):
            changed = good.copy()
            changed[position] = bad
            assert not ranges.all_finite(changed)


# noise


@pytest.mark.parametrize("kind", ["v1.0", "v1.1", "llama", "gpt2", "gpt2, untied"])
@pytest.mark.parametrize("chunk", [100, 1 << 19])
def test_noise_is_that_of_fuse_in_memory_whatever_the_rows_at_a_time(tmp_path, kind, chunk, monkeypatch):
    a = saved_t5(tmp_path / "a", kind) if kind.startswith("v") else saved_decoder(tmp_path / "a", kind)
    wanted, _ = in_memory([a, a, a], off_diagonal="antisymmetric", noise=0.3, seed=1)
    monkeypatch.setattr(stream.GrownTensor.rows, "__defaults__", (chunk,))
    recipe = files.fusion_recipe([a, a, a], noise=0.3, seed=1)
    assert recipe.equal
    measured = files.write_recipe(recipe, tmp_path / "c", probe=chunk > 100)
    found, clean = tensors_of(tmp_path / "c"), in_memory([a, a, a])[0]
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, wanted[name], rtol=0, atol=2e-6, err_msg=name)
    noisy = {name for name in found if (found[name] != clean[name]).any()}
    assert noisy == {tensor.name for tensor in recipe.tensors if tensor.rule.axis(reads=True) is not None}
    assert len(noisy) >= 4
    if measured is not None:
        assert measured.largest < 2e-4 * measured.spread


@pytest.mark.parametrize("kind", ["v1.0", "llama", "gpt2"])
@pytest.mark.parametrize("operator", ["hypercloning", "deep_fusion"])
def test_noise_of_an_operator_is_that_of_grow_in_memory(tmp_path, kind, operator, monkeypatch):
    a = saved_t5(tmp_path / "a", kind) if kind.startswith("v") else saved_decoder(tmp_path / "a", kind)
    wanted, _ = fc.grow(*fc.load_pretrained(a), operator, factor=3, noise=0.3, seed=1)
    monkeypatch.setattr(stream.GrownTensor.rows, "__defaults__", (100,))
    recipe = files.growth_recipe(a, operator, factor=3, noise=0.3, seed=1)
    assert type(recipe.tensors[0]) is stream.GrownTensor  # none is made whole
    files.write_recipe(recipe, tmp_path / "b", probe=False)
    for name, leaf in by_name(wanted).items():
        np.testing.assert_allclose(tensors_of(tmp_path / "b")[name], leaf, rtol=0, atol=2e-6, err_msg=name)


def test_noise_depends_on_seed_and_name_alone(tmp_path):
    a = saved_t5(tmp_path / "a")
    once = fused([a, a], tmp_path / "b", noise=0.1, seed=3)
    assert_same(fused([a, a], tmp_path / "c", noise=0.1, seed=3, largest_shard=2000), once)
    other = fused([a, a], tmp_path / "d", noise=0.1, seed=4)
    q, k = (f"encoder.block.0.layer.0.SelfAttention.{name}.weight" for name in "qk")
    assert (other[q] != once[q]).any()
    off = once[q].shape[0] // 2, once[q].shape[1] // 2
    scaled = once[q][: off[0], off[1] :] / once[q][: off[0], off[1] :].std()
    assert np.abs(scaled - once[k][: off[0], off[1] :] / once[k][: off[0], off[1] :].std()).max() > 0.1


def test_a_copy_of_a_checkpoint_is_the_same_network_and_another_is_not(tmp_path):
    a, b, c = saved_t5(tmp_path / "a"), in_shards(saved_t5(tmp_path / "b")), saved_t5(tmp_path / "c", seed=1)
    assert files.fusion_recipe([a, b]).equal
    assert files.fusion_recipe([a, b]).exactness.startswith("exact")
    assert not files.fusion_recipe([a, c]).equal
    assert files.fusion_recipe([a, c]).exactness.startswith("not exact")
    with pytest.raises(fc.InputError, match="only where the sources are one network"):
        files.fusion_recipe([a, c], noise=0.1)


# growth by an operator


@pytest.mark.parametrize(
    ("kind", "operator", "sizes"),
    [
        ("v1.0", "hypercloning", {"factor": 2}),
        ("v1.1", "aki", {"factor": 2}),
        ("v1.0", "deep_fusion", {"factor": 3}),
        ("v1.1", "identity_layers", {"depth": {"num_layers": 4}}),
        ("llama, tied", "net2net_width", {"width": {"intermediate_size": 17, "num_key_value_heads": 2}, "seed": 1}),
        ("gpt2", "hypercloning", {"factor": 2}),
        ("qwen2", "stacking", {"factor": 2}),
    ],
)
def test_a_file_is_grown_as_in_memory_bit_for_bit(tmp_path, kind, operator, sizes):
    two = {"num_layers": 2, "num_decoder_layers": 2}
    a = saved_t5(tmp_path / "a", kind, **two) if kind.startswith("v") else saved_decoder(tmp_path / "a", kind)
    params, config = fc.grow(*fc.load_pretrained(a), operator, **sizes)
    recipe = files.growth_recipe(a, operator, **sizes)
    files.write_recipe(recipe, tmp_path / "b", probe=operator == "hypercloning")
    assert_same(tensors_of(tmp_path / "b"), {name: np.asarray(leaf) for name, leaf in by_name(params).items()})
    assert fc.load_pretrained(tmp_path / "b")[1] == config
    card = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert f"# a, grown by {operator}" in card
    assert f"the function is {'not ' if operator in ('aki', 'stacking') else ''}kept" in card


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("random_init", {}),
        ("random_block", {}),
        ("random_off_diagonal", {}),
        ("shrink_perturb", {}),
        ("net2net_width", {"noise": 0.1}),
    ],
)
def test_draws_are_made_tensor_by_tensor_as_in_memory_bit_for_bit(tmp_path, operator, options):
    a, b = saved_t5(tmp_path / "a"), tmp_path / "b"
    params, _ = fc.grow(*fc.load_pretrained(a), operator, factor=2, seed=3, **options)
    files.write_recipe(files.growth_recipe(a, operator, factor=2, seed=3, **options), b, probe=False)
    assert_same(tensors_of(b), {name: np.asarray(leaf) for name, leaf in by_name(params).items()})
    half = files.growth_recipe(a, operator, factor=2, seed=3, dtype="bf16", **options)
    assert set(half.dtypes) == {"BF16"}
