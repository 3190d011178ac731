"""Which arrays a T5 has, and how they begin."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.models.t5.config import T5Config

Params = dict[str, Any]


def parameter_shapes(config: T5Config) -> Params:
    """Nested dict of shapes: the one table of which arrays a T5 has."""
    d, inner, heads = config.d_model, config.inner_dim, config.num_heads
    ff_in = ("wi_0", "wi_1") if config.gated else ("wi",)

    def attention_shapes(*, biased: bool) -> Params:
        shapes: Params = {n: {"weight": (inner, d)} for n in "qkv"} | {"o": {"weight": (d, inner)}}
        if biased:
            shapes["relative_attention_bias"] = {"weight": (config.relative_attention_num_buckets, heads)}
        return shapes

    def stack_shapes(depth: int, *, cross: bool) -> Params:
        blocks = {}
        for i in range(depth):
            parts = [("SelfAttention", attention_shapes(biased=i == 0))]
            if cross:
                parts.append(("EncDecAttention", attention_shapes(biased=False)))
            ff = {n: {"weight": (config.d_ff, d)} for n in ff_in} | {"wo": {"weight": (d, config.d_ff)}}
            parts.append(("DenseReluDense", ff))
            blocks[str(i)] = {
                "layer": {str(j): {name: part, "layer_norm": {"weight": (d,)}} for j, (name, part) in enumerate(parts)}
            }
        return {"block": blocks, "final_layer_norm": {"weight": (d,)}}

    shapes: Params = {
        "shared": {"weight": (config.vocab_size, d)},
        "encoder": stack_shapes(config.num_layers, cross=False),
        "decoder": stack_shapes(config.num_decoder_layers, cross=True),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head"] = {"weight": (config.vocab_size, d)}
    return shapes


def init(config: T5Config, seed: int, *, match_cross_attention: bool = False, dtype: Any = jnp.float32) -> Params:
    """Random parameters, with the reference's standard deviations. The seed alone decides them.

    q: (d·d_kv)^-½, since attention logits are not divided by √d_kv; k, v, wi and the relative bias: d^-½; o: inner^-½;
    wo: d_ff^-½; embedding and untied head: 1; norm scales: the constant 1.

    Args:
      match_cross_attention: start each cross-attention with ``q = k / √d_kv``, so that a decoder token attends to equal
        tokens of the source: above all a sentinel to the place that it stands for. Small networks otherwise spend a
        large part of a short run on a plateau before they find the source at all (see docs/demo.md for the figures).
    """
    deviations = {
        "q": (config.d_model * config.d_kv) ** -0.5,
        "o": config.inner_dim**-0.5,
        "wo": config.d_ff**-0.5,
        "shared": 1.0,
        "lm_head": 1.0,
    }
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        parameter_shapes(config), is_leaf=lambda node: isinstance(node, tuple)
    )
    arrays = []
    for i, (path, shape) in enumerate(leaves):
        name = path[-2].key
        if "norm" in name:
            arrays.append(jnp.ones(shape, dtype))
        else:
            deviation = deviations.get(name, config.d_model**-0.5)
            # NumPy's generator: the same numbers in every version of JAX, and nothing to compile
            normal = np.random.default_rng((seed, i)).standard_normal(shape, np.float32)
            arrays.append(jnp.asarray(deviation * normal, dtype))
    params = jax.tree_util.tree_unflatten(treedef, arrays)
    if match_cross_attention:
        for block in params["decoder"]["block"].values():
            weights = block["layer"]["1"]["EncDecAttention"]
            weights["q"]["weight"] = weights["k"]["weight"] * config.d_kv**-0.5
    return params
