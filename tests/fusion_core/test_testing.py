"""``fusion_core.testing``: what is right passes, and each mistake that is planted is found, by the check that is for it."""

import contextlib
import dataclasses
import io
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fusion_core as fc
from fusion_core import testing
from fusion_core.models import registry
from fusion_core.models.mlp import from_scratch
from fusion_core.models.units import Layout, Space
from tests.strategies import decoders
from tests.strategies.networks import conv_logits, tiny
from toy_models import mlp

PAGE = (pathlib.Path(__file__).parent.parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n+prints\n+```\n(.*?)```)?", PAGE, flags=re.DOTALL)
X = np.random.default_rng(0).standard_normal((5, 3))
MLPS = (fc.MLPConfig((3, 4, 4, 2)), fc.MLPConfig((3, 2, 3, 2)))


def relu_outputs(params, config):
    return mlp.forward(params, jnp.asarray(X), jax.nn.relu)


def images(params, config):
    return conv_logits(params, jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 3, 3))))


def test_the_page_prints_what_it_says():
    names = {}
    for code, printed in BLOCKS:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, names)
        assert out.getvalue() == printed
    assert len(BLOCKS) == 5


def test_the_page_has_every_check():
    assert re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE) == list(testing.CHECKS)


# Our own records


@pytest.mark.parametrize("check", testing.checks(registry.MLP, MLPS, outputs=relu_outputs, examples=3), ids=str)
def test_mlps_pass(check):
    check()


CONVS = testing.checks(
    registry.CONV,
    [fc.ConvConfig((2, 3, 3), 3, 4), fc.ConvConfig((2, 2, 4), 3, 4)],
    outputs=images,
    without=("net2net_depth",),  # tanh
    examples=2,
)


@pytest.mark.parametrize("check", [c for c in CONVS if c.name in ("units", "mean")], ids=str)
def test_convolutional_classifiers_pass(check):
    check()


def of_kind(kind, **changes):
    config = decoders.small(kind, 0)
    return dataclasses.replace(registry.architecture(config), **changes), [config, decoders.small(kind, 1)]


@pytest.mark.parametrize("name", ["units", "self_fusion", "mean", "files"])
def test_a_tied_llama_passes(name):
    (check,) = [c for c in testing.checks(*of_kind("llama, tied"), examples=1) if c.name == name]
    check()


# Planted mistakes: of a gated layer, of networks with a residual stream, of files


@dataclasses.dataclass(frozen=True)
class GatedConfig:
    inputs: int
    hidden: int
    outputs: int
    gates: int = 0

    def __post_init__(self):
        object.__setattr__(self, "gates", 2 * self.hidden)


def gated(makes=None, reads=Space.reads, size=0, other=0, also=2, init=from_scratch):
    """A record of a gated layer, with a mistake: another axis, size, multiple or start; two sizes of one space."""

    def arrays(config):
        units = lambda size: Space("hidden", config.hidden + size, "hidden", None, (("gates", also),))
        layer = lambda hidden: {
            "weight": Layout((makes or hidden.makes(), config.inputs)),
            "bias": Layout((hidden.makes(),)),
        }
        head = {"weight": Layout((config.outputs, reads(units(size)))), "bias": Layout((config.outputs,))}
        return {"value": layer(units(size)), "gate": layer(units(size + other)), "head": head}

    start = lambda config, seed, dtype=jnp.float32: init(arrays(config), seed, dtype)
    return registry.Architecture(config=GatedConfig, arrays=arrays, stacks=lambda config: (), init=start)


def gated_outputs(params, config):
    layer = lambda name, x: x @ params[name]["weight"].T + params[name]["bias"]
    return layer("head", layer("value", jnp.asarray(X)) * jax.nn.sigmoid(layer("gate", jnp.asarray(X))))


def unseeded(layouts, seed, dtype):
    drawn = np.random.default_rng().standard_normal()
    return jax.tree.map(lambda x: x + jnp.asarray(drawn, dtype), from_scratch(layouts, 0, dtype))


