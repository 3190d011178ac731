"""Adafactor against the paper, its preconditioner, and its state across a growth."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.train import (
    adafactor,
    displacement,
    grow_optimizer_state,
    grow_states,
    init_state,
    preconditioner,
    t5_schedule,
)
from tests.strategies.networks import STYLES, batch_of, mean_loss, random_t5, tiny

# Adafactor

MATRIX, VECTOR, NARROW = (12, 10), (5,), (30, 3)  # the last has a side too small to be factored


def gradients(seed, zero_rows=0):
    rng = np.random.default_rng(seed)
    drawn = {n: rng.standard_normal(s).astype(np.float32) for n, s in zip("mvn", (MATRIX, VECTOR, NARROW), strict=True)}
    drawn["m"][:zero_rows] = 0
    return drawn


def adafactor_by_hand(params, steps, rate):
    """Shazeer and Stern (2018), algorithm 4 with relative steps, in NumPy and float64."""
    params = {name: p.astype(np.float64) for name, p in params.items()}
    second = dict.fromkeys(params, 0.0)
    for t, grads in enumerate(steps, start=1):
        decay = 1 - t**-0.8
        for name, gradient in grads.items():
            square = gradient.astype(np.float64) ** 2 + 1e-30
            second[name] = decay * second[name] + (1 - decay) * square
            estimate = second[name]
            if min(gradient.shape) >= 8:
                rows, columns = estimate.mean(axis=1), estimate.mean(axis=0)
                estimate = np.outer(rows, columns) / rows.mean()
            update = gradient / np.sqrt(estimate)
            update /= max(1.0, np.sqrt(np.mean(update**2)))
            scale = max(1e-3, np.sqrt(np.mean(params[name] ** 2)))
            params[name] -= rate(t - 1) * scale * update
    return params


def test_adafactor_is_the_papers():
    schedule, optimizer = t5_schedule(warmup=2), adafactor()
    params = gradients(9)
    steps = [gradients(i) for i in range(4)]
    wanted = adafactor_by_hand(params, steps, lambda n: 0.05 * math.sqrt(2 / max(n, 2)))
    state = init_state(jax.tree.map(jnp.asarray, params), optimizer, 0.05)
    move = jax.jit(lambda grads, state: displacement(optimizer, grads, state, schedule(state.step)))
    for grads in steps:
        update, opt_state = move(grads, state)
        params = optax.apply_updates(state.params, update)
        state = state._replace(params=params, opt_state=opt_state, step=state.step + 1)
    jax.tree.map(lambda p, w: np.testing.assert_allclose(p, w, rtol=1e-4, atol=1e-5), state.params, wanted)


def test_the_rate_is_a_factor_on_optaxs_own_schedule():
    schedule = t5_schedule(warmup=2)
    ours, theirs = adafactor(), optax.adafactor(lambda n: 0.03 * schedule(n), min_dim_size_to_factor=8)
    params = jax.tree.map(jnp.asarray, gradients(9))
    state, their_state = init_state(params, ours, 0.03), theirs.init(params)
    for i in range(4):
        move, opt_state = jax.jit(lambda g, s: displacement(ours, g, s, schedule(s.step)))(gradients(i), state)
        state = state._replace(opt_state=opt_state, step=state.step + 1)
        update, their_state = jax.jit(theirs.update)(gradients(i), their_state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), move, update)


def test_the_schedule_is_constant_and_then_the_inverse_square_root():
    schedule = t5_schedule()
    values = [float(schedule(n)) for n in (0, 1, 10_000, 40_000, 1_000_000)]
    assert values == pytest.approx([1, 1, 1, 0.5, 0.1], rel=1e-6)


def test_a_schedule_without_warmup_is_refused():
    with pytest.raises(fc.InputError, match="warmup is 0 steps; it must be at least 1"):
        t5_schedule(0)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("zero_rows", [0, 3])
def test_the_update_is_the_gradient_times_the_preconditioner(steps, zero_rows):
    """Also where rows of the gradient are, and always were, exactly zero: tokens that do not occur."""
    optimizer = adafactor()
    params = jax.tree.map(jnp.asarray, gradients(9))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(steps - 1):
        _, state = update(gradients(i, zero_rows), state, params)
    # much larger than those before, so that the update is clipped, by a factor that the zeros have no part in
    grads = jax.tree.map(lambda g: 20 * g, gradients(steps, zero_rows))
    metric = jax.jit(lambda g, s: preconditioner(optimizer, g, s, params))(grads, state)
    wanted, _ = update(grads, state, params)
    jax.tree.map(lambda m, g, u: np.testing.assert_allclose(-m * g, u, rtol=2e-5, atol=1e-9), metric, grads, wanted)
    for leaf in jax.tree.leaves(metric):
        assert np.isfinite(leaf).all()
        assert (np.asarray(leaf) > 0).all()


# Optimizer states across a growth

# the fused embedding is wider than it is high, a source's is not; the fused relative bias is factored, a source's is not
GROWING = {"vocab_size": 24, "num_heads": 4, "d_kv": 3, "num_layers": 1, "num_decoder_layers": 1}


def accumulated(optimizer, params, config, seeds=(0, 1)):
    """The optimizer's state after gradients of two batches, both at ``params``."""
    state = optimizer.init(params)
    step = jax.jit(lambda s, b: optimizer.update(jax.grad(mean_loss(config))(params, b), s, params)[1])
    for seed in seeds:
        state = step(state, batch_of(config, seed))
    return state


