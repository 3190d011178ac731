"""What a growth does with learning rates and optimizer state: ramps, new entries, moments that begin anew."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.growth import GROWTH_OPERATORS
from fusion_core.growth.noise import SELF_FUSION_NOISE
from fusion_core.models.registry import parameter_shapes
from fusion_core.models.units import by_name
from fusion_core.runs import FuseNode, GrowNode, read_plan, run_plan
from fusion_core.train import Interrupted, Ramp, adafactor, displacement, grow_states, init_state, rates_at
from fusion_core.train.loop import graceful_interrupt
from fusion_core.train.training import largest_rate
from tests.fusion_core.test_runs import numbers, same
from tests.strategies.networks import random_mlp, tiny
from tests.strategies.plans import HEAD, MODEL

# Which entries are new


@pytest.mark.parametrize("kind", ["MLP", "T5"])
def test_the_new_entries_of_a_fusion_are_all_but_the_first_source_s_own(kind):
    configs = [fc.MLPConfig((3, 4, 5, 2)), fc.MLPConfig((3, 6, 2, 2))]
    if kind == "T5":
        configs = [tiny("v1.1"), tiny("v1.1", d_model=10, num_heads=7, d_ff=7)]
    mapping = fc.fusion_map(configs)
    ones, zeros = (
        jax.tree.map(lambda s, value=value: jnp.full(s.shape, value), mapping.shapes[value == 0])
        for value in (1.0, 0.0)
    )
    own = by_name(mapping.embed((ones, zeros)))
    for name, rule in by_name(mapping.rules).items():
        np.testing.assert_array_equal(rule.new_entries(), own[name] == 0, err_msg=name)


def test_the_new_entries_of_copies_are_those_of_later_copies_and_of_new_layers():
    config = fc.MLPConfig((3, 4, 5, 2))
    rules = by_name(fc.growth_map(config, "hypercloning", factor=2).rules)
    wanted = np.ones((10, 8), bool)
    wanted[:5, :4] = False
    np.testing.assert_array_equal(rules["layers.1.weight"].new_entries(), wanted)
    np.testing.assert_array_equal(rules["layers.0.bias"].new_entries(), np.arange(8) >= 4)
    assert not np.any(rules["layers.2.bias"].new_entries())
    rules = by_name(fc.growth_map(config, "net2net_width", width=(6, 5), seed=0).rules)
    np.testing.assert_array_equal(rules["layers.1.weight"].new_entries(), np.tile(np.arange(6) >= 4, (5, 1)))
    for name, rule in by_name(fc.growth_map(tiny(), "identity_layers", factor=2).rules).items():
        assert np.all(rule.new_entries()) == np.any(rule.new_entries()) == rule.new, name
        assert rule.new == (".1." in name.split("layer")[0] or ".3." in name.split("layer")[0])


# Ramps


def ramped(step, first, rates=0.1, start=10, steps=4):
    params = {"w": jnp.ones((2, 3))}
    as_int = lambda n: jnp.asarray(n, jnp.int32)
    state = init_state(params, optax.sgd(1.0), 0.0)
    return state._replace(
        step=as_int(step),
        rates={"w": jnp.asarray(rates, jnp.float32)},
        ramp=Ramp({"w": jnp.asarray(first, jnp.float32)}, as_int(start), as_int(steps)),
    )


@pytest.mark.parametrize(("step", "share"), [(10, 0.25), (11, 0.5), (13, 1.0), (500, 1.0)])
@pytest.mark.parametrize("first", [0.0, 0.7, [[1.0, 0.0, 0.3], [0.0, 2.0, 1.0]]])
def test_a_step_s_rates_are_on_the_line_from_the_first_factors_to_the_state_s(step, share, first):
    state, f = ramped(step, first), np.asarray(first)
    wanted = 0.1 * (f + (1 - f) * share)
    np.testing.assert_allclose(rates_at(state)["w"], wanted, rtol=1e-6)
    move, _ = displacement(optax.sgd(1.0), {"w": jnp.full((2, 3), 2.0)}, state, 0.5)
    np.testing.assert_allclose(move["w"], np.broadcast_to(-wanted, (2, 3)), rtol=1e-6)
    if share == 1:  # exactly, so that a finished ramp leaves no trace
        assert np.all(np.asarray(rates_at(state)["w"]) == np.asarray(state.rates["w"]))
    assert largest_rate(ramped(0, first))(step) == pytest.approx(np.max(wanted), rel=1e-6)


def test_the_largest_rate_is_that_of_the_entry_that_has_it_at_this_step():
    state = ramped(0, [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]], rates=[[0.5, 0.2, 0.1], [0.3, 0.2, 0.1]])
    assert [largest_rate(state)(n) for n in (10, 13)] == pytest.approx([0.2, 0.5])


def test_a_growth_takes_the_rates_of_the_next_step_and_ends_the_ramp():
    """One rate an array stays one: the mean over entries on their way."""
    config = fc.MLPConfig((3, 4, 2))
    params = random_mlp(config.sizes, 0)
    state = init_state(params, optax.sgd(1.0), 0.1)._replace(step=jnp.asarray(11, jnp.int32))
    half = jax.tree.map(lambda p: jnp.zeros(p.shape).at[0].set(1.0), params)
    mapping = fc.growth_map(config, "hypercloning", factor=2)
    ones = jax.tree.map(lambda _: 1.0, params)
    for steps, left in ((4, 0.5), (2, 0.0)):
        ramp = Ramp(half, jnp.asarray(10, jnp.int32), jnp.asarray(steps, jnp.int32))
        grown = grow_states(mapping, [state._replace(ramp=ramp)], ones)
        assert grown.ramp == ()
        for first, rate in zip(jax.tree.leaves(half), jax.tree.leaves(grown.rates), strict=True):
            assert rate.shape == ()
            assert float(rate) == pytest.approx(0.1 * (1 - (1 - float(jnp.mean(first))) * left), rel=1e-6)


# Moments of new entries


def stepped(optimizer, state, seeds):
    for seed in seeds:
        grads = jax.tree.map(lambda p, seed=seed: (1.0 + 0.1 * seed) * p, random_mlp((3, 9, 8, 2), seed))
        _, opt_state = displacement(optimizer, grads, state)
        state = state._replace(opt_state=opt_state)
    return state


def carried_and_anew(optimizer, mapping, config):
    state = stepped(optimizer, init_state(random_mlp(config.sizes, 9), optimizer, 0.1), range(3))
    ones = jax.tree.map(lambda _: 1.0, mapping.rules)
    grow = lambda fresh: grow_states(
        mapping, [state] * 2 if mapping.several else [state], ones, copies=True, fresh_new=fresh
    )
    return grow(False).opt_state[0], grow(True).opt_state[0]


CONFIG = fc.MLPConfig((3, 9, 8, 2))  # from 8 on, Adafactor factors


def test_adam_carries_the_old_moments_and_begins_the_new_ones_anew():
    mapping = fc.fusion_map([CONFIG] * 2)
    carried, anew = carried_and_anew(optax.adam(1.0), mapping, CONFIG)
    assert int(anew.count) == int(carried.count) == 3
    for name, rule in by_name(mapping.rules).items():
        new = np.asarray(rule.new_entries())
        mu, nu = by_name(anew.mu)[name], by_name(anew.nu)[name]
        before = by_name(carried.nu)[name]
        np.testing.assert_array_equal(mu, np.where(new, 0, by_name(carried.mu)[name]), err_msg=name)
        np.testing.assert_array_equal(nu[~new], before[~new], err_msg=name)
        if new.any():
            np.testing.assert_allclose(nu[new], np.full(new.sum(), np.mean(before[new])), rtol=1e-5, err_msg=name)
            assert np.ptp(before[new]) > 0  # they did differ


@pytest.mark.parametrize("operator", ["deep_fusion", "net2net_depth"])
def test_adafactor_forgets_the_rows_and_columns_of_new_units_alone(operator):
    mapping = fc.growth_map(CONFIG, operator, **({"factor": 2} if operator == "deep_fusion" else {"depth": 2}))
    carried, anew = carried_and_anew(adafactor(), mapping, CONFIG)
    for moment in ("v_row", "v_col", "v"):
        for name, rule in by_name(mapping.rules).items():
            before, after = (np.asarray(by_name(getattr(state, moment))[name]) for state in (carried, anew))
            new = np.asarray(rule.new_entries())
            if before.shape != new.shape:  # of a factored matrix: a mean over one of its axes; or a placeholder
                sides = [axis for axis in range(new.ndim) if np.delete(new.shape, axis).tolist() == list(before.shape)]
                new = np.all(new, axis=sides[0]) if sides else np.zeros(before.shape, bool)
            np.testing.assert_array_equal(after[~new], before[~new], err_msg=f"{moment} {name}")
            if new.any():
                np.testing.assert_allclose(after[new], np.mean(before[new]), rtol=1e-5, err_msg=f"{moment} {name}")
    # a matrix of 18 × 16: the means of the 9 and 8 new units are forgotten, those of the old ones not
    if operator == "deep_fusion":
        row = np.asarray(by_name(anew.v_col)["layers.1.weight"])
        assert row.shape == (18,) or row.shape == (16,)
        half = len(row) // 2
        assert np.ptp(row[half:]) == pytest.approx(0, abs=1e-6 * float(row.max()))
        assert np.ptp(row[:half]) > 1e-3 * row.max()


# Nodes


def test_copies_of_one_network_have_noise_between_them_unless_the_plan_says_zero():
    fused = lambda *sources, **options: FuseNode(name="f", sources=sources, **options)
    assert fused("a", "a").recipe[:2] == ("antisymmetric", SELF_FUSION_NOISE)
    assert fused("a", "a", noise=0.1).recipe[:2] == ("antisymmetric", 0.1)
    assert fused("a", "b").recipe[:2] == ("zero", 0.0)
    assert fused("a", "a").never_parting == fused("a", "b").never_parting == ()
    assert fused("a", "a", off_diagonal="zero").never_parting == ("a",)
    assert fused("a", "b", "a").never_parting == ("a",)


def test_a_grow_node_takes_what_its_operator_says_unless_it_says_otherwise(monkeypatch):
    node = lambda **options: GrowNode(name="g", source_node="a", operator="hypercloning", factor=2, **options).recipe
    assert node()[2:] == ("velocity", 0, "grow")
    own = dataclasses.replace(GROWTH_OPERATORS["hypercloning"], rates="rewarm_new", optimizer_state="fresh_new")
    monkeypatch.setitem(GROWTH_OPERATORS, "hypercloning", own)
    assert node()[2:] == ("rewarm_new", 200, "fresh_new")
    assert node(rewarm=30).rewarm == 30
    assert node(rates="keep", optimizer_state="grow")[2:] == ("keep", 0, "grow")


@pytest.fixture(scope="module")
def grown(text, tmp_path_factory):
    """(plan, folder, trainers, notes) of one source and what may follow a fusion with itself."""
    folder = tmp_path_factory.mktemp("ramps")
    fusion = lambda name, *lines: "\n".join([f'[node.{name}]\nsources = ["a", "a"]', *lines, ""])
    onward = lambda name, source, steps=10: f'[node.{name}]\nfrom = "{source}"\nsteps = {steps}\n'
    nodes = (
        f"[node.a]\nmodel = {MODEL}\nsteps = 10\n[node.b]\nmodel = {MODEL}\nsteps = 5\nbase_width = 4\n"
        + fusion("w", 'rates = "rewarm"', "rewarm = 8")
        + onward("mw", "w")
        + fusion("e", 'rates = "rewarm_new"', "rewarm = 20", 'optimizer_state = "fresh_new"')
        + onward("me", "e")
        + onward("me2", "me", 5)
        + '[node.g]\nfrom = "me2"\noperator = "identity_layers"\nfactor = 2\n'
        + onward("mg", "g", 5)
        + fusion("r", 'rates = "relax"', "rewarm = 10", 'off_diagonal = "zero"')
        + onward("mr", "r")
        + '[node.s]\nfrom = "a"\noperator = "shrink_perturb"\nfactor = 2\n'
        + onward("ms", "s", 5)
    )
    head = HEAD.replace("text.txt", str(text)).replace("evaluate = 10", "evaluate = 5")
    (folder / "plan.toml").write_text(head + nodes, encoding="utf-8")
    plan, trainers, notes = read_plan(folder / "plan.toml"), {}, []
    run_plan(plan, folder / "run", trainers=trainers, note=notes.append)
    return plan, folder / "run", trainers, notes


def test_the_ramps_of_a_plan_are_in_its_records_and_checkpoints(grown):
    _, folder, trainers, notes = grown
    rates = lambda name: [r["learning_rate"] for r in numbers(folder, name)[1] if "learning_rate" in r]
    assert rates("mw") == pytest.approx([0.02 * 5 / 8, 0.02])
    assert rates("me") == pytest.approx([0.02, 0.02])  # of the old entries
    state = numbers(folder, "me2")[0]
    mapping = fc.fusion_map([read_plan(folder.parent / "plan.toml").node("a").model] * 2)
    for name, rule in by_name(mapping.rules).items():
        np.testing.assert_array_equal(state[f"ramp.first.{name}"] == 0, rule.new_entries(), err_msg=name)
        assert state[f"rates.{name}"] == np.float32(0.02)
    assert (state["ramp.start"], state["ramp.steps"]) == (10, 20)
    # the next growth ends the ramp, 15 of whose 20 steps are done: the next one would have 16/20
    last = numbers(folder, "g")[0]
    assert not any(name.startswith("ramp") for name in last)
    weight = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert last[f"rates.{weight}"] == pytest.approx(0.02 * (1 - 0.75 * 0.2))
    relaxed = numbers(folder, "mr")[0]
    config = tiny("v1.0")
    factor = by_name(fc.rate_factors(parameter_shapes(config), config, 2, "adafactor"))[weight]
    assert relaxed[f"ramp.first.{weight}"] == pytest.approx(factor)
    assert relaxed[f"rates.{weight}"] == np.float32(0.02)
    assert len(trainers) == 3  # one for each shape
    assert [note for note in notes if "rounding alone" in note] == [
        "r: with off_diagonal = 'zero' the copies of a have equal gradients, and rounding alone parts them; off_diagonal = "
        "'antisymmetric' with noise = 0.5 keeps the function and parts them"
    ]


def test_a_random_start_has_the_rates_of_a_smaller_one_carried_over(grown):
    plan, folder, _, _ = grown
    config = plan.node("b").model
    factors = by_name(fc.rate_factors(parameter_shapes(config), config, 2, "adafactor"))
    weights, _ = numbers(folder, "b")
    for name, factor in factors.items():
        assert weights[f"rates.{name}"] == pytest.approx(0.02 * factor)
    assert len(set(factors.values())) > 1


def test_a_growth_that_copies_nothing_may_have_the_rates_of_its_width(grown):
    plan, folder, _, _ = grown
    config = plan.node("a").model
    factors = by_name(fc.rate_factors(parameter_shapes(config), config, 2, "adafactor"))
    weights, _ = numbers(folder, "ms")
    for name, factor in factors.items():
        assert weights[f"rates.{name}"] == pytest.approx(0.02 * factor / max(factors.values()))


def test_a_ramp_that_is_interrupted_goes_on_bit_for_bit(grown, tmp_path):
    plan, folder, trainers, _ = grown

    def interrupt(record):
        if (record["node"], record["step"]) == ("me", 15) and "loss" in record:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted), graceful_interrupt():
        run_plan(plan, tmp_path / "run", show=interrupt, trainers=trainers)
    run_plan(plan, tmp_path / "run", trainers=trainers)
    for name in ("me", "me2", "mg"):
        same(tmp_path / "run", folder, name)
