"""What training does across a fusion: optimizer states, the loss and its slope, and where growing commutes with a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.growth import operators
from fusion_core.growth.maps import GrowthMap
from fusion_core.train import adafactor, displacement, grow_optimizer_state, grow_states, init_state, t5_schedule
from tests.fusion_core.test_operators import structs
from tests.strategies import decoders
from tests.strategies.networks import random_mlp
from toy_models import mlp

SIZES = (3, 9, 8, 2)  # from 8 on, Adafactor factors
CONFIG = fc.MLPConfig(SIZES)
OPTIMIZERS = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.8),
    "adam": optax.adam(1.0, eps=1e-16),
    "adafactor": adafactor(t5_schedule()),
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


def test_packed_moments_grow_part_by_part():
    """q, k and v of one array: their second moments between sources come from their own means."""
    shapes = [{"c_attn": {"weight": (n, 3 * n)}} for n in (2, 3)]
    mapping = operators.table_map(
        {"c_attn.weight": operators.packed_conv1d(3)}, tuple(structs(list(shapes))), (0.5, 0.5)
    )
    rng = np.random.default_rng(0)
    moments = [jax.tree.map(lambda s: jnp.asarray(rng.random(s.shape)), tree) for tree in mapping.shapes]
    state = lambda m: optax.ScaleByAdamState(jnp.asarray(1), m, m)
    fused = grow_optimizer_state(mapping, [state(m) for m in moments]).nu["c_attn"]["weight"]
    part = GrowthMap({"w": operators.conv1d((0.5, 0.5))}, tuple(structs([{"w": (n, n)} for n in (2, 3)])), (0.5, 0.5))
    for j in range(3):
        own = [{"w": m["c_attn"]["weight"][:, n * j : n * (j + 1)]} for m, n in zip(moments, (2, 3), strict=True)]
        alone = grow_optimizer_state(part, [state(m) for m in own]).nu["w"]
        np.testing.assert_allclose(fused[:, 5 * j : 5 * (j + 1)], alone, rtol=1e-12)
    assert np.asarray(fused).all()


def test_factored_moments_of_convolutions_grow():
    """Adafactor factors the two channel axes; the kernel's axes stay."""
    shapes = tuple({"w": (n, n + 1, 3, 3)} for n in (8, 10))
    mapping = GrowthMap({"w": operators.dense((0.5, 0.5))}, tuple(structs(list(shapes))), (0.5, 0.5))
    optimizer, rng = OPTIMIZERS["adafactor"], np.random.default_rng(0)
    states = []
    for tree in shapes:
        g = {"w": jnp.asarray(rng.standard_normal(tree["w"]))}
        states.append(optimizer.update(g, optimizer.init(g), g)[1])
    found = grow_optimizer_state(mapping, states)[0]
    wanted = optimizer.init({"w": jnp.zeros((18, 20, 3, 3))})[0]
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, wanted)
    np.testing.assert_allclose(found.v_row["w"][:8], 0.25 * states[0][0].v_row["w"], rtol=1e-12)


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


@pytest.mark.parametrize("kind", ["llama", "llama, tied", "gpt2", "conv"])
def test_the_factors_of_every_architecture_follow_from_its_rules(kind):
    """The kinds of array of docs/fusion.md's table: first, hidden, last, and the final norm of a tied head."""
    k = 3
    config = fc.ConvConfig((2, 3, 4), 3, 5) if kind == "conv" else decoders.small(kind)
    mapping = fc.fusion_map([config] * k)
    params = jax.tree.map(lambda _: 0.0, mapping.rules)
    table = {  # (number of axes, scale) -> factors
        (1, 1.0): {"sgd": k, "adam": 1, "adafactor": 1},
        (2, 1.0): {"sgd": 1, "adam": 1 / k, "adafactor": k**-0.5},
    }
    last = {"sgd": 1 / k, "adam": 1 / k, "adafactor": 1}
    averaged = {"sgd": 1, "adam": 1, "adafactor": 1}
    for optimizer in ("sgd", "adam", "adafactor"):
        factors = fc.rate_factors(params, config, k, optimizer)
        seen = set()
        for rule, factor in zip(jax.tree.leaves(mapping.rules), jax.tree.leaves(factors), strict=True):
            key = (len(rule.axes), rule.scales[0])
            seen.add(len(rule.axes))
            wanted = averaged if not rule.axes else table.get(key, last)
            assert factor == pytest.approx(wanted[optimizer])
        assert {1, 2} <= seen
