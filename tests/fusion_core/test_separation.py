"""Copies that part in T5s, and the push along their leading directions."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bea
import fusion_core as fc
from bea.pytrees import norm
from fusion_core.errors import InputError
from fusion_core.growth import MLPConfig, fuse, fusion_map, growth_map
from fusion_core.growth.noise import SELF_FUSION_NOISE
from fusion_core.models.t5 import T5Config, init, token_loss
from fusion_core.runs import read_plan, run_plan
from fusion_core.runs.graph import resolve
from fusion_core.schedule.noise import NOISES, choose_noise
from fusion_core.schedule.separation import noise_norm, push_apart, separation_of
from fusion_core.train import init_state
from tests.strategies.plans import GROWN, HEAD, MODEL, SELF, SOURCES
from toy_models import mlp, teacher

CONFIG = T5Config(
    vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_heads=2, num_layers=1, num_decoder_layers=1, feed_forward_proj="relu"
)


def _loss(config):
    def loss(params, batch):
        total, count = token_loss(params, config, batch["encoder_ids"], batch["targets"])
        return total / count

    return loss


def _batches(count):
    draws = np.random.default_rng(0)
    return [
        {
            "encoder_ids": jnp.asarray(draws.integers(2, 32, (4, 12))),
            "targets": jnp.asarray(draws.integers(2, 32, (4, 6))),
        }
        for _ in range(count)
    ]


def _grown(copies):
    small = init(CONFIG, 0)
    mapping = fusion_map([CONFIG] * copies)
    return small, mapping, mapping.embed((small,) * copies), _loss(mapping.config)


def _scattered(params, size=0.3):
    leaves, tree = jax.tree.flatten(params)
    draws = np.random.default_rng(1)
    return tree.unflatten([leaf + size * draws.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize("copies", [2, 3])
def test_exchanging_the_copies_changes_no_output_of_a_t5(copies):
    _, mapping, embedded, loss = _grown(copies)
    params, batch = _scattered(embedded), _batches(1)[0]
    images = mapping.exchanges(params)
    assert len(images) == copies
    values = [float(loss(image, batch)) for image in images]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    once = mapping.exchanges(images[-1])[1]  # the last exchange and the first are the identity together
    assert all(map(np.array_equal, jax.tree.leaves(once), jax.tree.leaves(params)))
    assert not np.array_equal(jax.tree.leaves(images[1])[0], jax.tree.leaves(params)[0])


def test_an_operator_that_copies_all_units_has_the_exchange_too():
    mapping = growth_map(CONFIG, "hypercloning", factor=2)
    params, batch = _scattered(mapping.embed(init(CONFIG, 0))), _batches(1)[0]
    one, other = mapping.exchanges(params)
    np.testing.assert_allclose(_loss(mapping.config)(one, batch), _loss(mapping.config)(other, batch), rtol=1e-5)


def test_maps_without_equally_many_copies_have_no_exchange():
    half = T5Config(**{**CONFIG.__dict__, "d_ff": 8})
    mapping = fusion_map([CONFIG, half])
    with pytest.raises(InputError, match="copies"):
        mapping.exchanges(jax.tree.map(lambda rule: jnp.zeros(rule.shape), mapping.rules))
    deeper = growth_map(CONFIG, "stacking", depth=2)
    with pytest.raises(InputError, match="copies no units"):
        deeper.exchanges(None)


def test_noise_has_the_norm_that_pushes_are_measured_in():
    small, mapping, embedded, _ = _grown(2)
    noisy, _ = fuse([(small, CONFIG)] * 2, off_diagonal="antisymmetric", noise=0.5, seed=1)
    drawn = float(norm(jax.tree.map(jnp.subtract, noisy, embedded)))
    np.testing.assert_allclose(drawn, 0.5 * noise_norm(mapping, embedded), rtol=0.1)


def test_a_push_parts_the_copies_and_lowers_the_loss():
    sizes = (3, 4, 4, 1)
    train = teacher.teacher_task((3, 8, 1), seed=0, train=32, validation=1).train
    mapping, small = fusion_map([MLPConfig(sizes)] * 2), mlp.init(sizes, seed=1)
    embedded, loss = mapping.embed((small, small)), lambda p, batch: mlp.mse_loss(*batch)(p)
    halves = [jax.tree.map(lambda x, part=part: x[part::2], train) for part in (0, 1)]
    push = push_apart(loss, mapping, embedded, embedded, halves, directions=3)
    found = separation_of(loss, mapping, embedded, halves, directions=3)
    assert push.rate == pytest.approx(float(found.rate), rel=1e-4)
    whole = bea.separation_rate(mlp.mse_loss(*train), mapping.exchanges, embedded)
    assert push.rate == pytest.approx(float(whole.rate), rel=1e-3)
    assert push.size > 0
    assert push.after < push.before
    difference = bea.antisymmetric_part(mapping.exchanges, push.params)
    np.testing.assert_allclose(norm(difference), push.size * noise_norm(mapping, embedded), rtol=1e-3)
    given = push_apart(loss, mapping, embedded, embedded, halves, size=0.01, directions=3)
    assert given.size == 0.01
    noisy, _ = fuse([(small, MLPConfig(sizes))] * 2, off_diagonal="antisymmetric", noise=0.3, seed=1)
    chosen = push_apart(loss, mapping, embedded, noisy, halves, directions=3)
    assert chosen.after <= chosen.before
    with pytest.raises(InputError, match="push is 0"):
        push_apart(loss, mapping, embedded, embedded, halves, size=0.0)


PUSHED = SELF + 'off_diagonal = "separating"\n' + GROWN[GROWN.index("[node.m]") :]


def test_a_plan_pushes_copies_apart_and_pays_for_it(text, tmp_path):
    shutil.copy(text, tmp_path / "text.txt")
    budget = HEAD.replace("[data]", 'budget = { node = "m", steps = 200 }\n[data]')
    source = f"[node.a]\nmodel = {MODEL}\nsteps = 20\n"
    (tmp_path / "plan.toml").write_text(
        budget + source + PUSHED.replace("steps = 10", 'steps = "rest"'), encoding="utf-8"
    )
    plan, notes = read_plan(tmp_path / "plan.toml"), []
    resolved = {node.name: node for node in resolve(plan)}
    results = run_plan(plan, tmp_path / "run", note=notes.append)
    nodes = results["nodes"]
    assert nodes["fused"]["flops"] == resolved["fused"].flops > 100 * resolved["m"].step_flops
    spent = sum(nodes[name]["flops"] for name in ("a", "fused", "m"))
    assert nodes["m"]["total_flops"] == pytest.approx(spent)
    assert 0 <= 200 * resolved["m"].step_flops - spent < 5 * resolved["m"].step_flops
    assert any("copies part by" in note and "FLOPs" in note for note in notes), notes
    small, grown = (fc.load_pretrained(tmp_path / "run" / "nodes" / name / "model")[0] for name in ("a", "fused"))
    mapping = fusion_map([plan.node("a").model] * 2)
    apart = bea.antisymmetric_part(mapping.exchanges, grown)
    assert float(norm(apart)) > 1e-3
    np.testing.assert_allclose(
        norm(jax.tree.map(jnp.subtract, grown, mapping.embed((small, small)))), norm(apart), rtol=1e-3
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["a", "a"]', '["a", "b"]', "for copies of one source"),
        ('"separating"', '"separating"\npush = 0.0', "push is 0.0"),
        ('"separating"', '"antisymmetric"\npush = 0.1', "of 'separating' alone"),
    ],
)
def test_pushes_that_make_no_sense_are_refused(tmp_path, old, new, message):
    assert old in PUSHED
    (tmp_path / "plan.toml").write_text(HEAD + SOURCES + PUSHED.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "plan.toml")


def _stepping(rate):
    sizes = (3, 4, 4, 1)
    task = teacher.teacher_task((3, 8, 1), seed=0, train=32, validation=1).train
    mapping, small, network = fusion_map([MLPConfig(sizes)] * 2), mlp.init(sizes, seed=1), MLPConfig(sizes)
    loss, optimizer = lambda p, batch: mlp.mse_loss(*batch)(p), optax.sgd(1.0)
    state = init_state(mapping.embed((small, small)), optimizer, rate)
    noisy = lambda size: fuse([(small, network)] * 2, off_diagonal="antisymmetric", noise=size, seed=1)[0]
    return choose_noise(loss, optimizer, state, noisy, [task]), mlp.mse_loss(*task), noisy, state.params


def test_the_chosen_noise_is_the_largest_that_a_step_takes():
    found, loss, noisy, copies = _stepping(0.3)
    step = lambda p: jax.tree.map(lambda x, g: x - 0.3 * g, p, jax.grad(loss)(p))
    decrease = lambda p: float(loss(p) - loss(step(p)))
    assert found.without == pytest.approx(decrease(copies), rel=1e-4)
    for size in (0.1, 0.5, 1.0):
        assert found.decreases[size] == pytest.approx(decrease(noisy(size)), rel=1e-3)
    taken = [size for size in NOISES if size <= found.noise]
    assert all(found.decreases[size] >= 0.9 * found.without for size in taken)
    assert f"noise {found.noise:g} between the copies" in found.reason


def test_longer_steps_take_less_noise():
    short, long = _stepping(0.05)[0], _stepping(1.2)[0]
    assert short.noise == 1.0
    assert long.noise < 1.0
    above = NOISES[NOISES.index(long.noise) + 1]
    assert long.decreases[above] < 0.9 * long.without


def test_a_step_that_is_too_long_without_noise_leaves_the_default():
    found = _stepping(100.0)[0]
    assert found.without < 0
    assert found.noise == SELF_FUSION_NOISE
    assert "the default: a step raises the loss" in found.reason


def test_a_plan_chooses_its_noise_and_says_so(text, tmp_path):
    shutil.copy(text, tmp_path / "text.txt")
    source = f"[node.a]\nmodel = {MODEL}\nsteps = 20\n"
    (tmp_path / "plan.toml").write_text(HEAD + source + SELF + 'noise = "auto"\n', encoding="utf-8")
    plan, notes = read_plan(tmp_path / "plan.toml"), []
    results = run_plan(plan, tmp_path / "run", note=notes.append)
    (said,) = [note for note in notes if "between the copies" in note]
    noise = float(said.split("noise ")[1].split()[0])
    resolved = {node.name: node for node in resolve(plan)}
    assert results["nodes"]["fused"]["flops"] == resolved["fused"].flops > 0
    small, grown = (fc.load_pretrained(tmp_path / "run" / "nodes" / name / "model")[0] for name in ("a", "fused"))
    pair = [(small, plan.node("a").model)] * 2
    jax.tree.map(np.testing.assert_array_equal, grown, fuse(pair, off_diagonal="antisymmetric", noise=noise)[0])


def test_a_noise_that_is_to_be_chosen_is_for_copies_of_one_source(tmp_path):
    (tmp_path / "plan.toml").write_text(HEAD + SOURCES + GROWN + 'noise = "auto"\n', encoding="utf-8")
    with pytest.raises(InputError, match="unknown field 'noise'"):
        read_plan(tmp_path / "plan.toml")
    two = SOURCES + '[node.fused]\nsources = ["a", "b"]\nnoise = "auto"\n'
    (tmp_path / "plan.toml").write_text(HEAD + two, encoding="utf-8")
    with pytest.raises(InputError, match="noise = 'auto' is between copies of one source"):
        read_plan(tmp_path / "plan.toml")
    (tmp_path / "plan.toml").write_text(HEAD + two.replace('"auto"', "-1.0"), encoding="utf-8")
    with pytest.raises(InputError, match=r"noise is -1\.0"):
        read_plan(tmp_path / "plan.toml")
