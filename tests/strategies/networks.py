"""Small T5s and MLPs for the tests: every feature of the large ones, compiled in a second."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import fusion_core as fc
from fusion_core.models.t5 import init, token_loss

STYLES = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}

# one compiled function a configuration and shape, in all the tests of a session
logits = jax.jit(fc.forward, static_argnums=1)


# for what runs once: half the time to compile, and the code may be slow
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def tiny(style: str = "v1.0", **changes) -> fc.T5Config:
    """A T5 with two heads, whose buckets saturate after 20 tokens; its inner width is not its width."""
    shape = {"vocab_size": 60, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2}
    heads = {"num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    return fc.T5Config(**{**shape, **heads, **STYLES[style], **changes})


def random_t5(config: fc.T5Config, seed: int):
    """Parameters with logits of scale one and norm scales away from one, so that a lost factor shows."""

    def perturb(path, leaf):
        if "norm" in path[-2].key:
            drawn = np.random.default_rng((seed, len(jax.tree_util.keystr(path)))).standard_normal(leaf.shape)
            return leaf + jnp.asarray(0.3 * drawn, leaf.dtype)
        return 0.25 * leaf if path[-2].key == "lm_head" else leaf

    return jax.tree_util.tree_map_with_path(perturb, init(config, seed))


def batch_of(config: fc.T5Config, seed: int, *, batch: int = 3, source: int = 11, target: int = 7, padded: bool = True):
    """Encoder ids, targets; with ``padded`` the rows end in different numbers of pad tokens."""
    rng = np.random.default_rng(seed)
    encoder_ids = rng.integers(1, config.vocab_size, (batch, source))
    targets = rng.integers(1, config.vocab_size, (batch, target))
    if padded:
        for row in range(1, batch):
            encoder_ids[row, source - row % source :] = 0
            targets[row, target - row % target :] = 0
    return {"encoder_ids": encoder_ids.astype(np.int32), "targets": targets.astype(np.int32)}


@functools.cache
def summed_loss(config: fc.T5Config):
    """``(params, batch) -> (sum of losses, tokens)``."""
    return lambda params, batch: token_loss(params, config, batch["encoder_ids"], batch["targets"])


@functools.cache
def mean_loss(config: fc.T5Config):
    """``(params, batch) -> mean loss``."""

    def mean(params, batch):
        total, count = summed_loss(config)(params, batch)
        return total / count

    return mean


def random_mlp(sizes, seed: int, dtype=jnp.float32):
    """Weights of scale fan-in^-½ and biases of scale ½, drawn by NumPy: nothing to compile."""
    rng = np.random.default_rng(seed)
    layers = [
        {
            "weight": jnp.asarray(rng.standard_normal((n_out, n_in)) / n_in**0.5, dtype),
            "bias": jnp.asarray(0.5 * rng.standard_normal(n_out), dtype),
        }
        for n_in, n_out in itertools.pairwise(sizes)
    ]
    return {"layers": layers}


def conv_logits(params, images):
    """A convolutional classifier: convolutions that keep the size, tanh, the mean over the image, the linear head."""
    x = images
    for layer in params["convolutions"]:
        x = jax.lax.conv_general_dilated(x, layer["weight"], (1, 1), "SAME")
        x = jnp.tanh(x + layer["bias"][:, None, None])
    return x.mean(axis=(2, 3)) @ params["head"]["weight"].T + params["head"]["bias"]


def random_like(shapes, seed):
    """A tree of random arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda struct: rng.standard_normal(struct.shape), shapes)


def shape_tree(tree):
    """The shapes of a tree of arrays, or of structs."""
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def inner(a, b):
    return sum(float(np.vdot(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
