"""T5 as pure functions of a nested dict of arrays, in Hugging Face's names and PyTorch's orientation (out × in).

Suffixes name axes: B batch, T target length, S source length, D d_model, H heads, V vocabulary. Around this file:
``products``, ``layers`` (norm, positions, feed-forward, dropout), ``attention``, ``loss``, ``parameters`` (shapes and
initialisation), ``compute`` (precision, memory and speed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fusion_core.errors import InputError
from fusion_core.models.t5.attention import MASKED as MASKED
from fusion_core.models.t5.attention import PairBias, padding_last, pair_bias
from fusion_core.models.t5.attention import attention as attention
from fusion_core.models.t5.compute import Compute
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.layers import Key, Params, dropout, keys_for, self_bias, wide_dtype
from fusion_core.models.t5.layers import feed_forward as feed_forward
from fusion_core.models.t5.layers import position_bias as position_bias
from fusion_core.models.t5.layers import relative_buckets as relative_buckets
from fusion_core.models.t5.layers import rms_norm as rms_norm
from fusion_core.models.t5.loss import token_sums
from fusion_core.models.t5.parameters import init as init
from fusion_core.models.t5.parameters import parameter_shapes as parameter_shapes
from fusion_core.models.t5.products import product

Norm = Callable[[Params, Array], Array]  # (a norm's arrays, activations) -> normed activations
Bias = Array | PairBias | None


def _block(
    weights: Params,
    config: T5Config,
    norm: Norm,
    compute: Compute,
    x: Array,
    bias: Bias,
    memory: Array | None,
    cross: Bias,
    key: Key,
) -> Array:
    """Return x after one layer: self-attention, cross-attention if there is a memory, feed-forward, each on normed x.

    Each part's output is added to x.
    """
    rate, layers, multiply, way = config.dropout_rate, weights["layer"], compute.multiply, compute.attention
    keys = iter(keys_for(key, 6))
    parts, inner = layers["0"]["SelfAttention"], norm(layers["0"]["layer_norm"], x)
    x = x + dropout(attention(parts, config, inner, None, bias, next(keys), multiply, way), rate, next(keys))
    if memory is not None:
        parts, inner = layers["1"]["EncDecAttention"], norm(layers["1"]["layer_norm"], x)
        x = x + dropout(attention(parts, config, inner, memory, cross, next(keys), multiply, way), rate, next(keys))
    last = layers["1" if memory is None else "2"]
    parts, inner = last["DenseReluDense"], norm(last["layer_norm"], x)
    return x + dropout(feed_forward(parts, config, inner, next(keys), multiply), rate, next(keys))


def _stack(
    params: Params,
    config: T5Config,
    norm: Norm,
    compute: Compute,
    x: Array,
    bias: PairBias,
    memory: Array | None,
    cross: PairBias,
    key: Key,
) -> Array:
    """Return x after all layers of the encoder (without memory) or of the decoder."""
    depth = config.num_layers if memory is None else config.num_decoder_layers
    first, last, *layer_keys = keys_for(key, depth + 2)
    biases: list[Bias] = [bias, cross]
    # on a CPU the summand of all layers' attention logits is built once; elsewhere it is cheaper to add its parts in each
    if compute.attention == "plain" and jax.default_backend() == "cpu":
        biases = [pair_bias(part, len(x)) for part in (bias, cross)]

    def layer(x: Array, parts: tuple[Params, Key]) -> tuple[Array, None]:
        weights, layer_key = parts
        if compute.dtype != "float32":
            weights = jax.tree.map(lambda w: w.astype(x.dtype), weights)
        return _block(weights, config, norm, compute, x, biases[0], memory, biases[1], layer_key), None

    if compute.remat:
        layer = jax.checkpoint(layer, prevent_cse=not compute.scan)
    x = dropout(x, config.dropout_rate, first)
    names = map(str, range(depth))
    if compute.scan:
        blocks = [_without_position_bias(params["block"][name]) for name in names]
        keys = None if key is None else jnp.stack([k for k in layer_keys if k is not None])
        x, _ = jax.lax.scan(layer, x, (jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks), keys))
    else:
        for name, layer_key in zip(names, layer_keys, strict=True):
            x, _ = layer(x, (params["block"][name], layer_key))
    return dropout(norm(params["final_layer_norm"], x), config.dropout_rate, last)


def _without_position_bias(block: Params) -> Params:
    """Return the block's parameters without the position bias, as in the layers above the first."""
    first = block["layer"]["0"]
    kept = {n: w for n, w in first["SelfAttention"].items() if n != "relative_attention_bias"}
    return block | {"layer": block["layer"] | {"0": first | {"SelfAttention": kept}}}


