"""Files fused and compared: calibrated norms, deviations, tied embeddings, differences, descriptions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fusion_core as fc
from fusion_core import checkpoints as files
from fusion_core.checkpoints import batches, comparison
from fusion_core.text import train_tokenizer
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
from tests.strategies.networks import logits

TEXTS = ["the cat sat on the mat, and the dog ran after the ball in the park " * 20]

# calibrated norms


@pytest.mark.parametrize("kind", ["v1.0", "llama", "gpt2"])
def test_calibrated_norms_are_those_of_fuse_in_memory(tmp_path, kind):
    tokenizer = train_tokenizer(TEXTS, 280)
    size = {"vocab_size": tokenizer.vocab_size}
    if kind == "v1.0":
        a, b = saved_t5(tmp_path / "a", kind, **size), saved_t5(tmp_path / "b", kind, 1, **NARROW | size)
    else:
        a, b = (saved_decoder(tmp_path / "ab"[i], kind, i, i, **size) for i in range(2))
    tokenizer.save(b)
    recipe = files.fusion_recipe([a, b], norm="calibrated", calibration=TEXTS, seed=2)
    files.write_recipe(recipe, tmp_path / "c")
    batch = comparison.text_batch(recipe.sources, TEXTS, 16, 2)
    assert recipe.calibrated_on == batch["targets"].size > 50
    wanted = in_memory([a, b], norm="calibrated", calibration=batch)[0]
    plain, found = in_memory([a, b])[0], tensors_of(tmp_path / "c")
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, wanted[name], rtol=1e-5, err_msg=name)
        assert (tensor != plain[name]).any() == norm_scale(name), name
    assert f"calibrated (plain, with one factor per source and norm fitted to {recipe.calibrated_on} tokens" in (
        tmp_path / "c" / "README.md"
    ).read_text(encoding="utf-8")
    # what no compiled pass can hold is computed one tensor at a time
    lazy, compiled = (comparison.moments_of(recipe.sources[0], batch, small=n) for n in (0, 10**9))
    assert lazy.keys() == compiled.keys()
    for path in lazy:
        np.testing.assert_allclose(lazy[path].variance, compiled[path].variance, rtol=1e-4)


def norm_scale(name):
    *_, owner, part = name.split(".")
    return part == "weight" and ("norm" in owner or owner.startswith("ln_"))


# the deviation from the mean


def test_the_deviation_is_that_of_the_logits_in_memory(tmp_path):
    a, b = saved_t5(tmp_path / "a"), saved_t5(tmp_path / "b", seed=1)
    recipe = files.fusion_recipe([a, b], [0.25, 0.75])
    measured = files.write_recipe(recipe, tmp_path / "c")
    opened = [files.open_checkpoint(folder) for folder in (a, b, tmp_path / "c")]
    batch = batches.probe(opened[0].config, 0)
    ids = jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["decoder_ids"])
    left, right, whole = (logits(*fc.load_pretrained(c.folder), *ids) for c in opened)
    difference = np.abs(whole - (0.25 * left + 0.75 * right))
    assert measured.largest == pytest.approx(float(difference.max()), rel=1e-4)
    assert measured.mean == pytest.approx(float(difference.mean()), rel=1e-4)
    assert measured.largest > 0.01
    assert measured.tokens == batch["targets"].size
    card = (tmp_path / "c" / "README.md").read_text()
    assert f"at most {measured.largest:.3g}" in card
    assert str(tmp_path) not in card
    # a network with too many parameters to be compiled whole is computed one tensor at a time
    np.testing.assert_allclose(comparison.logits_of(opened[0], batch, small=0), left, rtol=0, atol=1e-5)


# tied embeddings, in every way they are saved


def spelled(folder, *, values, copies=(), shared=True):
    """Rewrites a checkpoint: ``values`` into config.json (None removes), copies of the embedding added."""
    config = {k: v for k, v in (json.loads((folder / "config.json").read_text()) | values).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(folder)
    tensors |= dict.fromkeys(copies, tensors["shared.weight"])
    if not shared:
        del tensors["shared.weight"]
    replace_tensors(folder, tensors)
    return folder


EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
SPELLINGS = {
    "v1.0": [
        {"values": {"tie_word_embeddings": None, "scale_decoder_outputs": None}},
        {"values": {"scale_decoder_outputs": None}, "copies": EMBEDDINGS},
        {"values": {}, "copies": (*EMBEDDINGS, "lm_head.weight")},
        {"values": {}, "copies": EMBEDDINGS, "shared": False},
    ],
    "v1.1": [
        {"values": {"scale_decoder_outputs": None}},
        {"values": {"tie_word_embeddings": True, "scale_decoder_outputs": False}, "copies": EMBEDDINGS},
        {"values": {}, "copies": EMBEDDINGS[1:], "shared": False},
    ],
}


@pytest.mark.parametrize(("style", "number"), [(style, i) for style in SPELLINGS for i in range(len(SPELLINGS[style]))])
def test_every_way_of_saving_tied_embeddings_fuses_alike(tmp_path, style, number):
    a, b = saved_t5(tmp_path / "a", style), saved_t5(tmp_path / "b", style, 1)
    wanted, config = in_memory([a, b])
    spelled(a, **SPELLINGS[style][number])
    assert_same(fused([a, b], tmp_path / "c"), wanted)
    assert files.open_checkpoint(tmp_path / "c").config == config


def test_an_untied_head_that_is_saved_once_with_the_embedding_is_fused_apart(tmp_path):
    a = saved_t5(tmp_path / "a", "v1.1")
    tensors = tensors_of(a)
    del tensors["lm_head.weight"]
    replace_tensors(a, tensors)
    found = fused([a, a], tmp_path / "c")
    np.testing.assert_array_equal(found["lm_head.weight"], found["shared.weight"] / 2)


def test_a_copy_of_the_embedding_that_differs_from_it_is_refused(tmp_path):
    a = saved_t5(tmp_path / "a")
    tensors = tensors_of(a)
    tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
    replace_tensors(a, tensors)
    with pytest.raises(
        fc.InputError, match=r"decoder\.embed_tokens\.weight should be a copy of shared\.weight, but differs"
    ):
        files.open_checkpoint(a)


# diff and info


def test_a_network_does_not_differ_from_itself_and_fused_from_its_source_by_rounding(tmp_path):
    a = saved_t5(tmp_path / "a")
    fused([a, a], tmp_path / "c")
    same = files.compare(files.open_checkpoint(a), files.open_checkpoint(a))
    assert (same.logits_largest, same.log_probabilities_largest, same.agreement) == (0.0, 0.0, 1.0)
    assert same.equal == len(tensors_of(a))
    grown = files.compare(files.open_checkpoint(a), files.open_checkpoint(tmp_path / "c"))
    assert 0 <= grown.logits_largest < 1e-5
    assert grown.losses[0] == pytest.approx(grown.losses[1], abs=1e-5)
    assert grown.reshaped["shared.weight"] == ((20, 16), (20, 32))
    assert not grown.equal


def test_a_difference_is_measured_in_logits_nats_and_tensors(tmp_path):
    a = saved_t5(tmp_path / "a", "v1.1")
    tensors = tensors_of(a)
    b = saved_t5(tmp_path / "b", "v1.1")
    tensors["lm_head.weight"] = 2 * tensors["lm_head.weight"]
    replace_tensors(b, tensors)
    first, second = files.open_checkpoint(a), files.open_checkpoint(b)
    found = files.compare(first, second)
    batch = batches.probe(first.config, 0)
    ids = jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["decoder_ids"])
    ours = np.asarray(logits(*fc.load_pretrained(a), *ids), np.float64)
    assert found.logits_largest == pytest.approx(np.abs(ours).max(), rel=1e-4)
    assert found.logits_mean == pytest.approx(np.abs(ours).mean(), rel=1e-4)
    assert found.agreement == 1.0
    logs = np.asarray([jax.nn.log_softmax(jnp.asarray(scale * ours, jnp.float32)) for scale in (1, 2)])
    assert found.log_probabilities_largest == pytest.approx(np.abs(logs[0] - logs[1]).max(), rel=1e-3)
    picked = np.take_along_axis(logs, batch["targets"][None, ..., None].astype(int), axis=-1)
    assert found.losses == pytest.approx([-picked[0].mean(), -picked[1].mean()], rel=1e-4)
    assert list(found.different) == ["lm_head.weight"]
    assert found.different["lm_head.weight"] == pytest.approx(np.abs(tensors["lm_head.weight"] / 2).max())


def test_a_folder_is_described_by_its_headers(tmp_path):
    a = in_shards(saved_t5(tmp_path / "a", "v1.1", dtype="bfloat16"), 2)
    facts = files.describe(a)
    tensors = tensors_of(a)
    assert facts["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert facts["bytes"] == 2 * facts["parameters"]
    assert facts["dtypes"] == {"BF16": len(tensors)}
    assert {name: of["bytes"] for name, of in facts["files"].items()} == {
        path.name: path.stat().st_size for path in a.glob("*.safetensors")
    }
    assert (facts["tied"], facts["supported"], facts["tokenizer"]["files"]) == (False, True, [])
    (a / "config.json").write_text('{"model_type": "mamba"}')
    unknown = files.describe(a)
    assert (unknown["supported"], unknown["parameters"]) == (False, facts["parameters"])


def test_the_recipe_counts_what_is_written(tmp_path):
    a, b = saved_t5(tmp_path / "a"), saved_t5(tmp_path / "b", seed=1, **NARROW)
    recipe = files.fusion_recipe([a, b], dtype="bf16")
    found = fused([a, b], tmp_path / "c", dtype="bf16")
    assert recipe.parameters == sum(tensor.size for tensor in found.values())
    assert recipe.nbytes == sum(tensor.nbytes for tensor in found.values())
    assert {t.name: t.shape for t in recipe.tensors} == {name: tensor.shape for name, tensor in found.items()}
