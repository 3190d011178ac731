"""What training does across a fusion: optimizer states, the loss and its slope, and where growing commutes with a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.growth.maps import Block, GrowthMap, Rule
from fusion_core.growth.units import beside
from fusion_core.models.decoder import model
from fusion_core.models.registry import parameter_shapes
from fusion_core.models.units import Space, by_name
from fusion_core.train import adafactor, displacement, grow_optimizer_state, grow_states, init_state
from tests.strategies import decoders
from tests.strategies.networks import random_mlp, shape_tree
from toy_models import mlp

SIZES = (3, 9, 8, 2)  # from 8 on, Adafactor factors
CONFIG = fc.MLPConfig(SIZES)
OPTIMIZERS = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.8),
    "adam": optax.adam(1.0, eps=1e-16),
    "adafactor": adafactor(),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20, 3))
    return jnp.asarray(x), jnp.asarray(np.tanh(x @ rng.standard_normal((3, 2))))


def loss(params, batch):
    x, y = batch
    return jnp.mean((mlp.forward(params, x) - y) ** 2)


gradient = jax.jit(jax.grad(loss))
value = jax.jit(loss)
function = jax.jit(mlp.forward)


def source(seed=0):
    return random_mlp(SIZES, seed, jnp.float64)


@functools.cache
def trained(name):
    """The state after a few steps, so that the moments are those of a run."""
    with jax.enable_x64(True):
        state = init_state(source(), OPTIMIZERS[name], 0.01)
        for _ in range(4):
            state = stepped(name, state)
        return state


def stepped(name, state, batch=None):
    move, opt_state = displacement(OPTIMIZERS[name], gradient(state.params, batch or data()), state)
    return state._replace(params=optax.apply_updates(state.params, move), opt_state=opt_state, step=state.step + 1)


def accumulated(name, params, batches):
    """The optimizer's state after gradients at ``params``."""
    state = OPTIMIZERS[name].init(params)
    for batch in batches:
        _, state = OPTIMIZERS[name].update(gradient(params, batch), state, params)
    return state


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.3, 0.5)])
@pytest.mark.parametrize("name", ["momentum", "adam", "adafactor"])
def test_the_grown_state_of_copies_is_what_the_grown_network_accumulates(name, weights):
    """Collect moments, then grow: the same as growing and then collecting them; off the diagonal too."""
    k, params, batches = len(weights), source(), [data(0), data(1)]
    mapping = fc.fusion_map([CONFIG] * k, weights)
    found = grow_optimizer_state(mapping, [accumulated(name, params, batches)] * k, copies=True)
    wanted = accumulated(name, mapping.embed([params] * k), batches)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    tolerance = 1e-9
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(np.abs(theirs).max()))


def test_between_different_sources_second_moments_are_off_by_the_predicted_factor():
    """One sample and a linear loss: block (a, b) of the gradient is δ_a x_bᵀ with the sources' own δ and x, so the estimate
    is the truth times √(mean x_a² · mean δ_b² / (mean δ_a² · mean x_b²)), one factor a block."""
    sources = [source(0), source(1)]
    mapping = fc.fusion_map([CONFIG] * 2)
    x = jnp.asarray([[0.3, -1.0, 0.7]])
    slope = jax.jit(jax.grad(lambda p: jnp.sum(mlp.forward(p, x) * jnp.asarray([1.0, -2.0]))))
    grads = [slope(p) for p in sources]
    state = lambda g: optax.ScaleByAdamState(jnp.asarray(1), g, jax.tree.map(jnp.square, g))
    found = grow_optimizer_state(mapping, [state(g) for g in grads])
    wanted = state(slope(mapping.embed(sources)))
    ours, theirs = (np.asarray(s.nu["layers"][1]["weight"]) for s in (found, wanted))
    np.testing.assert_allclose(ours[:8, :9], theirs[:8, :9], rtol=1e-9)
    np.testing.assert_allclose(ours[8:, 9:], theirs[8:, 9:], rtol=1e-9)
    deltas = [np.mean(np.asarray(g["layers"][1]["bias"]) ** 2) for g in grads]
    inputs = [np.mean(np.asarray(g["layers"][1]["weight"]) ** 2) / d for g, d in zip(grads, deltas, strict=True)]
    factor = np.sqrt(inputs[0] * deltas[1] / (deltas[0] * inputs[1]))
    np.testing.assert_allclose(ours[:8, 9:], factor * theirs[:8, 9:], rtol=1e-9)
    np.testing.assert_allclose(ours[8:, :9], theirs[8:, :9] / factor, rtol=1e-9)
    assert abs(factor - 1) > 0.05
    # first moments between different sources start at zero
    assert not np.asarray(found.mu["layers"][1]["weight"])[:8, 9:].any()