GATED = [
    ("units", {"makes": 4}, "hidden in another order"),
    ("self_fusion", {"reads": Space.makes}, "has other outputs"),
    ("table", {"size": 1}, r"the space hidden has 5 units, but hidden is 4"),
    ("table", {"other": 1}, "two spaces are called hidden"),
    ("table", {"also": 3}, "gates is 8, not 3 for each of the 4 of hidden"),
    (
        "table",
        {"init": lambda layouts, seed, dtype: from_scratch(layouts, seed)},
        "in float32, though float64 was asked",
    ),
    ("table", {"init": unseeded}, "other entries the second time"),
    (
        "table",
        {"init": lambda arrays, seed, dtype: from_scratch(arrays | {"gate": arrays["head"]}, 0, dtype)},
        "init gives",
    ),
]


@pytest.mark.parametrize(("name", "mistake", "message"), GATED, ids=[f"{n} {next(iter(m))}" for n, m, _ in GATED])
def test_a_mistake_in_a_gated_layer_is_found(name, mistake, message):
    configs = [GatedConfig(3, 4, 2), GatedConfig(3, 4 if "makes" in mistake else 5, 2)]
    (check,) = [
        c for c in testing.checks(gated(**mistake), configs, outputs=gated_outputs, examples=2) if c.name == name
    ]
    with pytest.raises(AssertionError, match=message):
        check()


def losing_a_field(record):
    read = record.files.read_config
    forgets = lambda values, origin: dataclasses.replace(read(values, origin), layer_norm_epsilon=0.5)
    return dataclasses.replace(record, files=dataclasses.replace(record.files, read_config=forgets))


T5S = [tiny("v1.0", vocab_size=20, num_layers=1, num_decoder_layers=1, num_heads=n) for n in (2, 3)]
OTHERS = {
    "the factors before a tied head": ("self_fusion", *of_kind("llama, tied", tied=lambda config: ())),
    "the scale of logits": ("self_fusion", dataclasses.replace(registry.T5, logit_scale=lambda config: 1.0), T5S),
    "a field that files lose": ("files", losing_a_field(of_kind("gpt2")[0]), of_kind("gpt2")[1]),
}


@pytest.mark.parametrize("mistake", OTHERS)
def test_a_mistake_in_another_record_is_found(mistake):
    name, record, configs = OTHERS[mistake]
    (check,) = [c for c in testing.checks(record, configs, examples=1) if c.name == name]
    with pytest.raises(AssertionError, match="has other outputs" if name == "self_fusion" else "is read as"):
        check()


# Maps and rules of one's own


def halves(params):
    return {"w": jnp.concatenate([params["w"], params["w"]]) / 2}


def added(grown):
    return {"w": (grown["w"][:3] + grown["w"][3:]) / 2}


MAP = {
    "embed": halves, "transpose": added, "pinv": lambda g: {"w": g["w"][:3] + g["w"][3:]},
    "small": {"w": jnp.zeros(3)}, "grown": {"w": jnp.zeros(6)},
}  # fmt: skip
WRONG_MAPS = [
    ({"embed": lambda p: {"w": jnp.tile(jnp.abs(p["w"]), 2) / 2}}, "the map is not linear"),
    ({"transpose": MAP["pinv"]}, "the transpose is not the adjoint"),
    ({"pinv": added}, "J J⁺ J is not J"),
    ({"pinv": lambda g: {"w": 2 * g["w"][:3]}}, "J J⁺ is not symmetric"),
]


def test_a_map_with_its_transpose_and_pseudo_inverse_passes():
    testing.check_linear_map(**MAP)