@pytest.fixture(scope="module", params=sorted(STYLES))
def grower(request):
    """(params, config, optimizer, the optimizer's state)."""
    config = tiny(request.param, **GROWING)
    params, optimizer = random_t5(config, 0), adafactor()
    return params, config, optimizer, accumulated(optimizer, params, config)


@pytest.mark.parametrize("copies", [2, 3])
def test_the_fused_optimizer_state_of_copies_is_what_the_fused_network_accumulates(grower, copies):
    params, config, optimizer, state = grower
    mapping = fc.fusion_map([config] * copies)
    fused, fused_config = mapping.embed([params] * copies), fc.growth.fused_config([config] * copies)
    found = grow_optimizer_state(mapping, [state] * copies)
    wanted = accumulated(optimizer, fused, fused_config)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)

    def compare(path, ours, theirs):
        assert ours.shape == theirs.shape, path
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(
            ours, theirs, rtol=1e-3, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path, simple=True)
        )

    jax.tree_util.tree_map_with_path(compare, found, wanted)


def test_the_fused_optimizer_state_of_unequal_sources_has_the_fused_networks_shapes():
    configs = [tiny("v1.1"), tiny("v1.1", d_model=10, num_heads=7, d_ff=7)]
    optimizer = adafactor()
    states = [optimizer.init(random_t5(c, i)) for i, c in enumerate(configs)]
    mapping = fc.fusion_map(configs, [0.3, 0.7])
    found = jax.eval_shape(lambda: grow_optimizer_state(mapping, states))
    shapes = fc.models.t5.parameter_shapes(fc.growth.fused_config(configs))
    wanted = jax.eval_shape(optimizer.init, shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), wanted)


def test_a_fused_training_state_keeps_the_step_and_scales_the_rates(grower):
    params, config, optimizer, opt_state = grower
    state = init_state(params, optimizer, 0.02)._replace(opt_state=opt_state, step=jnp.asarray(40, jnp.int32))
    mapping = fc.fusion_map([config] * 2)
    factors = jax.tree.unflatten(jax.tree.structure(params), range(1, 1 + len(jax.tree.leaves(params))))
    fused = grow_states(mapping, [state, state], factors)
    assert int(fused.step) == 40
    for i, rate in enumerate(jax.tree.leaves(fused.rates), start=1):
        assert float(rate) == pytest.approx(0.02 * i)
    jax.tree.map(np.testing.assert_array_equal, fused.params, mapping.embed([params, params]))
    # Adafactor's own count, on which its decay depends
    assert int(fused.opt_state[0].count) == int(opt_state[0].count) == 2
