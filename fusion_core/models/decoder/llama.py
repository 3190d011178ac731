"""Llama as pure functions of a nested dict of arrays, in Hugging Face's names and orientation (out × in).

Suffixes name axes: B batch, T length, H heads, K head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.models.decoder.layers import Norm, causal_attention, linear, out_by_in
from fusion_core.models.norms import NormKind
from fusion_core.models.units import Layout, Params, Space, Stack, layers_of

if TYPE_CHECKING:
    from fusion_core.models.decoder.config import LlamaConfig


def rotary_frequencies(config: Any) -> np.ndarray:
    r"""Return the angles by which the pairs of a head turn from one position to the next, in radians; [K/2], float32.

    .. math::
        f_i = \theta^{-2i/K}, \qquad f'_i = \big(s_i + (1 - s_i)/F\big) f_i, \qquad
        s_i = \min\Big(1, \max\Big(0, \frac{L f_i / 2\pi - l}{h - l}\Big)\Big)

    with ``f'`` in the place of f if there is a ``rope_scaling``, which gives F, l, h and L.

    Source: Su et al. (2021); Grattafiori et al. (2024) and the code of Llama 3.1.
    """
    width, scaling = config.head_dim, config.rope_scaling
    # float32, as in the reference
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    if scaling is None:
        return frequencies
    turns = np.float32(scaling.original_max_position_embeddings / (2 * np.pi)) * frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - np.float32(low)) / np.float32(high - low), np.float32(0), np.float32(1))
    return (kept + (1 - kept) / np.float32(scaling.factor)) * frequencies


def rotated(x_BxTxHxK: Array, frequencies: np.ndarray) -> Array:
    """Return the heads turned by rotary positions.

    Entries i and i + K/2 of the head at position t are turned by the angle ``t · frequencies[i]``.

    Source: Su et al. (2021); the pairing is Hugging Face's.
    """
    angles = (np.arange(x_BxTxHxK.shape[1], dtype=np.float32)[:, None] * frequencies)[:, None, :]
    cos, sin = (jnp.asarray(f(angles), x_BxTxHxK.dtype) for f in (np.cos, np.sin))
    first, second = jnp.split(x_BxTxHxK, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def run(params: Params, config: Any, ids: Array, norm: Norm) -> Array:
    """Return the logits, with ``norm`` in the place of the norms."""
    model, (batch, length) = params["model"], ids.shape
    x, frequencies = model["embed_tokens"]["weight"][ids], rotary_frequencies(config)
    for i in range(config.num_hidden_layers):
        layer = model["layers"][str(i)]
        attention, mlp, inner = layer["self_attn"], layer["mlp"], norm(layer["input_layernorm"], x)
        q, k, v = (linear(attention[f"{n}_proj"], inner).reshape(batch, length, -1, config.head_dim) for n in "qkv")
        mixed = causal_attention(rotated(q, frequencies), rotated(k, frequencies), v)
        x = x + linear(attention["o_proj"], mixed)
        inner = norm(layer["post_attention_layernorm"], x)
        gate = jax.nn.silu(linear(mlp["gate_proj"], inner))
        x = x + linear(mlp["down_proj"], gate * linear(mlp["up_proj"], inner))
    head = model["embed_tokens"] if config.tie_word_embeddings else params["lm_head"]
    return norm(model["norm"], x) @ head["weight"].T


def arrays(config: LlamaConfig) -> Params:
    """Return the layout of every array."""
    return layouts(config, qkv=config.attention_bias, out=config.attention_bias, mlp=config.mlp_bias)


def layouts(config: Any, *, qkv: bool, out: bool, mlp: bool) -> Params:
    """Return the layout of every array of a network of Llama's kind.

    A unit of the space of heads is a key and value head with the query heads that read it, so that copies of heads keep
    their groups.

    Args:
      config: configuration whose sizes have Llama's names.
      qkv, out, mlp: whether q, k and v, the projection after them, and the feed-forward have biases.
    """
    stream = Space("hidden_size", config.hidden_size, "hidden_size")
    group, norm = config.num_attention_heads // config.num_key_value_heads, {"weight": Layout((stream.makes(),))}

    def layer(i: int) -> Params:
        heads = Space(
            f"layers.{i}.heads",
            config.num_key_value_heads,
            "num_key_value_heads",
            None,
            (("num_attention_heads", group),),
        )
        hidden = Space(f"layers.{i}.mlp", config.intermediate_size, "intermediate_size")
        width = {"q": group * config.head_dim, "k": config.head_dim, "v": config.head_dim}
        attention = {
            f"{n}_proj": out_by_in(heads.makes(block), stream.reads(), bias=qkv) for n, block in width.items()
        } | {"o_proj": out_by_in(stream.makes(), heads.reads(width["q"]), bias=out)}
        return {
            "input_layernorm": norm,
            "self_attn": attention,
            "post_attention_layernorm": norm,
            "mlp": {f"{n}_proj": out_by_in(hidden.makes(), stream.reads(), bias=mlp) for n in ("gate", "up")}
            | {"down_proj": out_by_in(stream.makes(), hidden.reads(), bias=mlp)},
        }

    found: Params = {
        "model": {
            "embed_tokens": {"weight": Layout((config.vocab_size, stream.makes()))},
            "layers": {str(i): layer(i) for i in range(config.num_hidden_layers)},
            "norm": norm,
        }
    }
    if not config.tie_word_embeddings:
        found["lm_head"] = {"weight": Layout((config.vocab_size, stream.reads()))}
    return found


def stacks(config: LlamaConfig) -> tuple[Stack, ...]:
    """Return the one stack of layers."""
    return (layers_of("num_hidden_layers", "model.layers", config.num_hidden_layers),)


def tied(config: LlamaConfig) -> tuple[str, ...]:
    """Return the arrays that carry a tied head's factors: the norm before it (see ``Architecture.tied``)."""
    return ("model.norm.weight",) if config.tie_word_embeddings else ()


def norm_kind(config: LlamaConfig) -> NormKind:
    """Return the kind of the norms."""
    return NormKind(centred=False, epsilon=config.rms_norm_eps)
