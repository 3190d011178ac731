"""Rate factors of Llama, GPT-2 and convolutional networks, by what they are for: the velocity of the outputs.

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
from fusion_core.models.registry import parameter_shapes
from fusion_core.train import adafactor
from tests.strategies import decoders
from tests.strategies.networks import conv_logits

OPTIMIZERS = {
    "sgd": optax.sgd(1.0),
    "adam": optax.adam(1.0, eps=1e-40),  # where a gradient is exactly zero nothing moves
    "adafactor": adafactor(),
}
# every matrix has its two sides at 8 or above, fused or not, so that both have factored moments or neither has
CONFIGS = {kind: decoders.small(kind, **({"head_dim": 8} if "llama" in kind else {})) for kind in decoders.KINDS}
CONFIGS["conv"] = fc.ConvConfig((2, 8, 9), 3, 4)
CASES = [(kind, 2) for kind in CONFIGS] + [("conv", 3)]


def table(kind: str, name: str, k: int) -> dict[str, float]:
    """docs/fusion.md, Learning rates across a fusion."""
    array, part = name.split(".")[-2:]
    last_norm = array in ("norm", "ln_f") and "untied" not in kind and kind != "llama"
    if (array in ("lm_head", "head") and part == "weight") or last_norm:
        return {"sgd": 1 / k, "adam": 1 / k, "adafactor": 1}
    if name == "head.bias":
        return {"sgd": 1, "adam": 1, "adafactor": 1}
    first = name == "convolutions.0.weight"
    if part == "weight" and not first and not any(word in array for word in ("norm", "ln_", "wte", "wpe", "embed")):
        return {"sgd": 1, "adam": 1 / k, "adafactor": k**-0.5}
    return {"sgd": k, "adam": 1, "adafactor": 1}


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


@pytest.mark.parametrize(("kind", "k"), CASES)
def test_every_array_alone_moves_the_outputs_as_before_with_the_factor_and_off_by_its_inverse_without(kind, k):
    config = CONFIGS[kind]
    params, before = source(kind)
    with jax.enable_x64(True):
        fused, fused_config = fc.fuse([(params, config)] * k)
        after = velocities(fused, fused_config)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    for optimizer in OPTIMIZERS:
        factors = jax.tree.leaves(fc.rate_factors(params, config, k, optimizer))
        for name, factor, old, new in zip(names, factors, before[optimizer], after[optimizer], strict=True):
            which = f"{name}, {optimizer}"
            assert factor == pytest.approx(table(kind, name, k)[optimizer]), which
            sizes = [float(np.linalg.norm(v)) for v in (old, new)]
            assert sizes[0] > 1e-6, which
            assert np.dot(old, new) / (sizes[0] * sizes[1]) == pytest.approx(1, abs=1e-13), which
            assert sizes[1] / sizes[0] == pytest.approx(1 / factor, rel=1e-12), which
