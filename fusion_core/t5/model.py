"""T5 as pure functions of a nested dict of arrays, in Hugging Face's names and PyTorch's orientation (out × in).

Suffixes name axes: B batch, T target length, S source length, D d_model, H heads, K d_kv, V vocabulary.

Two habits make it fast on a CPU, where XLA reduces over leading axes slowly: whatever is broadcast over the batch is
broadcast by a product with ones, so that its gradient is a product too; and q, k and v are one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fusion_core.t5.config import T5Config

Params = dict[str, Any]
Norm = Callable[[Params, Array], Array]  # (a norm's arrays, activations) -> normed activations

MASKED = -1e9  # added to a logit of attention that must not be; finite, so that a fully masked row stays finite


def _broadcast_over(n: int, x: Array) -> Array:
    """``x`` repeated along a new leading axis of length n, whose gradient is a product rather than a reduction."""
    return (jnp.ones((n, 1), x.dtype) @ x.reshape(1, -1)).reshape(n, *x.shape)


def unit_rms(x: Array, epsilon: float, groups: tuple[int, ...] = ()) -> Array:
    """``x / sqrt(mean(x²) + ε)`` along the last axis, over each group of its entries alone where groups are given.

    The mean square is in float32 at least.
    """
    if len(groups) > 1:
        parts = jnp.split(x, np.cumsum(groups)[:-1].tolist(), axis=-1)
        return jnp.concatenate([unit_rms(part, epsilon) for part in parts], axis=-1)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype)


def rms_norm(weight_D: Array, x_BxTxD: Array, epsilon: float, groups: tuple[int, ...] = ()) -> Array:
    """``unit_rms(x) · w``: no mean is subtracted, no bias added."""
    batch, length, width = x_BxTxD.shape
    scales = _broadcast_over(batch * length, weight_D).reshape(batch, length, width)
    return unit_rms(x_BxTxD, epsilon, groups) * scales


def relative_buckets(queries: int, keys: int, config: T5Config, *, bidirectional: bool) -> np.ndarray:
    """Bucket of the distance (key position − query position), an integer matrix [queries, keys].

    Half of the buckets hold exact distances, the others grow logarithmically up to ``relative_attention_max_distance``.
    Bidirectional: the upper half of the buckets is for keys after the query. Causal: later keys share bucket 0.
    Source: Raffel et al. (2020), section 2.1; same numbers as the reference implementation.
    """
    buckets, farthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    result = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        result += (distance > 0) * buckets
        distance = np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    exact = buckets // 2
    # float32, as the reference has it: the bucket of a distance on a boundary depends on the rounding
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(farthest / exact)
    )
    logarithmic = exact + (ratio * (buckets - exact)).astype(distance.dtype)
    return result + np.where(distance < exact, distance, np.minimum(logarithmic, buckets - 1))


def position_bias(weight: Array, buckets: np.ndarray) -> Float[Array, "heads queries keys"]:
    """Bias per head of every (query, key) pair; ``weight`` is [number of buckets, heads]."""
    # A one-hot product: its gradient is a product, where a gather's would be a scatter over all pairs.
    one_hot = (buckets.reshape(-1, 1) == np.arange(weight.shape[0])).astype(np.float32)
    table = jnp.asarray(one_hot, weight.dtype) @ weight
    return table.T.reshape(weight.shape[1], *buckets.shape)


def attention(
    weights: Params, config: T5Config, x_BxTxD: Array, memory_BxSxD: Array | None, bias_BxHxTxS: Array | None
) -> Array:
    """Multi-head attention of x on itself, or on ``memory``; T5 does not divide the logits by √K.

    ``bias`` holds position bias and mask, already broadcast over the batch.
    """
    heads, width = config.num_heads, config.d_kv
    q_w, k_w, v_w = (weights[n]["weight"] for n in "qkv")

    def split(flat: Array) -> Array:
        return flat.reshape(*flat.shape[:2], heads, width)

    if memory_BxSxD is None:
        qkv = x_BxTxD @ jnp.concatenate([q_w, k_w, v_w]).T
        q, k, v = (split(part) for part in jnp.split(qkv, 3, axis=-1))
    else:
        q = split(x_BxTxD @ q_w.T)
        k, v = (split(part) for part in jnp.split(memory_BxSxD @ jnp.concatenate([k_w, v_w]).T, 2, axis=-1))
    logits = jnp.einsum("bthk,bshk->bhts", q, k)
    if bias_BxHxTxS is not None:
        logits = logits + bias_BxHxTxS
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # bf16 loses the tail of the softmax
    probabilities = jax.nn.softmax(wide, axis=-1).astype(x_BxTxD.dtype)
    mixed = jnp.einsum("bhts,bshk->bthk", probabilities, v)
    return mixed.reshape(*mixed.shape[:2], heads * width) @ weights["o"]["weight"].T


def feed_forward(weights: Params, config: T5Config, x_BxTxD: Array) -> Array:
    if config.gated:
        gate = jax.nn.gelu(x_BxTxD @ weights["wi_0"]["weight"].T, approximate=True)
        hidden = gate * (x_BxTxD @ weights["wi_1"]["weight"].T)
    else:
        hidden = jax.nn.relu(x_BxTxD @ weights["wi"]["weight"].T)
    return hidden @ weights["wo"]["weight"].T


def _stack(
    params: Params,
    config: T5Config,
    x: Array,
    depth: int,
    bias: Array,
    memory: Array | None,
    cross_bias: Array | None,
    norm: Norm,
) -> Array:
    for i in range(depth):
        layers = params["block"][str(i)]["layer"]
        inner = norm(layers["0"]["layer_norm"], x)
        x = x + attention(layers["0"]["SelfAttention"], config, inner, None, bias)
        if memory is not None:
            inner = norm(layers["1"]["layer_norm"], x)
            x = x + attention(layers["1"]["EncDecAttention"], config, inner, memory, cross_bias)
        last = layers["1" if memory is None else "2"]
        x = x + feed_forward(last["DenseReluDense"], config, norm(last["layer_norm"], x))
    return norm(params["final_layer_norm"], x)


def _self_bias(stack: Params, length: int, batch: int, config: T5Config, *, bidirectional: bool) -> Array:
    weight = stack["block"]["0"]["layer"]["0"]["SelfAttention"]["relative_attention_bias"]["weight"]
    bias = position_bias(weight, relative_buckets(length, length, config, bidirectional=bidirectional))
    return _broadcast_over(batch, bias)


def forward(
    params: Params,
    config: T5Config,
    encoder_ids: Int[Array, "batch source"],
    decoder_ids: Int[Array, "batch target"],
    encoder_mask: Bool[Array, "batch source"] | None = None,
) -> Float[Array, "batch target vocabulary"]:
    """Logits of the next token at every target position.

    Args:
      params: as ``init`` or ``load_pretrained`` give them.
      config: the shape that the params have.
      encoder_ids: source tokens.
      decoder_ids: target tokens shifted right, beginning with ``decoder_start_token_id``.
      encoder_mask: true where a source token counts; None: all do.

    Returns:
      Logits in the params' dtype. Tied: ``(h / √d_model) Eᵀ``; untied: ``h lm_headᵀ``.

    Source: Raffel et al. (2020); weights and numbers as Hugging Face's ``T5ForConditionalGeneration``.
    """

    def norm(parts: Params, x: Array) -> Array:
        return rms_norm(parts["weight"], x, config.layer_norm_epsilon, config.norm_groups)

    return normed_forward(params, config, encoder_ids, decoder_ids, encoder_mask, norm)


def normed_forward(
    params: Params, config: T5Config, encoder_ids: Array, decoder_ids: Array, encoder_mask: Array | None, norm: Norm
) -> Array:
    """``forward`` with any norm: a calibration watches what the norms see."""
    embedding = params["shared"]["weight"]
    batch, source = encoder_ids.shape
    target = decoder_ids.shape[1]

    bias = _self_bias(params["encoder"], source, batch, config, bidirectional=True)
    cross_bias = None
    if encoder_mask is not None:
        cross_bias = jnp.where(encoder_mask[:, None, None, :], 0.0, MASKED).astype(embedding.dtype)
        bias = bias + cross_bias
    memory = _stack(params["encoder"], config, embedding[encoder_ids], config.num_layers, bias, None, None, norm)

    causal = np.where(np.tril(np.ones((target, target), bool)), 0.0, MASKED)
    bias = _self_bias(params["decoder"], target, batch, config, bidirectional=False) + causal.astype(embedding.dtype)
    hidden = _stack(
        params["decoder"], config, embedding[decoder_ids], config.num_decoder_layers, bias, memory, cross_bias, norm
    )
    if config.tie_word_embeddings:
        return (hidden * config.d_model**-0.5) @ embedding.T
    return hidden @ params["lm_head"]["weight"].T


def shifted_right(targets: Array, config: T5Config) -> Array:
    """What the decoder reads to predict ``targets``: the start token, then all of them but the last."""
    start = jnp.full_like(targets[:, :1], config.decoder_start_token_id)
    return jnp.concatenate([start, targets[:, :-1]], axis=1)


def token_loss(
    params: Params,
    config: T5Config,
    encoder_ids: Int[Array, "batch source"],
    targets: Int[Array, "batch target"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the targets' cross-entropies in nats, and their number; targets equal to the pad id do not count.

    The two are returned apart so that means over devices and batches are means over tokens.
    """
    decoder_ids = shifted_right(targets, config)
    logits = forward(params, config, encoder_ids, decoder_ids, encoder_ids != config.pad_token_id)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    counts = (targets != config.pad_token_id).astype(logits.dtype)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.sum(losses * counts), jnp.sum(counts)


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
