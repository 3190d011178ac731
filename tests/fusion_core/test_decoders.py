"""Llama and GPT-2: their files, what cannot be fused, and parity with Hugging Face's models in PyTorch."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import fusion_core as fc
from fusion_core.growth import fused_config
from fusion_core.models import decoder
from fusion_core.models.decoder import llama, model
from fusion_core.models.registry import architecture, config_from_json, parameter_shapes
from tests.strategies.decoders import KINDS, logits, random_params, small, tokens
from tests.strategies.networks import random_t5, shape_tree, tiny

TOLERANCE = 2e-5  # float32, logits of scale one


@pytest.fixture(scope="module")
def reference():
    """Reads a folder by transformers and gives its logits."""
    why = "the reference implementation is an extra: pip install 'deepfusion[parity]'"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
        torch = pytest.importorskip("torch", reason=why)
        transformers = pytest.importorskip("transformers", reason=why)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def read(folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()

        def run(ids):
            with torch.no_grad():
                return model(torch.tensor(ids).long()).logits.numpy()

        return model, run

    yield read
    torch.set_num_threads(threads)


def to_json(config):
    return architecture(config).files.write_config(config)


def ours(params, config, ids):
    return np.asarray(logits(params, config, ids))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_reference_reads_fuses_saves_and_reads_again_has_the_same_logits(kind, reference, tmp_path):
    """Load theirs, fuse with itself and with another, save, load in theirs."""
    config, other = small(kind), small(kind, 1)
    params, ids = random_params(config, 0), tokens(config)
    fc.save_pretrained(tmp_path / "ours", params, config)
    model, run = reference(tmp_path / "ours")
    theirs = run(ids)
    assert np.abs(theirs).mean() > 0.1
    np.testing.assert_allclose(ours(params, config, ids), theirs, rtol=0, atol=TOLERANCE)

    model.save_pretrained(tmp_path / "theirs")
    read, read_config = fc.load_pretrained(tmp_path / "theirs")
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, read, params)

    twice, twice_config = fc.fuse([(read, read_config)] * 2, off_diagonal="antisymmetric", noise=0.2)
    fc.save_pretrained(tmp_path / "twice", twice, twice_config)
    np.testing.assert_allclose(reference(tmp_path / "twice")[1](ids), theirs, rtol=0, atol=TOLERANCE)

    fused, fused_cfg = fc.fuse([(read, read_config), (random_params(other, 1), other)])
    fc.save_pretrained(tmp_path / "fused", fused, fused_cfg)
    np.testing.assert_allclose(
        reference(tmp_path / "fused")[1](ids), ours(fused, fused_cfg, ids), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_back_bit_for_bit(kind, tmp_path):
    config = small(kind, eos_token_id=(2, 3))  # newer files have several end tokens
    params = random_params(config, 0, "bfloat16")
    fc.save_pretrained(tmp_path / "a", params, config)
    read, read_config = fc.load_pretrained(tmp_path / "a")
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert all(leaf.dtype == "bfloat16" for leaf in jax.tree.leaves(read))


def rewrite(folder, change_tensors=lambda t: t, **values):
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(change_tensors(safetensors.numpy.load_file(file)), file)
    found = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


@pytest.fixture(params=["llama, tied", "gpt2"])
def tied(request, tmp_path):
    """(a saved folder, params, config, name of the embedding)."""
    config = small(request.param)
    params = random_params(config, 0)
    fc.save_pretrained(tmp_path / "a", params, config)
    name = "model.embed_tokens.weight" if "llama" in request.param else "transformer.wte.weight"
    return tmp_path / "a", params, config, name


@pytest.mark.parametrize("instead", [False, True], ids=["beside", "instead of"])
def test_a_tied_head_may_be_saved_beside_the_embedding_or_instead_of_it(tied, instead):
    folder, params, config, name = tied

    def change(tensors):
        head = {"lm_head.weight": tensors.pop(name) if instead else tensors[name].copy()}
        return tensors | head

    rewrite(folder, change)
    read, read_config = fc.load_pretrained(folder)
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_a_tied_head_that_differs_from_the_embedding_is_refused(tied):
    folder, _, _, name = tied
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors[name] + np.float32(1e-3)})
    with pytest.raises(fc.InputError, match=f"lm_head.weight should be a copy of {name}, but differs from it"):
        fc.load_pretrained(folder)


def test_the_bare_models_names_and_old_buffers_are_read(tied):
    """As in the released gpt2 files: no prefix, and the causal mask as a buffer."""
    folder, params, _, name = tied
    prefix = name.split(".")[0] + "."
    buffers = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)} if "wte" in name else {}
    rewrite(folder, lambda tensors: {n.removeprefix(prefix): t for n, t in tensors.items()} | buffers)
    jax.tree.map(np.testing.assert_array_equal, fc.load_pretrained(folder)[0], params)


def test_old_files_of_llama_are_read(tmp_path):
    """rope_theta at the top, no head_dim, no num_key_value_heads."""
    values = to_json(small("llama", num_key_value_heads=2, head_dim=4))
    for name in ("rope_parameters", "head_dim", "num_key_value_heads"):
        del values[name]
    assert config_from_json(values) == small("llama", num_key_value_heads=2, head_dim=4)


# frequencies that are kept, divided and between the two, at rope_theta 100 and a head width of 16
LLAMA3 = decoder.Llama3Rope(8.0, 1.0, 4.0, 64)
ROPE = {"rope_type": "llama3", **dataclasses.asdict(LLAMA3)}


def test_the_frequencies_of_llama3_are_kept_divided_and_interpolated():
    plain, stretched = (
        llama.rotary_frequencies(small("llama", head_dim=16, rope_scaling=scaling)) for scaling in (None, LLAMA3)
    )
    ratio = stretched / plain
    turns = 64 * plain / (2 * np.pi)
    between = (turns > 1) & (turns < 4)
    assert between.sum() == 3
    np.testing.assert_allclose(ratio[turns > 4], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 1], 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(ratio[between], 1 / 8 + 7 / 8 * (turns[between] - 1) / 3, rtol=1e-6)


def test_a_llama_with_stretched_positions_has_the_references_logits_alone_and_fused(reference, tmp_path):
    config = small("llama, tied", head_dim=16, rope_scaling=LLAMA3, max_position_embeddings=512)
    params, ids = random_params(config, 0), tokens(config, length=40)
    fc.save_pretrained(tmp_path / "ours", params, config)
    model, run = reference(tmp_path / "ours")
    theirs = run(ids)
    np.testing.assert_allclose(ours(params, config, ids), theirs, rtol=0, atol=TOLERANCE)
    plain = ours(params, dataclasses.replace(config, rope_scaling=None), ids)
    assert np.abs(plain - theirs).max() > 0.01
    model.save_pretrained(tmp_path / "theirs")
    assert fc.load_pretrained(tmp_path / "theirs")[1] == config
    fused, fused_cfg = fc.fuse([(params, config)] * 2)
    fc.save_pretrained(tmp_path / "twice", fused, fused_cfg)
    np.testing.assert_allclose(reference(tmp_path / "twice")[1](ids), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": ROPE | {"rope_theta": 100.0}, "rope_theta": None, "rope_scaling": None},
        {"rope_parameters": None},
        {"rope_parameters": None, "rope_scaling": {k.replace("rope_", ""): v for k, v in ROPE.items()}},
        {
            "rope_parameters": {k: v for k, v in ROPE.items() if not k.startswith("original")},
            "rope_scaling": None,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=["transformers 5", "transformers 4", "older", "length outside"],
)
def test_stretched_positions_are_read_in_new_and_old_spellings(rope):
    config = small("llama", rope_scaling=LLAMA3)
    values = to_json(config) | rope
    assert config_from_json({k: v for k, v in values.items() if v is not None}) == config


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "low_freq_factor, high_freq_factor.* is null; give it",
        ),
        ("llama", {"rope_parameters": ROPE | {"factor": 0.5}}, r"Llama3Rope\.factor is 0\.5; it must be .* at least 1"),
        (
            "llama",
            {"rope_parameters": ROPE | {"high_freq_factor": 1}},
            "high_freq_factor is 1.0; .* above low_freq_factor",
        ),
        ("llama", {"hidden_size": None}, "hidden_size is missing"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True; only False"),
    ],
)
def test_a_configuration_that_this_model_does_not_have_is_refused(kind, values, message):
    with pytest.raises(fc.InputError, match=message):
        config_from_json(to_json(small(kind)) | values)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, "the rotary positions are .*yarn"),
        ("llama", {"rope_parameters": None, "partial_rotary_factor": 0.5}, "partial_rotary_factor': 0.5"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu', and the forward pass here knows 'silu' alone"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu', .* 'gelu_new' alone"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ],
)
def test_settings_that_the_forward_pass_does_not_have_pass_through_and_are_not_run(kind, values, message):
    config = config_from_json({n: v for n, v in (to_json(small(kind)) | values).items() if v is not None})
    again = config_from_json(to_json(fused_config([config] * 2)))
    assert again.settings == config.settings != small(kind).settings
    with pytest.raises(fc.InputError, match=message):
        model.forward(random_params(config, 0), config, jnp.asarray(tokens(config)))


def test_dropout_rates_are_kept_and_must_agree():
    config = config_from_json(to_json(small("gpt2")) | {"resid_pdrop": 0.3})
    assert to_json(fused_config([config] * 2))["resid_pdrop"] == 0.3
    with pytest.raises(fc.InputError, match=r"resid_pdrop is 0\.3 and None; it must agree"):
        fused_config([config, small("gpt2")])
    left_out = {n: v for n, v in to_json(config).items() if n != "attn_pdrop"}
    assert config_from_json(left_out).settings["attn_pdrop"] == 0.1  # transformers' default


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: x for n, x in t.items() if "wpe" not in n}, r"transformer\.wpe\.weight is missing"),
        (lambda t: t | {"odd": np.ones(2, np.float32)}, r"unknown tensors \['odd'\]"),
        (lambda t: t | {"transformer.wpe.weight": np.ones((3, 8), np.float32)}, r"wpe\.weight has shape \(3, 8\)"),
        (lambda t: t | {"transformer.ln_f.bias": np.full(8, np.nan, np.float32)}, "not finite"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, change, message):
    config = small("gpt2")
    fc.save_pretrained(tmp_path / "a", random_params(config, 0), config)
    rewrite(tmp_path / "a", change)
    with pytest.raises(fc.InputError, match=message):
        fc.load_pretrained(tmp_path / "a")


def test_a_llama_that_transformers_would_refuse_is_not_written(tmp_path):
    config = small("llama", hidden_size=9)
    with pytest.raises(fc.InputError, match="hidden_size 9 and num_attention_heads 2 cannot be exported"):
        fc.save_pretrained(tmp_path / "a", random_params(config, 0), config)
    assert not (tmp_path / "a").exists()


# What cannot be fused. Nothing here is compiled.


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"head_dim": 8}, "head_dim is 6 and 8; it must agree"),
        ("llama", {"rope_theta": 500.0}, "rope_theta is 100.0 and 500.0"),
        ("llama", {"rope_scaling": LLAMA3}, r"rope_scaling is None and Llama3Rope\(factor=8\.0, .*; it must agree"),
        ("llama", {"num_hidden_layers": 2}, r"depth 1 with depth 2 \(num_hidden_layers of networks 1 and 2\)"),
        (
            "llama",
            {"num_key_value_heads": 2},
            "num_attention_heads / num_key_value_heads is 2 / 1 and 2 / 2; a fused key head",
        ),
        ("llama", {"tie_word_embeddings": True}, "tie_word_embeddings is False and True"),
        ("gpt2", {"n_head": 4}, "n_embd / n_head is 8 / 2 and 8 / 4; all heads of a GPT-2 are equally wide"),
        ("gpt2", {"n_positions": 21}, "n_positions is 20 and 21"),
        ("gpt2", {"n_layer": 2}, "depth 1 with depth 2"),
    ],
)
def test_decoders_that_cannot_be_fused_are_refused_and_the_fields_are_named(kind, change, message):
    with pytest.raises(fc.InputError, match=message):
        fused_config([small(kind), small(kind, **change)])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads, 3"),
        ("llama", {"head_dim": 5}, "head_dim is 5; rotary positions turn pairs"),
        ("gpt2", {"n_head": 3}, "must be a multiple of n_head, 3"),
        ("gpt2", {"n_layer": 0}, "n_layer is 0; it must be a positive integer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kind, change, message):
    with pytest.raises(fc.InputError, match=message):
        small(kind, **change)


def test_fused_decoders_have_the_shapes_of_the_fused_configuration():
    for kind in KINDS:
        configs = [small(kind, i) for i in range(2)]
        mapping = fc.fusion_map(configs)
        fused = jax.eval_shape(mapping.embed, mapping.shapes)
        assert shape_tree(fused) == shape_tree(parameter_shapes(fused_config(configs)))


def test_a_sequence_beyond_gpt2s_positions_is_refused():
    config = small("gpt2")
    with pytest.raises(fc.InputError, match="a sequence of 21 tokens is longer than n_positions, 20"):
        model.forward(random_params(config, 0), config, jnp.asarray(tokens(config, length=21)))


# T5's ways of saving its embeddings


@pytest.mark.parametrize("style", ["v1.0", "v1.1"])
@pytest.mark.parametrize("copies", [False, True], ids=["once", "with copies"])
@pytest.mark.parametrize("new", [False, True], ids=["old", "new"])
def test_t5s_saved_in_old_and_new_ways_are_read_alike(style, copies, new, tmp_path):
    """Old: tie_word_embeddings tells the truth. New: it is always true, and scale_decoder_outputs tells it."""
    config = tiny(style, vocab_size=9, num_layers=1, num_decoder_layers=1)
    params = random_t5(config, 0)
    fc.save_pretrained(tmp_path / "a", params, config)

    def change(tensors):
        embedding = tensors["shared.weight"]
        names = [f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")] if copies else []
        if copies and config.tie_word_embeddings:
            names.append("lm_head.weight")
        return tensors | {name: embedding.copy() for name in names}

    ways = {"tie_word_embeddings": True} if new else {"scale_decoder_outputs": None}
    rewrite(tmp_path / "a", change, **ways)
    read, read_config = fc.load_pretrained(tmp_path / "a")
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
    twice, twice_config = fc.fuse([(read, read_config)] * 2)
    fc.save_pretrained(tmp_path / "twice", twice, twice_config)
    again, again_config = fc.load_pretrained(tmp_path / "twice")
    assert again_config == twice_config
    jax.tree.map(np.testing.assert_array_equal, again, twice)
