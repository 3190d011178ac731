"""Rate factors: against one table of every architecture, and against what they are for, the velocity of the function.

After self-fusion one array alone is moved by its optimizer's update. The derivative of the outputs along that move is
parallel to the small network's, and too large by exactly the factor's inverse. Directional derivatives in float64: no step
size enters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.models.decoder import model as decoder
from fusion_core.models.registry import init, parameter_shapes
from fusion_core.models.t5 import token_loss
from fusion_core.models.units import by_name
from fusion_core.train import adafactor, displacement, grow_states, init_state
from tests.strategies import decoders
from tests.strategies.networks import conv_logits, random_mlp, tiny
from toy_models.growth_event import changes_of_function

OPTIMIZERS = {
    "sgd": optax.sgd(1.0),
    "adam": optax.adam(1.0, eps=1e-40),  # where a gradient is exactly zero nothing moves
    "adafactor": adafactor(),
}
# every matrix has its two sides at 8 or above, fused or not, so that both have factored moments or neither has
CONFIGS = {kind: decoders.small(kind, **({} if "gpt2" in kind else {"head_dim": 8})) for kind in decoders.KINDS}
CONFIGS |= {"conv": fc.ConvConfig((2, 8, 9), 3, 4), "mlp": fc.MLPConfig((3, 4, 4, 1))}
CONFIGS |= {style: tiny(style) for style in ("v1.0", "v1.1")}
MEASURED = [(kind, 2) for kind in (*decoders.KINDS, "conv")] + [("conv", 3)]

# docs/fusion.md, Learning rates across a fusion: what the array is -> the factors of k copies
TABLE = {
    "copied": lambda k: {"sgd": k, "adam": 1, "adafactor": 1},
    "hidden": lambda k: {"sgd": 1, "adam": 1 / k, "adafactor": k**-0.5},
    "last": lambda k: {"sgd": 1 / k, "adam": 1 / k, "adafactor": 1},
    "averaged": lambda k: {"sgd": 1, "adam": 1, "adafactor": 1},
    "tied T5": lambda k: {"sgd": 1, "adam": k**-0.5, "adafactor": 1},
}
LAST = ("lm_head.weight", "head.weight", "layers.2.weight")
BEFORE_A_TIED_HEAD = {
    "v1.0": ("decoder.final_layer_norm.weight",),
    "llama, tied": ("model.norm.weight",),
    "gpt2": ("transformer.ln_f.weight", "transformer.ln_f.bias"),
}


def what(kind: str, name: str) -> str:
    """What an array is, by its name alone."""
    if name in BEFORE_A_TIED_HEAD.get(kind, ()):
        return "tied T5" if kind == "v1.0" else "last"
    if name in ("head.bias", "layers.2.bias"):
        return "averaged"
    if name in LAST:
        return "last"
    array, part = name.split(".")[-2:]
    first = name in ("convolutions.0.weight", "layers.0.weight")
    copied = ("norm", "ln_", "wte", "wpe", "embed", "shared", "relative_attention_bias")
    return "copied" if part == "bias" or first or any(word in array for word in copied) else "hidden"


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_factors_of_every_array_are_the_tables(kind, k):
    config = CONFIGS[kind]
    seen = set()
    for optimizer in OPTIMIZERS:
        factors = fc.rate_factors(parameter_shapes(config), config, k, optimizer)
        for name, factor in by_name(factors).items():
            seen.add(what(kind, name))
            assert factor == pytest.approx(TABLE[what(kind, name)](k)[optimizer]), f"{name}, {optimizer}"
    assert {"copied", "hidden"} <= seen


# What they are for


def outputs(params, config):
    if isinstance(config, fc.ConvConfig):
        return conv_logits(params, jnp.asarray(np.random.default_rng(0).standard_normal((5, 2, 5, 5))))
    return decoder.forward(params, config, jnp.asarray(decoders.tokens(config)))


def loss(out):
    """Cross-entropy of arbitrary labels, with a gradient at every output."""
    labels = np.random.default_rng(1).integers(0, out.shape[-1], out.shape[:-1])
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), labels[..., None], axis=-1))


@functools.partial(jax.jit, static_argnums=1)
def _gradient(params, config):
    return jax.grad(lambda p: loss(outputs(p, config)))(params)


@jax.jit
def _updates(params, grads):
    return [o.update(grads, o.init(params), params)[0] for o in OPTIMIZERS.values()]


@functools.partial(jax.jit, static_argnums=1)
def _along(params, config, directions):
    return jax.vmap(jax.linearize(lambda p: outputs(p, config), params)[1])(directions)


def velocities(params, config):
    """For each optimizer, array by array: the derivative of the outputs along its update of that array alone."""
    grads = _gradient(params, config)
    leaves, treedef = jax.tree.flatten(params)
    updates = _updates(params, grads)

    def alone(i, *parts):
        """Array i of all directions: its updates in its own, zeros in the others'."""
        found = np.zeros((len(OPTIMIZERS), len(leaves), *parts[0].shape))
        found[:, i] = parts
        return jnp.asarray(found.reshape(-1, *parts[0].shape))

    directions = treedef.unflatten(
        [alone(i, *u) for i, u in enumerate(zip(*map(jax.tree.leaves, updates), strict=True))]
    )
    moved = np.asarray(_along(params, config, directions)).reshape(len(OPTIMIZERS), len(leaves), -1)
    return dict(zip(OPTIMIZERS, moved, strict=True))