def alone(sizes):
    """The map of one square matrix, in × out, of sources of these sizes."""
    struct = [jax.ShapeDtypeStruct((n, n), jnp.float64) for n in sizes]
    spaces = [Space("units", n, "") for n in sizes]
    axes = (beside(tuple(space.reads() for space in spaces)), beside(tuple(space.makes() for space in spaces)))
    rule = Rule(tuple(Block(i, "w", 1.0, 0.5) for i in range(2)), axes, (sum(sizes), sum(sizes)))
    return GrowthMap({"w": rule}, tuple({"w": x} for x in struct), None, (0.5, 0.5))


def test_packed_moments_grow_part_by_part():
    """q, k and v of one array: their second moments between sources come from their own means."""
    configs = [decoders.small("gpt2", i) for i in range(2)]
    mapping, rng = fc.fusion_map(configs), np.random.default_rng(0)
    moments = [jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape)), tree) for tree in mapping.shapes]
    state = lambda m: optax.ScaleByAdamState(jnp.asarray(1), m, m)
    packed = lambda tree: np.split(tree["transformer"]["h"]["0"]["attn"]["c_attn"]["weight"], 3, axis=1)
    grown = packed(grow_optimizer_state(mapping, [state(m) for m in moments]).nu)
    for part, *own in zip(grown, *map(packed, moments), strict=True):
        wanted = grow_optimizer_state(alone((8, 12)), [state({"w": jnp.asarray(m)}) for m in own]).nu["w"]
        np.testing.assert_allclose(part, wanted, rtol=1e-12)
        assert np.asarray(part).all()


def test_factored_moments_of_convolutions_grow():
    """Adafactor factors the two channel axes; the kernel's axes stay."""
    configs = [fc.ConvConfig((2, n, n + 1), 3, 4) for n in (8, 10)]
    mapping, optimizer, rng = fc.fusion_map(configs), OPTIMIZERS["adafactor"], np.random.default_rng(0)
    states = []
    for tree in mapping.shapes:
        g = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), tree)
        states.append(optimizer.update(g, optimizer.init(g), g)[1])
    found = grow_optimizer_state(mapping, states)[0]
    wanted = jax.eval_shape(optimizer.init, jax.eval_shape(mapping.embed, mapping.shapes))[0]
    assert shape_tree(found) == shape_tree(wanted)
    hidden = lambda state: np.asarray(state.v_row["convolutions"][1]["weight"])
    np.testing.assert_allclose(hidden(found)[:8], 0.25 * hidden(states[0][0]), rtol=1e-12)


# Operators: their maps carry states as those of fusions do.

GROWING = {"momentum": OPTIMIZERS["momentum"], "adam": OPTIMIZERS["adam"], "adafactor": OPTIMIZERS["adafactor"]}


def close(found, wanted, err_msg=""):
    assert found.shape == wanted.shape, err_msg
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * float(np.abs(wanted).max()), err_msg=err_msg)


# Adafactor's row and column factors are estimates where units have unequal numbers of copies (``growth.moments``)
EXACT = [(n, o) for n in GROWING for o in ("deep_fusion", "hypercloning", "net2net_width")]
EXACT.remove(("adafactor", "net2net_width"))


@pytest.mark.parametrize(("name", "operator"), EXACT)
def test_the_state_that_an_operator_grows_is_what_the_grown_network_accumulates(name, operator):
    params, batches = source(), [data(0), data(1)]
    grown, _ = fc.grow(params, CONFIG, operator, factor=2, seed=0)
    mapping = fc.growth_map(CONFIG, operator, factor=2, seed=0)
    found = grow_optimizer_state(mapping, [accumulated(name, params, batches)])
    wanted = accumulated(name, grown, batches)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(close, found, wanted)


