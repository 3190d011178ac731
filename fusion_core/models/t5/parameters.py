"""The arrays of a T5 and their initial values."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.models.t5.config import T5Config
from fusion_core.models.units import Layout, Params, Space, Stack, by_name, is_norm, layers_of, shapes_of

_FEED_FORWARD = {False: ("wi",), True: ("wi_0", "wi_1")}  # whether gated -> the matrices that read the stream


def arrays(config: T5Config) -> Params:
    """Return the layout of every array: which of its axes make, and which read, the units of which space.

    The heads of all self-attention layers of a stack are one space: the stack's relative position bias has one column
    for each head of all layers (but for a umT5's), so that head h must be copied equally in every layer.
    """
    stream = Space("d_model", config.d_model, "d_model")
    norm = {"weight": Layout((stream.makes(),))}

    def attention(stack: str, kind: str, *, biased: bool) -> Params:
        heads = Space(f"{stack}.{kind}.heads", config.num_heads, "num_heads")
        parts: Params = {n: {"weight": Layout((heads.makes(config.d_kv), stream.reads()))} for n in "qkv"}
        parts["o"] = {"weight": Layout((stream.makes(), heads.reads(config.d_kv)))}
        if biased:
            buckets = config.relative_attention_num_buckets
            parts["relative_attention_bias"] = {"weight": Layout((buckets, heads.makes()))}
        return parts

    def feed_forward(name: str) -> Params:
        hidden = Space(f"{name}.d_ff", config.d_ff, "d_ff")
        into = {n: {"weight": Layout((hidden.makes(), stream.reads()))} for n in _FEED_FORWARD[config.gated]}
        return into | {"wo": {"weight": Layout((stream.makes(), hidden.reads()))}}

    def stack(name: str, depth: int, *, cross: bool) -> Params:
        blocks = {}
        for i in range(depth):
            parts = [("SelfAttention", attention(name, "SelfAttention", biased=i == 0 or config.bias_in_every_layer))]
            if cross:
                parts.append(("EncDecAttention", attention(name, "EncDecAttention", biased=False)))
            parts.append(("DenseReluDense", feed_forward(f"{name}.{i}")))
            blocks[str(i)] = {
                "layer": {str(j): {kind: part, "layer_norm": norm} for j, (kind, part) in enumerate(parts)}
            }
        return {"block": blocks, "final_layer_norm": norm}

    found: Params = {
        "shared": {"weight": Layout((config.vocab_size, stream.makes()))},
        "encoder": stack("encoder", config.num_layers, cross=False),
        "decoder": stack("decoder", config.num_decoder_layers, cross=True),
    }
    if config.own_head:
        found["lm_head"] = {"weight": Layout((config.vocab_size, stream.reads()))}
    return found


def stacks(config: T5Config) -> tuple[Stack, ...]:
    """Return the two stacks of layers."""
    return (
        layers_of("num_layers", "encoder.block", config.num_layers),
        layers_of("num_decoder_layers", "decoder.block", config.num_decoder_layers),
    )


def parameter_shapes(config: T5Config) -> Params:
    """Return the tree of shapes, as ``jax.ShapeDtypeStruct`` of float32."""
    return shapes_of(arrays(config))


@functools.lru_cache(maxsize=32)
def _numbered(config: T5Config) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {name: (i, layout.shape) for i, (name, layout) in enumerate(by_name(arrays(config)).items())}


def initial(config: T5Config, seed: int, name: str, dtype: Any) -> Array:
    """Return one array of ``init(config, seed, dtype=dtype)``, by its dotted name."""
    number, shape = _numbered(config)[name]
    if is_norm(name):
        return jnp.ones(shape, dtype)
    deviations = {
        "q": (config.d_model * config.d_kv) ** -0.5,
        "o": config.inner_dim**-0.5,
        "wo": config.d_ff**-0.5,
        "shared": 1.0,
        "lm_head": 1.0,
    }
    deviation = deviations.get(name.split(".")[-2], config.d_model**-0.5)
    # NumPy's generator: the same numbers in every version of JAX, and nothing to compile
    normal = np.random.default_rng((seed, number)).standard_normal(shape, np.float32)
    return jnp.asarray(deviation * normal, dtype)


def init(config: T5Config, seed: int, *, match_cross_attention: bool = False, dtype: Any = jnp.float32) -> Params:
    """Return random parameters with the reference's standard deviations; equal seeds give equal parameters.

    q: (d·d_kv)^-½, since attention logits are not divided by √d_kv; k, v, wi and the relative bias: d^-½; o: inner^-½;
    wo: d_ff^-½; embedding and untied head: 1; norm scales: the constant 1.

    Args:
      config: the network's configuration.
      seed: non-negative seed.
      match_cross_attention: whether to start each cross-attention with ``q = k / √d_kv``, so that a decoder token attends
        to equal tokens of the source, above all a sentinel to the span that it stands for. Small networks otherwise
        spend a large part of a short run on a plateau before they attend to the source at all (figures: docs/demo.md).
      dtype: dtype of the parameters.

    Source: the initialisation of Hugging Face's ``T5PreTrainedModel``.
    """
    shapes = parameter_shapes(config)
    drawn = [initial(config, seed, name, dtype) for name in by_name(shapes)]
    params = jax.tree.unflatten(jax.tree.structure(shapes), drawn)
    if match_cross_attention:
        for block in params["decoder"]["block"].values():
            weights = block["layer"]["1"]["EncDecAttention"]
            weights["q"]["weight"] = weights["k"]["weight"] * config.d_kv**-0.5
    return params