@functools.cache
def source(kind):
    config = CONFIGS[kind]
    with jax.enable_x64(True):
        if kind == "conv":
            rng = np.random.default_rng(0)
            draw = lambda struct: jnp.asarray(0.4 * rng.standard_normal(struct.shape))
            params = jax.tree.map(draw, parameter_shapes(config))
        else:
            params = decoders.random_params(config, 0, jnp.float64)
        return params, velocities(params, config)


@pytest.mark.parametrize(("kind", "k"), MEASURED)
def test_every_array_alone_moves_the_outputs_as_before_with_the_factor_and_off_by_its_inverse_without(kind, k):
    config = CONFIGS[kind]
    params, before = source(kind)
    with jax.enable_x64(True):
        fused, fused_config = fc.fuse([(params, config)] * k)
        after = velocities(fused, fused_config)
    for optimizer in OPTIMIZERS:
        factors = by_name(fc.rate_factors(params, config, k, optimizer))
        for (name, factor), old, new in zip(factors.items(), before[optimizer], after[optimizer], strict=True):
            which = f"{name}, {optimizer}"
            sizes = [float(np.linalg.norm(v)) for v in (old, new)]
            assert sizes[0] > 1e-6, which
            assert np.dot(old, new) / (sizes[0] * sizes[1]) == pytest.approx(1, abs=1e-13), which
            assert sizes[1] / sizes[0] == pytest.approx(1 / factor, rel=1e-12), which


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("copies", [2, 3])
def test_with_the_factors_every_arrays_change_of_the_function_is_the_small_networks(optimizer, copies):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, y = jnp.asarray(rng.standard_normal((7, 3))), jnp.asarray(rng.standard_normal((7, 2)))
        params, config = random_mlp((3, 5, 4, 4, 2), 0, jnp.float64), fc.MLPConfig((3, 5, 4, 4, 2))
        grown, _ = fc.fuse([(params, config)] * copies)
        factors = fc.rate_factors(params, config, copies, optimizer)
        ones = jax.tree.map(lambda _: 1.0, factors)
        before = changes_of_function(params, ones, optimizer, x, y)
        after = changes_of_function(grown, factors, optimizer, x, y)
        without = changes_of_function(grown, ones, optimizer, x, y)
        for small, large, plain, factor in zip(before, after, without, jax.tree.leaves(factors), strict=True):
            np.testing.assert_allclose(large, small, rtol=1e-6, atol=1e-6 * float(jnp.abs(small).max()))
            np.testing.assert_allclose(factor * plain, small, rtol=1e-6, atol=1e-6 * float(jnp.abs(small).max()))


@pytest.mark.parametrize("config", [tiny("v1.0", d_kv=8), tiny("v1.1", d_kv=8)], ids=["tied", "untied"])
def test_adafactor_moves_the_logits_of_a_fused_t5_as_the_sources_with_the_factors_only(config):
    k, rate = 2, 1e-4
    optimizer = adafactor()
    rng = np.random.default_rng(0)
    source, target = (jnp.asarray(rng.integers(3, 60, (4, n)), jnp.int32) for n in (12, 6))
    loss = lambda params, config: token_loss(params, config, source, target)[0] / target.size
    logits = lambda params, config: fc.forward(params, config, source, target)

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), init(config, 0))
        state = init_state(params, optimizer, rate)
        # moments of the gradient that the step then takes: the second step of a constant gradient
        _, opt_state = displacement(optimizer, jax.grad(loss)(params, config), state)
        state = state._replace(opt_state=opt_state)
        mapping, grown = fc.fusion_map([config] * k), fc.growth.fused_config([config] * k)

        def velocity(state, config):
            move, _ = displacement(optimizer, jax.grad(loss)(state.params, config), state)
            after = optax.apply_updates(state.params, move)
            return logits(after, config) - logits(state.params, config)

        small = velocity(state, config)
        factors = fc.rate_factors(params, config, k, "adafactor")
        ones = jax.tree.map(lambda _: 1.0, factors)
        errors = [
            float(
                jnp.linalg.norm(velocity(grow_states(mapping, [state] * k, f), grown) - small) / jnp.linalg.norm(small)
            )
            for f in (factors, ones)
        ]
    # to first order in the rate
    assert errors[0] < 0.01
    assert errors[1] > 0.05


MLP = fc.MLPConfig((3, 4, 4, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copies": 1}, "copies is 1; fusion takes at least two copies"),
        ({"optimizer": "lion"}, "no rate factors for the optimizer 'lion'"),
        ({"params": {"w": 1.0}}, "the configuration's is .*; pass the two of one network"),
    ],
)
def test_impossible_factors_are_refused(change, message):
    arguments = {"params": init(MLP, 0), "config": MLP, "copies": 2, "optimizer": "adam"} | change
    with pytest.raises(fc.InputError, match=message):
        fc.rate_factors(**arguments)
