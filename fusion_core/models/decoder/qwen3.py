"""Qwen3: Llama's arrays, with norms of q and k over each head, whose scales all heads of a layer share.

Exact where fused with itself. Of different sources the shared scales are the weighted mean: q and k are divided by their
own root mean square, so that no other array can carry the difference. Source: Yang et al. (2025); ``Qwen3ForCausalLM``.
"""

from __future__ import annotations

from typing import Any

from fusion_core.models.decoder import llama
from fusion_core.models.decoder.described import DecoderConfig, spelling
from fusion_core.models.decoder.files import WINDOWS, windows
from fusion_core.models.decoder.record import decoder
from fusion_core.models.units import Layout, Params


class Qwen3Config(DecoderConfig):
    """Shape of a Qwen3."""


def arrays(config: Qwen3Config) -> Params:
    """Return the layout of every array."""
    biases = bool(config.settings.get("attention_bias", False))
    found, norm = llama.layouts(config, qkv=biases, out=biases, mlp=False), {"weight": Layout((config.head_dim,))}
    for layer in found["model"]["layers"].values():
        layer["self_attn"] |= {"q_norm": norm, "k_norm": norm}
    return found


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in WINDOWS} | windows(values)


RECORD = decoder(
    spelling("qwen3", Qwen3Config, "Qwen3ForCausalLM", complete=_complete),
    arrays,
    caveat="the scales of q's and k's norms, which all heads of a layer share, are the mean of the sources'",
)
