"""A T5's decoder one token at a time, with the keys and values of encoder and earlier tokens computed once and kept.

Suffixes as in ``model``, and N: sequences of one source (beams), L: length of the cache in positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import MASKED, Params, encode, feed_forward, position_bias, relative_buckets, rms_norm

Layers = tuple[tuple[Array, Array], ...]  # keys and values of every decoder layer


class Memory(NamedTuple):
    """The decoder's inputs that do not depend on the tokens decoded so far."""

    keys_values: Layers  # keys and values of the cross-attentions, each [B, H, S, K]
    mask_BxS: Array  # summand of the cross-attentions' logits: 0 or MASKED
    bias_HxL: Array  # self-attention's bias at the distances L − 1, ..., 1, 0


def _norm(weights: Params, config: T5Config, x_BxTxD: Array) -> Array:
    return rms_norm(weights["layer_norm"]["weight"], x_BxTxD, config.layer_norm_epsilon, config.norm_groups)


def _final(stack: Params, config: T5Config, x_BxTxD: Array) -> Array:
    return rms_norm(stack["final_layer_norm"]["weight"], x_BxTxD, config.layer_norm_epsilon, config.norm_groups)


def _heads(x: Array, weight: Array, config: T5Config) -> Array:
    """Return ``x Wᵀ`` as [B, length, H, K]."""
    return (x @ weight.T).reshape(*x.shape[:2], config.num_heads, config.d_kv)


def _softmax(logits: Array) -> Array:
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # bf16 loses the tail of the softmax
    return jax.nn.softmax(wide, axis=-1).astype(logits.dtype)


def _relative_bias(stack: Params) -> Array:
    return stack["block"]["0"]["layer"]["0"]["SelfAttention"]["relative_attention_bias"]["weight"]


def remember(
    params: Params,
    config: T5Config,
    encoder_ids: Int[Array, "batch source"],
    mask: Bool[Array, "batch source"],
    length: int,
) -> Memory:
    """Return the ``Memory`` for decoding ``length`` positions: run the encoder, compute cross-attention's keys and values.

    Args:
      params, config: the network.
      encoder_ids: tokens of the sources.
      mask: true where a source token counts.
      length: positions that will be decoded.
    """
    encoded = encode(params, config, encoder_ids, mask)
    stack, pairs = params["decoder"], []
    for i in range(config.num_decoder_layers):
        weights = stack["block"][str(i)]["layer"]["1"]["EncDecAttention"]
        k, v = (_heads(encoded, weights[name]["weight"], config).swapaxes(1, 2) for name in "kv")
        pairs.append((k, v))
    # a causal bias depends on the distance alone: one key and the queries at each distance after it are enough
    by_distance = position_bias(_relative_bias(stack), relative_buckets(length, 1, config, bidirectional=False))
    added = jnp.where(mask, 0.0, MASKED).astype(encoded.dtype)
    return Memory(tuple(pairs), added, by_distance[:, ::-1, 0])


def empty_cache(params: Params, config: T5Config, batch: int, sequences: int, length: int) -> Layers:
    """Return zeros [B, N, H, L, K] for keys and values of every decoder layer."""
    zeros = jnp.zeros((batch, sequences, config.num_heads, length, config.d_kv), params["shared"]["weight"].dtype)
    return ((zeros, zeros),) * config.num_decoder_layers


def next_logits(
    params: Params, config: T5Config, memory: Memory, cache: Layers, token_BxN: Array, position: Any
) -> tuple[Float[Array, "batch sequences vocabulary"], Layers]:
    """Return the logits after each sequence's token at ``position`` (from 0), and the cache with its keys and values.

    Args:
      params, config: the network.
      memory: the encoded sources, with the number of positions of the cache.
      cache: keys and values of the positions before; entries at later ones are not read.
      token_BxN: last token of each sequence.
      position: number of that token's position; may be traced.
    """
    stack, length = params["decoder"], memory.bias_HxL.shape[1]
    x = params["shared"]["weight"][token_BxN]
    # Keys s ≤ position, at distance position − s: the last position + 1 columns of the bias, moved to the front.
    padded = jnp.pad(memory.bias_HxL, ((0, 0), (0, length)), constant_values=MASKED)
    bias = jax.lax.dynamic_slice_in_dim(padded, length - 1 - position, length, axis=1)
    kept = []
    for i in range(config.num_decoder_layers):
        layers = stack["block"][str(i)]["layer"]
        weights, inner = layers["0"]["SelfAttention"], _norm(layers["0"], config, x)
        q, k, v = (_heads(inner, weights[name]["weight"], config) for name in "qkv")
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new[:, :, :, None], position, axis=3)
            for old, new in zip(cache[i], (k, v), strict=True)
        )
        kept.append((keys, values))
        shares = _softmax(jnp.einsum("bnhk,bnhlk->bnhl", q, keys) + bias)
        mixed = jnp.einsum("bnhl,bnhlk->bnhk", shares, values)
        x = x + mixed.reshape(*x.shape[:2], -1) @ weights["o"]["weight"].T

        weights, inner = layers["1"]["EncDecAttention"], _norm(layers["1"], config, x)
        keys, values = memory.keys_values[i]
        q = _heads(inner, weights["q"]["weight"], config)
        shares = _softmax(jnp.einsum("bnhk,bhsk->bnhs", q, keys) + memory.mask_BxS[:, None, None])
        mixed = jnp.einsum("bnhs,bhsk->bnhk", shares, values)
        x = x + mixed.reshape(*x.shape[:2], -1) @ weights["o"]["weight"].T

        x = x + feed_forward(layers["2"]["DenseReluDense"], config, _norm(layers["2"], config, x))
    x = _final(stack, config, x)
    if config.tie_word_embeddings:
        logits = (x * config.d_model**-0.5) @ params["shared"]["weight"].T
    else:
        logits = x @ params["lm_head"]["weight"].T
    return logits, tuple(kept)
