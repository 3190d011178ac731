"""Llama and GPT-2 as pure functions of a nested dict of arrays, in Hugging Face's names and orientation.

Llama's matrices are out × in, GPT-2's in × out. Suffixes name axes: B batch, T length, D width, H query heads, G key and
value heads, R = H/G, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fusion_core.errors import InputError
from fusion_core.models.decoder.config import DecoderConfig, GPT2Config, LlamaConfig
from fusion_core.models.t5.model import MASKED, unit_rms

Params = dict[str, Any]
Norm = Callable[[Params, Array], Array]  # (a norm's arrays, activations) -> normed activations


def unit_layer(x: Array, epsilon: float, groups: tuple[int, ...] = ()) -> Array:
    """``(x - mean) / sqrt(variance + ε)`` along the last axis, over each group alone where groups are given.

    The statistics are in float32 at least.
    """
    if len(groups) > 1:
        parts = jnp.split(x, np.cumsum(groups)[:-1].tolist(), axis=-1)
        return jnp.concatenate([unit_layer(part, epsilon) for part in parts], axis=-1)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


def unit(x: Array, config: DecoderConfig, groups: tuple[int, ...]) -> Array:
    """The architecture's norm without scale and bias."""
    if isinstance(config, LlamaConfig):
        return unit_rms(x, config.rms_norm_eps, groups)
    return unit_layer(x, config.layer_norm_epsilon, groups)


def rotary_frequencies(config: LlamaConfig) -> np.ndarray:
    r"""Angles by which the pairs of a head turn from one position to the next, in radians; [K/2], float32.

    .. math::
        f_i = \theta^{-2i/K}, \qquad f'_i = \big(s_i + (1 - s_i)/F\big) f_i, \qquad
        s_i = \min\Big(1, \max\Big(0, \frac{L f_i / 2\pi - l}{h - l}\Big)\Big)

    with ``f'`` in the place of f where ``rope_scaling`` gives F, l, h and L.
    Source: Su et al. (2021); Grattafiori et al. (2024) and the code of Llama 3.1.
    """
    width, scaling = config.head_dim, config.rope_scaling
    # float32, as the reference has it
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    if scaling is None:
        return frequencies
    turns = np.float32(scaling.original_max_position_embeddings / (2 * np.pi)) * frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - np.float32(low)) / np.float32(high - low), np.float32(0), np.float32(1))
    return (kept + (1 - kept) / np.float32(scaling.factor)) * frequencies