def _positions(stack: Params, length: int, config: T5Config, *, causal: bool) -> Array:
    """Return a stack's position bias [H, T, T], in float32 at least, with the causal mask if ``causal``."""
    if config.bias_in_every_layer:
        raise InputError(f"a {type(config).__name__} has a position bias in every layer; run it in transformers")
    weight = stack["block"]["0"]["layer"]["0"]["SelfAttention"]["relative_attention_bias"]["weight"]
    bias = self_bias(weight.astype(wide_dtype(weight.dtype)), length, config, bidirectional=not causal)
    if not causal:
        return bias
    return bias + np.where(np.tril(np.ones((length, length), bool)), 0.0, MASKED).astype(bias.dtype)


def _unmasked(mask: Array, segments: Array | None) -> Array:
    """Return the segment of every source token; masked tokens get a segment that no query has."""
    return jnp.where(mask, 1 if segments is None else segments, -1)


def _memory(
    params: Params,
    config: T5Config,
    norm: Norm,
    compute: Compute,
    ids: Array,
    segments: Array | None,
    sources: Array | None,
    key: Key,
) -> Array:
    """Return the encoder's output; ``sources`` are the segments of the tokens as keys."""
    embedding, stack = params["shared"]["weight"], params["encoder"]
    bias = PairBias(_positions(stack, ids.shape[1], config, causal=False), segments, sources)
    x = embedding[ids].astype(compute.activations(embedding.dtype))
    if compute.attention == "fused" and sources is not None:
        x = padding_last(x, sources)  # once, at the bottom: nan goes through to the loss
    return _stack(stack, config, norm, compute, x, bias, None, PairBias(None, None, None), key)


def encode(
    params: Params, config: T5Config, encoder_ids: Int[Array, "batch source"], mask: Bool[Array, "batch source"]
) -> Float[Array, "batch source width"]:
    """Return the encoder's output; the mask is true where a token counts."""
    return _memory(params, config, _norm(config), Compute(), encoder_ids, None, _unmasked(mask, None), None)


def _hidden(
    params: Params,
    config: T5Config,
    norm: Norm,
    compute: Compute,
    encoder_ids: Array,
    decoder_ids: Array,
    encoder_mask: Array | None,
    encoder_segments: Array | None,
    decoder_segments: Array | None,
    key: Key,
) -> tuple[Array, Array]:
    """Return the head's scaled input at every target position, and the head [V, D]."""
    embedding = params["shared"]["weight"]
    encoder_key, decoder_key = keys_for(key if config.dropout_rate else None, 2)
    sources = encoder_segments
    if encoder_mask is not None:
        sources = _unmasked(encoder_mask, encoder_segments)
    memory = _memory(params, config, norm, compute, encoder_ids, encoder_segments, sources, encoder_key)
    bias = PairBias(
        _positions(params["decoder"], decoder_ids.shape[1], config, causal=True), decoder_segments, decoder_segments
    )
    cross = PairBias(None, decoder_segments, sources)
    x = embedding[decoder_ids].astype(compute.activations(embedding.dtype))
    hidden = _stack(params["decoder"], config, norm, compute, x, bias, memory, cross, decoder_key)
    if config.tie_word_embeddings:
        return hidden * config.d_model**-0.5, embedding
    return hidden, params["lm_head"]["weight"]


def _norm(config: T5Config) -> Norm:
    def norm(parts: Params, x: Array) -> Array:
        return rms_norm(parts["weight"].astype(x.dtype), x, config.layer_norm_epsilon, config.norm_groups)

    return norm


def forward(
    params: Params,
    config: T5Config,
    encoder_ids: Int[Array, "batch source"],
    decoder_ids: Int[Array, "batch target"],
    encoder_mask: Bool[Array, "batch source"] | None = None,
    *,
    encoder_segments: Int[Array, "batch source"] | None = None,
    decoder_segments: Int[Array, "batch target"] | None = None,
    compute: Compute = Compute(),
    key: Key = None,
) -> Float[Array, "batch target vocabulary"]:
    """Return the logits of the next token at every target position.

    Args:
      params: parameters, as ``init`` or ``load_pretrained`` return them.
      config: their configuration.
      encoder_ids: source tokens.
      decoder_ids: target tokens shifted right, beginning with ``decoder_start_token_id``.
      encoder_mask: true where a source token counts; if None, all do.
      encoder_segments, decoder_segments: for packed rows, both or neither: the number of each token's document, 1, 2,
        ...; 0 is padding. A token attends to tokens of its own document alone. Distances are differences of positions,
        so that documents need no positions of their own. Every document of a target needs a source in its row.
      compute: settings of precision, memory and speed.
      key: ``jax.random`` key with which units are dropped at ``config.dropout_rate``, in the places where Hugging Face's
        T5 drops them in training; if None, none are.

    Returns:
      Logits in the params' dtype. Tied: ``(h / √d_model) Eᵀ``; untied: ``h lm_headᵀ``.

    Raises:
      InputError: one of the two segments is given without the other.

    Source: Raffel et al. (2020); weights and numbers as Hugging Face's ``T5ForConditionalGeneration``.
    """
    _check_segments(encoder_segments, decoder_segments)
    ids = (encoder_ids, decoder_ids, encoder_mask, encoder_segments, decoder_segments)
    return compute.multiply(*_hidden(params, config, _norm(config), compute, *ids, key))


