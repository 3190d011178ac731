"""Gemma 2: Llama's arrays, norms that scale by 1 + w before and after each half of a block, an embedding times √d.

Exact where fused with itself: the embedding carries ``√(dᵢ/d)`` and the last norm, before the tied head, the rest. The mean
is that of the logits before their cap, as the cap comes after the sum. New layers that add nothing have last norms of -1.
Source: Riviere et al. (2024); Hugging Face's ``Gemma2ForCausalLM``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fusion_core.models.decoder import llama
from fusion_core.models.decoder.described import DecoderConfig, spelling
from fusion_core.models.decoder.record import decoder
from fusion_core.models.units import Layout, Params, by_name, is_norm, nested


class Gemma2Config(DecoderConfig):
    """Shape of a Gemma 2."""


def arrays(config: Gemma2Config) -> Params:
    """Return the layout of every array."""
    biases = bool(config.settings.get("attention_bias", False))
    found = llama.layouts(config, qkv=biases, out=biases, mlp=False)
    for layer in found["model"]["layers"].values():
        norms = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        layer |= dict.fromkeys(norms, layer["input_layernorm"])
    return nested({name: _norm(name, layout) if is_norm(name) else layout for name, layout in by_name(found).items()})


def _norm(name: str, layout: Layout) -> Layout:
    return dataclasses.replace(layout, offset=1.0, adds=".post_" in name)


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    kinds = [("full", "sliding")[(i + 1) % 2] + "_attention" for i in range(values.get("num_hidden_layers") or 0)]
    used = {name: value for name, value in values.items() if name != "hidden_act" or "hidden_activation" not in values}
    return used if values.get("layer_types") else used | {"layer_types": kinds}


RECORD = decoder(
    spelling("gemma2", Gemma2Config, "Gemma2ForCausalLM", tied=True, complete=_complete),
    arrays,
    input_scale=lambda config, name: config.hidden_size**0.5 if name == "model.embed_tokens.weight" else 1.0,
    logit_scale=lambda config: config.hidden_size**-0.5 if config.tie_word_embeddings else 1.0,
    caveat="the mean is that of the logits before final_logit_softcapping",
)