def rotated(x_BxTxHxK: Array, frequencies: np.ndarray) -> Array:
    """Rotary positions: entries i and i + K/2 of the head at position t are turned by the angle ``t · frequencies[i]``.

    Source: Su et al. (2021); the pairing is Hugging Face's.
    """
    angles = (np.arange(x_BxTxHxK.shape[1], dtype=np.float32)[:, None] * frequencies)[:, None, :]
    cos, sin = (jnp.asarray(f(angles), x_BxTxHxK.dtype) for f in (np.cos, np.sin))
    first, second = jnp.split(x_BxTxHxK, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def causal_attention(q_BxTxHxK: Array, k_BxTxGxK: Array, v_BxTxGxK: Array) -> Float[Array, "batch length inner"]:
    """Softmax attention to the positions up to one's own, logits divided by √K; R query heads share a key head."""
    batch, length, heads, width = q_BxTxHxK.shape
    q = q_BxTxHxK.reshape(batch, length, k_BxTxGxK.shape[2], -1, width)
    logits = jnp.einsum("btgrk,bsgk->bgrts", q, k_BxTxGxK) * width**-0.5
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # bf16 loses the tail of the softmax
    wide = jnp.where(np.tril(np.ones((length, length), bool)), wide, MASKED)
    mixed = jnp.einsum("bgrts,bsgk->btgrk", jax.nn.softmax(wide, axis=-1).astype(q.dtype), v_BxTxGxK)
    return mixed.reshape(batch, length, heads * width)


def _linear(weights: Params, x: Array) -> Array:
    """Llama's orientation, out × in."""
    return x @ weights["weight"].T + weights["bias"] if "bias" in weights else x @ weights["weight"].T


def _conv1d(weights: Params, x: Array) -> Array:
    """GPT-2's orientation, in × out."""
    return x @ weights["weight"] + weights["bias"]


def _llama(params: Params, config: LlamaConfig, ids: Array, norm: Norm) -> Array:
    model, (batch, length) = params["model"], ids.shape
    x, frequencies = model["embed_tokens"]["weight"][ids], rotary_frequencies(config)
    for i in range(config.num_hidden_layers):
        layer = model["layers"][str(i)]
        attention, mlp, inner = layer["self_attn"], layer["mlp"], norm(layer["input_layernorm"], x)
        q, k, v = (_linear(attention[f"{n}_proj"], inner).reshape(batch, length, -1, config.head_dim) for n in "qkv")
        mixed = causal_attention(rotated(q, frequencies), rotated(k, frequencies), v)
        x = x + _linear(attention["o_proj"], mixed)
        inner = norm(layer["post_attention_layernorm"], x)
        gate = jax.nn.silu(_linear(mlp["gate_proj"], inner))
        x = x + _linear(mlp["down_proj"], gate * _linear(mlp["up_proj"], inner))
    head = model["embed_tokens"] if config.tie_word_embeddings else params["lm_head"]
    return norm(model["norm"], x) @ head["weight"].T


def _gpt2(params: Params, config: GPT2Config, ids: Array, norm: Norm) -> Array:
    model, (batch, length) = params["transformer"], ids.shape
    x = model["wte"]["weight"][ids] + model["wpe"]["weight"][:length]
    for i in range(config.n_layer):
        layer = model["h"][str(i)]
        qkv = _conv1d(layer["attn"]["c_attn"], norm(layer["ln_1"], x))
        q, k, v = (part.reshape(batch, length, config.n_head, -1) for part in jnp.split(qkv, 3, axis=-1))
        x = x + _conv1d(layer["attn"]["c_proj"], causal_attention(q, k, v))
        hidden = jax.nn.gelu(_conv1d(layer["mlp"]["c_fc"], norm(layer["ln_2"], x)), approximate=True)
        x = x + _conv1d(layer["mlp"]["c_proj"], hidden)
    head = model["wte"] if config.tie_word_embeddings else params["lm_head"]
    return norm(model["ln_f"], x) @ head["weight"].T


def normed_forward(params: Params, config: DecoderConfig, ids: Array, norm: Norm) -> Array:
    """``forward`` with any norm: a calibration watches what the norms see."""
    if isinstance(config, LlamaConfig):
        return _llama(params, config, ids, norm)
    return _gpt2(params, config, ids, norm)


def forward(
    params: Params, config: DecoderConfig, ids: Int[Array, "batch length"]
) -> Float[Array, "batch length vocabulary"]:
    """Logits of the next token at every position. Attention is causal, so padding on the right changes nothing before it.

    Args:
      params: as ``init`` or ``load_pretrained`` give them.
      config: the shape that the params have.
      ids: tokens.

    Returns:
      Logits in the params' dtype.

    Raises:
      InputError: a GPT-2's sequence is longer than its positions.
    Source: Touvron et al. (2023), Radford et al. (2019); weights and numbers as Hugging Face's models.
    """
    if isinstance(config, GPT2Config) and ids.shape[1] > config.n_positions:
        raise InputError(f"a sequence of {ids.shape[1]} tokens is longer than n_positions, {config.n_positions}")

    def norm(parts: Params, x: Array) -> Array:
        scaled = unit(x, config, config.norm_groups) * parts["weight"]
        return scaled + parts["bias"] if "bias" in parts else scaled

    return normed_forward(params, config, ids, norm)


def token_loss(
    params: Params, config: DecoderConfig, ids: Int[Array, "batch length"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the cross-entropies in nats of every token but the first given those before it, and their number."""
    logits = forward(params, config, ids[:, :-1])
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    picked = jnp.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.sum(losses), jnp.asarray(losses.size, losses.dtype)


def _with_bias(name: str, out: int, into: int, bias: bool) -> Params:
    return {name: {"weight": (out, into), "bias": (out,)} if bias else {"weight": (out, into)}}


def _llama_shapes(config: LlamaConfig) -> Params:
    d, inner = config.hidden_size, config.intermediate_size
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    attention, mlp = config.attention_bias, config.mlp_bias
    layer = {
        "input_layernorm": {"weight": (d,)},
        "self_attn": _with_bias("q_proj", q, d, attention)
        | _with_bias("k_proj", kv, d, attention)
        | _with_bias("v_proj", kv, d, attention)
        | _with_bias("o_proj", d, q, attention),
        "post_attention_layernorm": {"weight": (d,)},
        "mlp": _with_bias("gate_proj", inner, d, mlp)
        | _with_bias("up_proj", inner, d, mlp)
        | _with_bias("down_proj", d, inner, mlp),
    }
    shapes: Params = {
        "model": {
            "embed_tokens": {"weight": (config.vocab_size, d)},
            "layers": {str(i): layer for i in range(config.num_hidden_layers)},
            "norm": {"weight": (d,)},
        }
    }
    return shapes if config.tie_word_embeddings else shapes | {"lm_head": {"weight": (config.vocab_size, d)}}


def _gpt2_shapes(config: GPT2Config) -> Params:
    d, inner = config.n_embd, config.n_inner
    norm = {"weight": (d,), "bias": (d,)}
    layer = {
        "ln_1": norm,
        "attn": {
            "c_attn": {"weight": (d, 3 * d), "bias": (3 * d,)},
            "c_proj": {"weight": (d, d), "bias": (d,)},
        },
        "ln_2": norm,
        "mlp": {
            "c_fc": {"weight": (d, inner), "bias": (inner,)},
            "c_proj": {"weight": (inner, d), "bias": (d,)},
        },
    }
    shapes: Params = {
        "transformer": {
            "wte": {"weight": (config.vocab_size, d)},
            "wpe": {"weight": (config.n_positions, d)},
            "h": {str(i): layer for i in range(config.n_layer)},
            "ln_f": norm,
        }
    }
    return shapes if config.tie_word_embeddings else shapes | {"lm_head": {"weight": (config.vocab_size, d)}}


def parameter_shapes(config: DecoderConfig) -> Params:
    """Nested dict of shapes: the one table of which arrays a network has."""
    return _llama_shapes(config) if isinstance(config, LlamaConfig) else _gpt2_shapes(config)


def init(config: DecoderConfig, seed: int, *, deviation: float = 0.02, dtype: Any = jnp.float32) -> Params:
    """Random parameters: norms at one, biases at zero, all else normal with the standard deviation given."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        parameter_shapes(config), is_leaf=lambda node: isinstance(node, tuple)
    )
    arrays = []
    for i, (path, shape) in enumerate(leaves):
        parent, name = path[-2].key, path[-1].key
        if name == "bias":
            arrays.append(jnp.zeros(shape, dtype))
        elif "norm" in parent or parent.startswith("ln_"):
            arrays.append(jnp.ones(shape, dtype))
        else:
            normal = np.random.default_rng((seed, i)).standard_normal(shape, np.float32)
            arrays.append(jnp.asarray(deviation * normal, dtype))
    return jax.tree_util.tree_unflatten(treedef, arrays)
