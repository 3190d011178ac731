"""``growth.json``: what was done to which sources, and the factors of every tensor; read back, it is the same growth."""

import hashlib
import json

import jax
import numpy as np
import pytest

import fusion_core as fc
from deepfusion.commands.grow import grow as grow_command
from fusion_core import checkpoints
from fusion_core.growth.rates import UPDATES
from fusion_core.models.registry import parameter_shapes
from fusion_core.models.units import by_name
from tests.strategies.checkpoints import NARROW, in_shards, saved_decoder, saved_t5, tensors_of
from tests.strategies.decoders import KINDS


def written(folders, out, **options):
    checkpoints.write_recipe(checkpoints.fusion_recipe(folders, **options), out, probe=False)
    return checkpoints.read_growth(out)


def sources(tmp_path, kind, *changes):
    """Folders of two networks of one kind."""
    if kind.startswith("v1"):
        return [saved_t5(tmp_path / name, kind, i, **c) for i, (name, c) in enumerate(zip("ab", changes, strict=True))]
    return [
        saved_decoder(tmp_path / name, kind, 0, i, **c) for i, (name, c) in enumerate(zip("ab", changes, strict=True))
    ]


@pytest.mark.parametrize("kind", ["v1.0", "v1.1", *KINDS])
def test_every_tensor_has_the_factors_of_rate_factors_and_they_are_the_equations(tmp_path, kind):
    a, b = sources(tmp_path, kind, {}, {})
    record = written([a, b], tmp_path / "c")
    assert set(record.tensors) == set(tensors_of(tmp_path / "c"))
    config = checkpoints.open_checkpoint(a).config
    for update, (p, q) in UPDATES.items():
        expected = by_name(fc.rate_factors(parameter_shapes(config), config, 2, update))
        assert record.factors(update) == pytest.approx(expected, rel=1e-12)
        for name, facts in record.tensors.items():
            n, a_, rho = facts["N"], facts["a"], facts["rho"]
            assert expected[name] == pytest.approx(1 / (n * a_ * a_**p * rho**q)), name
    assert {name: tuple(facts["shape"]) for name, facts in record.tensors.items()} == {
        name: tensor.shape for name, tensor in tensors_of(tmp_path / "c").items()
    }


def test_sources_are_known_by_their_content(tmp_path):
    a, b = sources(tmp_path, "v1.0", {}, NARROW)
    b = in_shards(b)
    record = written([a, b], tmp_path / "c", weights=[0.3, 0.7])
    assert [source["name"] for source in record.sources] == ["a", "b"]
    for folder, source in zip((a, b), record.sources, strict=True):
        files = sorted(folder.glob("*.safetensors"))
        assert source["sha256"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert len(record.sources[1]["sha256"]) == 3
    assert record.event.weights == (0.3, 0.7)
    assert not record.event.equal
    assert record.kept == "on average: the sources differ, the weights differ"
    values = json.loads((tmp_path / "c" / "growth.json").read_text())
    assert values["rates"]["equation"] == "r = 1 / (N a · a^p · rho^q)"
    assert "theory.md" in values["rates"]["page"]


def same_map(a, b):
    a, b = by_name(a.rules), by_name(b.rules)
    assert a.keys() == b.keys()
    for name, rule in a.items():
        assert rule.blocks == b[name].blocks
        assert rule.placements() == b[name].placements()


def test_the_map_that_is_read_back_is_that_of_the_fusion_calibrated_norms_included(tmp_path):
    a, b = sources(tmp_path, "v1.0", {}, NARROW)
    recipe = checkpoints.fusion_recipe([a, b], [0.4, 0.6])
    scales = {"encoder.final_layer_norm.weight": [0.5, 1.5]}
    plain = checkpoints.growth_record(recipe.sources, recipe.event)
    fitted = checkpoints.growth_record(recipe.sources, recipe.event, scales)
    for name, record in (("plain", plain), ("fitted", fitted)):
        (tmp_path / name).mkdir()
        checkpoints.write_growth(tmp_path / name, record)
    own = fc.fusion_map([source.config for source in recipe.sources], [0.4, 0.6])
    same_map(checkpoints.read_growth(tmp_path / "plain").mapping(), own)
    rules = by_name(checkpoints.read_growth(tmp_path / "fitted").mapping().rules)
    for name, rule in by_name(own.rules).items():
        assert list(rules[name].scales) == scales.get(name, list(rule.scales))


GROWN = [
    ("hypercloning", {"factor": 2}, "yes: exactly"),
    ("hypercloning", {"factor": 2, "noise": 0.2}, "on average: noise"),
    ("net2net_width", {"width": ["intermediate_size=18"]}, "on average: units have different numbers of copies"),
    ("identity_layers", {"factor": 2}, "no: new entries move the function on their own"),
    ("random_init", {"factor": 2}, "no: new entries"),
]


@pytest.mark.parametrize(("operator", "options", "kept"), GROWN)
def test_a_grown_folder_says_how_it_was_grown(tmp_path, operator, options, kept):
    source = saved_decoder(tmp_path / "a", "llama")
    grow_command(source, operator=operator, out=tmp_path / "b", **{"noise": 0.0, "seed": 1, "as_json": True, **options})
    record = checkpoints.read_growth(tmp_path / "b")
    assert record.kept.startswith(kept)
    assert set(record.tensors) == set(tensors_of(tmp_path / "b"))
    params, config = fc.load_pretrained(source)
    if operator == "random_init":
        with pytest.raises(fc.InputError, match="no linear map"):
            record.mapping()
    else:
        sizes = record.event.sizes
        same_map(record.mapping(), fc.growth_map(config, operator, **sizes))
    for update in UPDATES:
        if kept.startswith("no"):
            assert set(record.factors(update).values()) == {1.0}
        else:
            exact = by_name(fc.growth_rate_factors(params, config, operator, update, **record.event.sizes))
            means = jax.tree.map(lambda f: float(np.mean(f)), exact)
            # Adafactor's factors of units that are copied unequally depend on the weights
            if update != "adafactor" or record.kept.startswith("yes"):
                assert record.factors(update) == pytest.approx(means)
    assert kept.startswith("no") or len(set(record.factors("adam").values())) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "growth.json").unlink(),
            "there is no .*growth.json: it is written beside the weights",
        ),
        (lambda folder: (folder / "growth.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "growth.json").write_text('{"format": 9}'), "has the format 9"),
        (lambda folder: (folder / "growth.json").write_text('{"format": 1, "event": {}}'), "is damaged"),
    ],
)
def test_a_folder_without_a_whole_growth_file_is_refused(tmp_path, change, message):
    a = saved_t5(tmp_path / "a")
    written([a, a], tmp_path / "b")
    change(tmp_path / "b")
    with pytest.raises(fc.InputError, match=message):
        checkpoints.read_growth(tmp_path / "b")