def normed_forward(
    params: Params, config: T5Config, encoder_ids: Array, decoder_ids: Array, encoder_mask: Array | None, norm: Norm
) -> Array:
    """Return the logits of ``forward`` with any norm, for calibrations that record the norms' inputs."""
    ids = (encoder_ids, decoder_ids, encoder_mask, None, None)
    return product(*_hidden(params, config, norm, Compute(), *ids, None))


def _check_segments(encoder_segments: Any, decoder_segments: Any) -> None:
    if (encoder_segments is None) != (decoder_segments is None):
        given, missing = ("decoder", "encoder") if encoder_segments is None else ("encoder", "decoder")
        raise InputError(f"the {given} has segments, but the {missing} has none; a packed batch needs both")


def shifted_right(
    targets: Int[Array, "batch target"], config: T5Config, segments: Int[Array, "batch target"] | None = None
) -> Int[Array, "batch target"]:
    """Return the decoder's input for ``targets``: the start token, then all but the last; per document in packed rows."""
    start = jnp.full_like(targets[:, :1], config.decoder_start_token_id)
    shifted = jnp.concatenate([start, targets[:, :-1]], axis=1)
    if segments is None:
        return shifted
    begins = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return jnp.where(begins, config.decoder_start_token_id, shifted)


def batch_loss(
    params: Params, config: T5Config, batch: dict[str, Any], compute: Compute = Compute(), key: Key = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""Return the loss of a batch, as sums over its tokens, so that means over devices and batches are means over tokens.

    .. math:: \sum_t -\log p(y_t) + \zeta \Big(\log \sum_v e^{l_{tv}}\Big)^2

    over the targets t that count: those that are not the pad id and, in packed rows, are part of a document. ζ is
    ``compute.z_loss``.

    Args:
      params: parameters, as ``init`` or ``load_pretrained`` return them.
      config: their configuration.
      batch: ``encoder_ids`` and ``targets``, integers [batch, source] and [batch, target]; packed rows also have
        ``encoder_segments`` and ``target_segments`` (see ``forward``).
      compute: settings of precision, memory and speed.
      key: ``jax.random`` key for dropout; if None, nothing is dropped.

    Returns:
      ``(total, sums)``: the sum above, to be differentiated, and ``tokens``, ``nll`` (in nats, without z-loss) and
      ``correct`` (tokens predicted right), each a float32 scalar.

    Raises:
      InputError: the batch has one of the two segments without the other.
    """
    arrays = {name: jnp.asarray(ids) for name, ids in batch.items()}
    encoder_ids, targets = arrays["encoder_ids"], arrays["targets"]
    encoder_segments, target_segments = arrays.get("encoder_segments"), arrays.get("target_segments")
    _check_segments(encoder_segments, target_segments)
    decoder_ids = shifted_right(targets, config, target_segments)
    mask, counted = None, targets != config.pad_token_id
    if target_segments is None:
        mask = encoder_ids != config.pad_token_id
    else:
        counted &= target_segments != 0
    ids = (encoder_ids, decoder_ids, mask, encoder_segments, target_segments)
    hidden, head = _hidden(params, config, _norm(config), compute, *ids, key)
    z_loss, chunk = compute.z_loss, compute.loss_chunk
    sums = token_sums(hidden, head, targets, counted, z_loss=z_loss, chunk=chunk, multiply=compute.multiply)
    return sums["total"], {name: sums[name] for name in ("tokens", "nll", "correct")}


def token_loss(
    params: Params,
    config: T5Config,
    encoder_ids: Int[Array, "batch source"],
    targets: Int[Array, "batch target"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of the targets' cross-entropies in nats, and their number; the pad id does not count."""
    total, sums = batch_loss(params, config, {"encoder_ids": encoder_ids, "targets": targets})
    return total, sums["tokens"]
