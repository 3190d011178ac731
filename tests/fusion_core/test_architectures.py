"""Every architecture's record against transformers: what is fused and grown there, loaded there, computes what it should."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fusion_core as fc
from fusion_core import checkpoints
from fusion_core.checkpoints.comparison import logits_of
from fusion_core.growth import GROWTH_OPERATORS
from fusion_core.growth.copying import replication
from fusion_core.models.registry import architecture, layouts, spaces
from fusion_core.models.units import by_name, nested
from fusion_core.torch import param_groups
from tests.strategies import hub

TOLERANCE = 2e-5  # float32, in units of the largest logit
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers', which are not ours
NAMES = sorted(hub.ARCHITECTURES)


def assert_close(found, wanted, what=""):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max(), err_msg=what)


def fused(folders, out, *, probe=False, **options):
    recipe = checkpoints.fusion_recipe(folders, **options)
    checkpoints.write_recipe(recipe, out, probe=probe)
    return recipe


def permuted(params, config, seed):
    """The same network with all its units, in every space, in another order."""
    rng = np.random.default_rng(seed)
    mapping = replication(config, {name: rng.permutation(space.size) for name, space in spaces(config).items()})
    return mapping.embed(params)


def with_another_head(params, config, seed):
    """Another head, or another last norm before a tied one: the norms' statistics stay."""
    arrays, rng = by_name(params), np.random.default_rng(seed)
    last = architecture(config).tied(config) or [n for n, layout in layouts(config).items() if layout.is_head]
    return nested(
        {n: a + jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype) if n in last else a for n, a in arrays.items()}
    )


def uncapped(logits, config):
    cap = getattr(config, "settings", {}).get("final_logit_softcapping")
    return cap * np.arctanh(logits / cap) if cap else logits