@pytest.mark.parametrize("kind", ["llama, tied", "gpt2"])
@pytest.mark.parametrize("operator", ["hypercloning", "identity_layers"])
def test_adams_moments_of_a_decoder_grow_and_those_of_new_layers_begin_at_their_sources(kind, operator):
    config = decoders.small(kind)
    params, ids = decoders.random_params(config, 0, jnp.float64), decoders.tokens(config)

    def state_of(params, config):
        loss = lambda p: jnp.mean(jax.nn.logsumexp(model.forward(p, config, jnp.asarray(ids)), axis=-1) ** 2)
        return OPTIMIZERS["adam"].update(jax.jit(jax.grad(loss))(params), OPTIMIZERS["adam"].init(params))[1]

    grown, grown_config = fc.grow(params, config, operator, factor=2)
    mapping, small = fc.growth_map(config, operator, factor=2), state_of(params, config)
    found, wanted = grow_optimizer_state(mapping, [small])[0], state_of(grown, grown_config)[0]
    rules, sources = by_name(mapping.rules), by_name(small[0].nu)
    for name, rule in rules.items():
        for moment in ("mu", "nu"):
            ours, theirs = (by_name(getattr(state, moment))[name] for state in (found, wanted))
            if not rule.new:
                close(ours, theirs, name)
        if rule.new:
            assert not by_name(found.mu)[name].any()
            np.testing.assert_array_equal(by_name(found.nu)[name], sources[rule.blocks[0].name])
    assert any(rule.new for rule in rules.values()) == (operator == "identity_layers")


def test_states_of_new_layers_of_other_shapes_begin_at_the_mean_of_their_sources():
    config = fc.MLPConfig((3, 4, 2))
    params = random_mlp(config.sizes, 0, jnp.float64)
    state = init_state(params, OPTIMIZERS["adam"], 0.01)
    moments = jax.tree.map(jnp.square, params)
    state = state._replace(opt_state=(optax.ScaleByAdamState(jnp.asarray(1), moments, moments), *state.opt_state[1:]))
    mapping = fc.growth_map(config, "net2net_depth", depth=1)
    factors = jax.tree.map(lambda _: 1.0, mapping.rules)
    grown = grow_states(mapping, [state], factors)
    nu = grown.opt_state[0].nu["layers"]
    assert shape_tree(grown.params) == shape_tree(parameter_shapes(mapping.config)) == shape_tree(grown.opt_state[0].nu)
    np.testing.assert_allclose(nu[1]["weight"], np.full((4, 4), np.mean(moments["layers"][0]["weight"])))
    np.testing.assert_array_equal(nu[2]["weight"], moments["layers"][1]["weight"])
    assert not grown.opt_state[0].mu["layers"][1]["weight"].any()


def test_rates_of_every_entry_are_carried_across_two_growths():
    """Net2Net gives copies rates of their own; the next growth copies them with the units."""
    params = source()
    factors = fc.growth_rate_factors(params, CONFIG, "net2net_width", "sgd", width=(11, 9), seed=0)
    once = grow_states(
        fc.growth_map(CONFIG, "net2net_width", width=(11, 9), seed=0),
        [init_state(params, OPTIMIZERS["sgd"], 0.5)],
        factors,
    )
    assert once.rates["layers"][1]["weight"].shape == (9, 11)
    config = fc.MLPConfig((3, 11, 9, 2))
    ones = jax.tree.map(lambda _: 1.0, once.params)
    twice = grow_states(fc.growth_map(config, "deep_fusion", factor=2), [once], ones)
    np.testing.assert_array_equal(
        twice.rates["layers"][1]["weight"], np.tile(once.rates["layers"][1]["weight"], (2, 2))
    )


def test_a_state_that_is_not_known_is_refused():
    params = source()
    state = optax.lion(0.1).init(params)
    with pytest.raises(
        fc.InputError, match=r"an optimizer state of type ScaleByLionState holds arrays that no growth rule"
    ):
        grow_optimizer_state(fc.fusion_map([CONFIG] * 2), [state, state])