@pytest.mark.parametrize(("mistake", "message"), WRONG_MAPS)
def test_a_mistake_in_a_map_is_found(mistake, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_linear_map(**MAP | mistake)


def wrong_rule(change, wrong_weights=lambda weights: weights):
    def rule(networks, weights):
        params, config = fc.fuse(networks, wrong_weights(list(weights)))
        *hidden, last = params["layers"]
        return {"layers": [*hidden, change(last)]}, config

    return rule


RULES = [
    (wrong_rule(lambda last: {"weight": 2 * last["weight"], "bias": last["bias"]}), "not the weighted mean"),
    (wrong_rule(lambda last: last | {"bias": 0 * last["bias"]}), "not the weighted mean"),
    (wrong_rule(lambda last: last, lambda weights: [1 / len(weights)] * len(weights)), "not the weighted mean"),
    (wrong_rule(lambda last: {"weight": last["weight"], "bias": last["bias"] + 1e-4}), "not the weighted mean"),
]
TWO = [fc.MLPConfig((3, 4, 2)), fc.MLPConfig((3, 2, 2))]


@pytest.mark.parametrize(("rule", "message"), RULES)
def test_a_mistake_in_a_rule_is_found(rule, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_rule(rule, testing.sources(TWO, most=2), lambda p, c: mlp.forward(p, jnp.asarray(X)), examples=3)


def test_a_rule_that_is_a_mean_but_no_linear_map_is_found():
    def rule(networks, weights):
        params, config = fc.fuse(networks, weights)
        (hidden, last), sizes = params["layers"], [config.sizes[1] for _, config in networks]
        # ReLU lets a layer grow as long as the next one shrinks
        size = jnp.max(jnp.abs(hidden["weight"]))
        grown = jax.tree.map(lambda x: x / size, hidden)
        assert sum(sizes) == config.sizes[1]
        return {"layers": [grown, last | {"weight": last["weight"] * size}]}, config

    with pytest.raises(AssertionError, match="not linear in the sources'"):
        testing.check_rule(rule, testing.sources(TWO), relu_outputs, examples=2)


def test_sources_that_do_not_differ_are_no_test():
    alike = testing.sources(TWO[:1], lambda config, seed: testing.random_params(config, 0), most=2)
    with pytest.raises(AssertionError, match="the outputs of all sources agree"):
        testing.check_rule(fc.fuse, alike, relu_outputs, examples=1)


# What is drawn, and what is refused


def test_random_parameters_leave_the_start_of_every_array():
    config = decoders.small("llama")
    first, again, other = (testing.random_params(config, seed) for seed in (0, 0, 1))
    for one, two, three in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        np.testing.assert_array_equal(one, two)
        assert (np.asarray(one) != np.asarray(three)).all()
        assert np.asarray(one).all()
    layer = first["model"]["layers"]["0"]
    assert not np.array_equal(*(layer[f"{n}_layernorm"]["weight"] for n in ("input", "post_attention")))
    assert abs(np.mean(layer["input_layernorm"]["weight"]) - 1) < 0.5


def test_without_hypothesis_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(fc.InputError, match=r"needs hypothesis; pip install 'deepfusion\[testing\]'"):
        testing.checks(registry.MLP, MLPS, outputs=relu_outputs)


@pytest.mark.parametrize(
    ("configs", "options", "message"),
    [
        (MLPS[:1], {"outputs": relu_outputs}, "two or more configurations of the class MLPConfig, but got 1"),
        ((MLPS[0], tiny()), {"outputs": relu_outputs}, "of T5Config too"),
        (
            [fc.MLPConfig((3, 1, 2))] * 2,
            {"outputs": relu_outputs},
            r"the space hidden.0 has one unit in every configuration",
        ),
        (MLPS, {}, "the record of MLPConfig has no logits; give outputs"),
    ],
)
def test_what_cannot_be_checked_is_refused(configs, options, message):
    with pytest.raises(fc.InputError, match=message):
        testing.checks(registry.MLP, configs, **options)


def test_checking_a_record_leaves_the_registry_alone():
    before = dict(registry.ARCHITECTURES)
    (check,) = [
        c
        for c in testing.checks(gated(), [GatedConfig(3, 4, 2), GatedConfig(3, 5, 2)], outputs=gated_outputs)
        if c.name == "table"
    ]
    check()
    assert before == registry.ARCHITECTURES


def test_a_registered_architecture_is_fused_and_another_record_of_its_class_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
    record, config = gated(), GatedConfig(3, 4, 2)
    registry.register(record)
    registry.register(record)
    params, fused = fc.fuse([(registry.init(config, seed), config) for seed in (0, 1)])
    assert fused.hidden == 8
    assert params["value"]["weight"].shape == (8, 3)
    with pytest.raises(fc.InputError, match="GatedConfig has another record already"):
        registry.register(gated())