@pytest.mark.parametrize("name", NAMES)
def test_fused_with_itself_it_has_the_same_logits_in_transformers(name, tmp_path):
    model = hub.made(name)
    model.save_pretrained(tmp_path / "a")
    before = hub.logits(model)
    assert np.abs(before).mean() > 0.1
    recipe = fused([tmp_path / "a"] * 2, tmp_path / "b", noise=0.3)
    twice = hub.loaded(tmp_path / "b")
    assert_close(hub.logits(twice), before)
    assert recipe.exactness.startswith("exact")
    groups = param_groups(twice, tmp_path / "b", 0.1)  # growth.json has the names of its parameters
    assert sum(len(group["params"]) for group in groups) == len(list(twice.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_sources_whose_norms_agree_give_the_mean_in_transformers(name, tmp_path):
    """The second source is the first with its units in another order and another head: no block may see the other's."""
    params, config = fc.load_pretrained(hub.saved(tmp_path / "a", name))
    other = with_another_head(permuted(params, config, 0), config, 1)
    fc.save_pretrained(tmp_path / "b", other, config)
    fused([tmp_path / "a", tmp_path / "b"], tmp_path / "c", weights=[0.3, 0.7])
    a, b, c = (uncapped(hub.logits(tmp_path / n), config) for n in "abc")
    assert np.abs(a - b).max() > 0.01
    assert_close(c, 0.3 * a + 0.7 * b)


WIDER, DEEPER = ("hypercloning", {"factor": 2}), ("identity_layers", {"factor": 2})
ALL_PRESERVING = [
    *(WIDER, DEEPER, ("deep_fusion", {"factor": 3}), ("sparkling", {"factor": 2})),
    ("net2net_width", {"factor": 2, "seed": 1}),
    ("hypercloning", {"factor": 3, "noise": 0.2, "seed": 1}),
    ("deep_fusion", {"factor": 2, "noise": 0.2, "seed": 1}),
]


@pytest.mark.parametrize("name", NAMES)
def test_it_grows_by_streaming_and_keeps_its_logits_in_transformers(name, tmp_path):
    before = hub.logits(hub.saved(tmp_path / "a", name))
    growths = ALL_PRESERVING if name in ("T5", "Llama", "GPT-2") else [WIDER, DEEPER]
    for i, (operator, options) in enumerate(growths):
        recipe = checkpoints.growth_recipe(tmp_path / "a", operator, **options)
        assert recipe.exactness.startswith("kept")
        checkpoints.write_recipe(recipe, tmp_path / str(i), probe=False)
        assert_close(hub.logits(tmp_path / str(i)), before, f"{operator} {options}")


def test_every_operator_that_keeps_the_function_is_judged():
    keeping = {n for n, o in GROWTH_OPERATORS.items() if o.properties.function_preserving and o.networks != "chain"}
    assert {operator for operator, _ in ALL_PRESERVING} == keeping


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_its_file_are_those_of_the_fused_one(name, tmp_path):
    """All that transformers reads but the sizes: windows, caps, rotary positions, dropout rates, ids."""
    fused([hub.saved(tmp_path / "a", name)] * 2, tmp_path / "b")
    read = hub.transformers().AutoConfig.from_pretrained
    a, b = (read(tmp_path / n).to_dict() for n in "ab")
    sizes = {space.field for space in spaces(checkpoints.open_checkpoint(tmp_path / "a").config).values()}
    sizes |= {"num_attention_heads", "num_key_value_heads", "transformers_version", "_name_or_path", "head_dim"}
    differing = {n: (a.get(n), b.get(n)) for n in {**a, **b} if a.get(n) != b.get(n) and n not in sizes}
    assert not differing


ROPES = [
    ("Llama", {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}),
    ("Llama", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}),
    (
        "Llama",
        {"rope_type": "llama3", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 8}
        | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    (
        "Phi-3",
        {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 8, "factor": 2.0}
        | {"short_factor": [1.0, 1.2], "long_factor": [1.5, 3.0], "partial_rotary_factor": 1.0},
    ),
    ("Qwen3", {"rope_type": "yarn", "factor": 2.0, "rope_theta": 100.0, "original_max_position_embeddings": 8}),
]


@pytest.mark.parametrize(("name", "rope"), ROPES, ids=[f"{name} {rope['rope_type']}" for name, rope in ROPES])
def test_rotary_positions_of_every_kind_pass_through(name, rope, tmp_path):
    """With texts longer than the length from which on they are stretched."""
    changes = {"rope_parameters": rope, "max_position_embeddings": 8}
    before = hub.logits(hub.saved(tmp_path / "a", name, **changes))
    fused([tmp_path / "a"] * 2, tmp_path / "b")
    assert_close(hub.logits(tmp_path / "b"), before)
    plain = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}
    other = hub.logits(hub.saved(tmp_path / "c", name, **changes | {"rope_parameters": plain}))
    assert np.abs(other - before).max() > 0.01


@pytest.mark.parametrize("name", ["T5, gated-silu", "mT5", "Mistral", "Llama"])
def test_our_forward_pass_has_the_references_logits(name, tmp_path):
    before = hub.logits(hub.saved(tmp_path / "a", name, **({"sliding_window": 12} if name == "Mistral" else {})))
    (ids, targets), checkpoint = hub.tokens(), checkpoints.open_checkpoint(tmp_path / "a")
    spans = checkpoint.architecture.files.spans
    batch = {"encoder_ids": ids, "decoder_ids": targets} if spans else {"ids": ids}
    assert_close(logits_of(checkpoint, batch, small=0), before)


def test_a_sequence_longer_than_a_mistrals_window_is_refused(tmp_path):
    checkpoint = checkpoints.open_checkpoint(hub.saved(tmp_path / "a", "Mistral"))
    with pytest.raises(fc.InputError, match="a sequence of 12 tokens is longer than sliding_window, 8"):
        logits_of(checkpoint, {"ids": hub.tokens()[0]})


def test_where_there_is_no_forward_pass_the_probe_says_so_and_is_left_out(tmp_path):
    recipe = fused([hub.saved(tmp_path / "a", "Qwen3")] * 2, tmp_path / "b", probe=True)
    assert (
        "not measured (there is no forward pass of qwen3 networks here)" in (tmp_path / "b" / "README.md").read_text()
    )
    assert recipe.cannot_run
    with pytest.raises(
        fc.InputError, match="logits cannot be computed: there is no forward pass of qwen3 networks here"
    ):
        checkpoints.compare(*[checkpoints.open_checkpoint(tmp_path / n) for n in "ab"])
    with pytest.raises(fc.InputError, match="the norms' calibration cannot be computed: there is no forward pass of"):
        checkpoints.fusion_recipe([tmp_path / "a", tmp_path / "b"], norm="calibrated", calibration=["a text"])


def test_a_umt5_is_not_run_with_the_position_bias_of_its_first_layer(tmp_path):
    params, config = fc.load_pretrained(hub.saved(tmp_path / "a", "umT5"))
    with pytest.raises(fc.InputError, match="a UMT5Config has a position bias in every layer"):
        fc.forward(params, config, jnp.ones((1, 3), int), jnp.ones((1, 2), int))


def test_settings_that_differ_are_refused_and_named(tmp_path):
    for name, window in (("a", 8), ("b", 9)):
        hub.saved(tmp_path / name, "Mistral", sliding_window=window)
    with pytest.raises(fc.InputError, match="sliding_window is 8 and 9; it must agree"):
        checkpoints.fusion_recipe([tmp_path / "a", tmp_path / "b"])


def test_copies_of_layers_keep_their_windows(tmp_path):
    recipe = checkpoints.growth_recipe(hub.saved(tmp_path / "a", "Gemma 2"), "identity_layers", factor=2)
    sliding, full = "sliding_attention", "full_attention"
    assert recipe.config.settings["layer_types"] == [sliding, sliding, full, full]


def test_a_gpt_neox_without_its_head_is_named_as_such(tmp_path):
    hub.made("GPT-NeoX").gpt_neox.save_pretrained(tmp_path / "a")
    with pytest.raises(fc.InputError, match=r"embed_out\.weight is missing, .* saved by GPTNeoXModel without its head"):
        checkpoints.open_checkpoint(tmp_path / "a")


def test_a_description_has_the_settings_beside_the_sizes(tmp_path):
    config = checkpoints.describe(hub.saved(tmp_path / "a", "Gemma 2"))["config"]
    assert (config["hidden_size"], config["final_logit_softcapping"]) == (16, 3.0)


def test_old_names_of_gpt_neox_are_read(tmp_path):
    folder = hub.saved(
        tmp_path / "a",
        "GPT-NeoX",
        rope_parameters={"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
    )
    config = checkpoints.open_checkpoint(folder).config
    values = json.loads((folder / "config.json").read_text())
    del values["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(values | {"rotary_pct": 0.5, "rotary_emb_base": 50.0}))
    assert checkpoints.open_checkpoint(folder).config.settings["rope_parameters"] == config.settings["rope_parameters"]


def test_a_fused_tree_of_every_record_has_the_shapes_of_its_configuration(tmp_path):
    for name in NAMES:
        config = checkpoints.open_checkpoint(hub.saved(tmp_path / name.replace(" ", ""), name)).config
        mapping = fc.fusion_map([config] * 3)
        shapes = jax.eval_shape(mapping.grown, mapping.shapes)
        assert {n: a.shape for n, a in by_name(shapes).items()} == {
            n: a.shape for n, a in layouts(mapping.config).items()
        }


def test_fields_that_are_allowed_to_differ_are_the_first_sources(tmp_path):
    """As of a base and an instruct model: another end token, another length, another window."""
    changes = {"eos_token_id": [2, 5], "max_position_embeddings": 128, "sliding_window": 20}
    folders = [hub.saved(tmp_path / "base", "Mistral"), hub.saved(tmp_path / "instruct", "Mistral", seed=1, **changes)]
    with pytest.raises(
        fc.InputError, match=r"max_position_embeddings is 64 and 128; it must agree, or be allowed to differ"
    ):
        checkpoints.fusion_recipe(folders, allow_different=["eos", "window"])
    recipe = fused(folders, tmp_path / "c", allow_different=["eos", "max_length", "sliding_window"])
    assert "eos_token_id is 2, kept from base ([2, 5] in instruct)" in recipe.kept_values
    card = (tmp_path / "c" / "README.md").read_text()
    assert all(f"- {sentence}" in card for sentence in recipe.kept_values)
    values = json.loads((tmp_path / "c" / "config.json").read_text())
    assert (values["eos_token_id"], values["max_position_embeddings"], values["sliding_window"]) == (2, 64, 8)
    swapped = fused(folders[::-1], tmp_path / "d", allow_different=["eos", "max_length", "sliding_window"])
    assert swapped.config.settings["eos_token_id"] == [2, 5]


def test_what_cannot_be_allowed_to_differ_is_refused(tmp_path):
    folders = [hub.saved(tmp_path / "a", "Llama"), hub.saved(tmp_path / "b", "Llama", head_dim=8)]
    with pytest.raises(fc.InputError, match=r"head_dim cannot be allowed to differ: .* depends on it"):
        checkpoints.fusion_recipe(folders, allow_different=["head_dim"])
    with pytest.raises(fc.InputError, match=r"colour is no field .* they differ in head_dim"):
        checkpoints.fusion_recipe(folders, allow_different=["colour"])
