"""GPT-2 as pure functions of a nested dict of arrays, in Hugging Face's names and orientation (in × out).

Suffixes name axes: B batch, T length, H heads, K head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.models.decoder.layers import Norm, causal_attention, conv1d, in_by_out
from fusion_core.models.norms import NormKind
from fusion_core.models.units import Layout, Params, Space, Stack, layers_of

if TYPE_CHECKING:
    from fusion_core.models.decoder.config import GPT2Config


def run(params: Params, config: GPT2Config, ids: Array, norm: Norm) -> Array:
    """Return the logits, with ``norm`` in the place of the norms.

    Raises:
      InputError: the sequence is longer than the positions.
    """
    if ids.shape[1] > config.n_positions:
        raise InputError(f"a sequence of {ids.shape[1]} tokens is longer than n_positions, {config.n_positions}")
    model, (batch, length) = params["transformer"], ids.shape
    x = model["wte"]["weight"][ids] + model["wpe"]["weight"][:length]
    for i in range(config.n_layer):
        layer = model["h"][str(i)]
        qkv = conv1d(layer["attn"]["c_attn"], norm(layer["ln_1"], x))
        q, k, v = (part.reshape(batch, length, config.n_head, -1) for part in jnp.split(qkv, 3, axis=-1))
        x = x + conv1d(layer["attn"]["c_proj"], causal_attention(q, k, v))
        hidden = jax.nn.gelu(conv1d(layer["mlp"]["c_fc"], norm(layer["ln_2"], x)), approximate=True)
        x = x + conv1d(layer["mlp"]["c_proj"], hidden)
    head = model["wte"] if config.tie_word_embeddings else params["lm_head"]
    return norm(model["ln_f"], x) @ head["weight"].T


def arrays(config: GPT2Config) -> Params:
    """Return the layout of every array; all heads are ``n_embd / n_head`` wide."""
    stream, block = Space("n_embd", config.n_embd, "n_embd"), config.n_embd // config.n_head
    norm = {"weight": Layout((stream.makes(),)), "bias": Layout((stream.makes(),))}

    def layer(i: int) -> Params:
        heads = Space(f"h.{i}.heads", config.n_head, "n_head")
        hidden = Space(f"h.{i}.mlp", config.n_inner, "n_inner")
        return {
            "ln_1": norm,
            "attn": {
                "c_attn": in_by_out(stream.reads(), heads.makes(block, block, block)),
                "c_proj": in_by_out(heads.reads(block), stream.makes()),
            },
            "ln_2": norm,
            "mlp": {
                "c_fc": in_by_out(stream.reads(), hidden.makes()),
                "c_proj": in_by_out(hidden.reads(), stream.makes()),
            },
        }

    found: Params = {
        "transformer": {
            "wte": {"weight": Layout((config.vocab_size, stream.makes()))},
            "wpe": {"weight": Layout((config.n_positions, stream.makes()))},
            "h": {str(i): layer(i) for i in range(config.n_layer)},
            "ln_f": norm,
        }
    }
    if not config.tie_word_embeddings:
        found["lm_head"] = {"weight": Layout((config.vocab_size, stream.reads()))}
    return found


def stacks(config: GPT2Config) -> tuple[Stack, ...]:
    """Return the one stack of layers."""
    return (layers_of("n_layer", "transformer.h", config.n_layer),)


def tied(config: GPT2Config) -> tuple[str, ...]:
    """Return the arrays that carry a tied head's factors: the norm before it (see ``Architecture.tied``)."""
    return ("transformer.ln_f.weight", "transformer.ln_f.bias") if config.tie_word_embeddings else ()


def norm_kind(config: GPT2Config) -> NormKind:
    """Return the kind of the norms."""
    return NormKind(centred=True, epsilon=config.layer_norm_epsilon)
