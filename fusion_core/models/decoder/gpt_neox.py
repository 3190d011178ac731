"""GPT-NeoX (Pythia): LayerNorms, biases, parallel residuals, partial rotary positions; q, k and v packed head by head.

A head's q, k and v lie one after the other, so that a head is one range of rows and fuses as such. Exact where fused with
itself; otherwise as GPT-2. Source: Black et al. (2022); Hugging Face's ``GPTNeoXForCausalLM``.
"""

from __future__ import annotations

import functools

from fusion_core.models.decoder.described import DecoderConfig, spelling
from fusion_core.models.decoder.layers import out_by_in
from fusion_core.models.decoder.record import decoder
from fusion_core.models.units import Layout, Params, Space, layers_of


class GPTNeoXConfig(DecoderConfig):
    """Shape of a GPT-NeoX; each query head has a key head of its own."""


def arrays(config: GPTNeoXConfig) -> Params:
    """Return the layout of every array."""
    stream, width = Space("hidden_size", config.hidden_size, "hidden_size"), config.head_dim
    biases = bool(config.settings.get("attention_bias", True))
    norm = {"weight": Layout((stream.makes(),)), "bias": Layout((stream.makes(),))}

    def layer(i: int) -> Params:
        also = (("num_key_value_heads", 1),)
        heads = Space(f"layers.{i}.heads", config.num_attention_heads, "num_attention_heads", None, also)
        hidden = Space(f"layers.{i}.mlp", config.intermediate_size, "intermediate_size")
        return {
            "attention": {
                "query_key_value": out_by_in(heads.makes(3 * width), stream.reads(), bias=biases),
                "dense": out_by_in(stream.makes(), heads.reads(width), bias=biases),
            },
            "mlp": {
                "dense_h_to_4h": out_by_in(hidden.makes(), stream.reads(), bias=True),
                "dense_4h_to_h": out_by_in(stream.makes(), hidden.reads(), bias=True),
            },
            **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), norm),
        }

    model = {"layers": {str(i): layer(i) for i in range(config.num_hidden_layers)}, "final_layer_norm": norm}
    embedding = {"weight": Layout((config.vocab_size, stream.makes()))}
    head = {} if config.tie_word_embeddings else {"embed_out": {"weight": Layout((config.vocab_size, stream.reads()))}}
    return {"gpt_neox": model | {"embed_in": embedding}} | head


_TIED = ("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias")
_OURS = ("num_key_value_heads", "head_dim")  # the files have neither
_complete = lambda values: {"attention_bias": True, **values}
_spelling = functools.partial(spelling, without=_OURS, old=("rotary_emb_base", "rotary_pct"), complete=_complete)
RECORD = decoder(
    _spelling("gpt_neox", GPTNeoXConfig, "GPTNeoXForCausalLM"),
    arrays,
    embedding="gpt_neox.embed_in.weight",
    stacks=lambda config: (layers_of("num_hidden_layers", "gpt_neox.layers", config.num_hidden_layers),),
    tied=lambda config: _TIED if config.tie_word_embeddings else (),
    ratio=("hidden_size", "num_attention_heads", "all heads of a GPT-NeoX are equally wide"),
    head="embed_out.weight",
)