def slopes(name, state, batch):
    """First-order change of the loss of one step, array by array, in units of the rate."""
    move, _ = displacement(OPTIMIZERS[name], gradient(state.params, batch), state)
    grads = gradient(state.params, batch)
    return np.asarray([float(jnp.vdot(g, m)) for g, m in zip(*map(jax.tree.leaves, (grads, move)), strict=True)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_growing_in_the_middle_of_a_run_keeps_the_loss_and_its_slope(name):
    """With the rate factors the slope is the small network's; without them it is off, array by array, by their inverse."""
    k, state, batch = 2, trained(name), data()
    mapping = fc.fusion_map([CONFIG] * k)
    rates = fc.rate_factors(state.params, CONFIG, k, "sgd" if name == "momentum" else name)
    ones = jax.tree.map(lambda _: 1.0, rates)
    with_factors, without = (grow_states(mapping, [state] * k, f, copies=True) for f in (rates, ones))
    assert int(with_factors.step) == int(state.step)
    assert float(value(with_factors.params, batch)) == pytest.approx(float(value(state.params, batch)), rel=1e-13)
    small = slopes(name, state, batch)
    # Adafactor's clipping and its floor on a parameter's size are the only things that the factors leave out
    tolerance = 1e-6 if name != "adafactor" else 2e-2
    np.testing.assert_allclose(slopes(name, with_factors, batch), small, rtol=tolerance)
    predicted = small / np.asarray(jax.tree.leaves(rates))
    np.testing.assert_allclose(slopes(name, without, batch), predicted, rtol=tolerance)
    assert abs(predicted.sum() / small.sum() - 1) > 0.1
    # the curve itself, a step of finite size on either side
    after = [float(value(stepped(name, s).params, batch)) for s in (state, with_factors, without)]
    before = float(value(state.params, batch))
    drops = [before - a for a in after]
    assert drops[1] / drops[0] == pytest.approx(1, abs=0.1)
    assert abs(drops[2] / drops[0] - 1) > 0.1


def test_noise_between_copies_keeps_the_loss_and_nearly_its_slope():
    state, batch = trained("adam"), data()
    quiet = grow_states(
        fc.fusion_map([CONFIG] * 2), [state] * 2, fc.rate_factors(state.params, CONFIG, 2, "adam"), copies=True
    )
    grown, _ = fc.fuse([(state.params, CONFIG)] * 2, off_diagonal="antisymmetric", noise=0.02)
    noisy = quiet._replace(params=grown)
    assert float(value(grown, batch)) == pytest.approx(float(value(state.params, batch)), rel=1e-12)
    small, after = (slopes("adam", s, batch).sum() for s in (state, noisy))
    assert after / small == pytest.approx(1, abs=0.1)


def test_a_step_under_the_metric_of_the_fusion_commutes_with_growing():
    """J(θ − h ∇L_s) = Jθ − h J Jᵀ ∇L(Jθ), with J of one network into its k copies: theory.md, section 3."""
    params, batch, k, h = source(), data(), 3, 0.1
    mapping = fc.fusion_map([CONFIG] * k, [0.2, 0.3, 0.5])
    embed = lambda p: mapping.embed([p] * k)
    transpose = lambda v: jax.tree.map(lambda *parts: sum(parts), *mapping.transpose(v))
    descend = lambda p, g: jax.tree.map(lambda a, b: a - h * b, p, g)
    step_then_grow = embed(descend(params, gradient(params, batch)))
    grow_then_step = descend(embed(params), embed(transpose(gradient(embed(params), batch))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), grow_then_step, step_then_grow)


def test_steps_commute_with_growing_with_the_factors_and_are_off_by_the_predicted_size_without():
    """For copies under gradient descent the function after the step is the same at every rate: a row of equal blocks that
    move by g/k each moves the sum by g."""
    params, batch, k = source(), data(), 2
    mapping = fc.fusion_map([CONFIG] * k)
    grown = mapping.embed([params] * k)
    factors = fc.rate_factors(params, CONFIG, k, "sgd")
    ones = jax.tree.map(lambda _: 1.0, factors)
    descend = lambda p, g, h, f: jax.tree.map(lambda a, b, c: a - h * c * b, p, g, f)
    g, G = gradient(params, batch), gradient(grown, batch)

    def gap(h, f):
        """Outputs of grow-then-step less those of step-then-grow (which are the small network's)."""
        return np.asarray(function(descend(grown, G, h, f), batch[0]) - function(descend(params, g, h, ones), batch[0]))

    steps = [0.02 / 2**i for i in range(4)]
    order = lambda f: np.polyfit(np.log(steps), [np.log(np.abs(gap(h, f)).max()) for h in steps], 1)[0]
    assert np.abs(gap(0.3, factors)).max() < 1e-13 < 1e-3 < np.abs(gap(0.3, ones)).max()
    assert order(ones) == pytest.approx(1, abs=0.15)
    # to first order: every array's part of the small step, times what its missing factor adds
    excess = jax.tree.map(lambda a, f: -(1 / f - 1) * a, g, factors)
    predicted = jax.jvp(lambda p: mlp.forward(p, batch[0]), (params,), (excess,))[1]
    h = 1e-5
    np.testing.assert_allclose(gap(h, ones) / h, predicted, rtol=1e-2, atol=1e-3 * float(np.abs(predicted).max()))
