"""Phi-3: Llama's arrays, but q, k and v in one, and gate and up in one; each part of both is fused by itself.

Exact where fused with itself; otherwise as Llama. Source: Abdin et al. (2024); Hugging Face's ``Phi3ForCausalLM``.
"""

from __future__ import annotations

from fusion_core.models.decoder import llama
from fusion_core.models.decoder.described import DecoderConfig, spelling
from fusion_core.models.decoder.layers import out_by_in
from fusion_core.models.decoder.record import decoder
from fusion_core.models.units import Params


class Phi3Config(DecoderConfig):
    """Shape of a Phi-3."""


def arrays(config: Phi3Config) -> Params:
    """Return the layout of every array."""
    found = llama.layouts(config, qkv=False, out=False, mlp=False)
    for layer in found["model"]["layers"].values():
        attention, mlp = layer["self_attn"], layer["mlp"]
        axes = {n: attention.pop(f"{n}_proj")["weight"].axes for n in "qkv"}
        heads, stream = axes["q"]
        blocks = [axes[n][0].blocks[0] for n in "qkv"]
        attention["qkv_proj"] = out_by_in(heads.space.makes(*blocks), stream, bias=False)
        hidden = mlp.pop("gate_proj")["weight"].axes[0].space
        del mlp["up_proj"]
        mlp["gate_up_proj"] = out_by_in(hidden.makes(1, 1), stream, bias=False)
    return found


RECORD = decoder(spelling("phi3", Phi3Config, "Phi3ForCausalLM"), arrays)
