"""Mistral: Llama's arrays without biases, and in most releases a sliding window.

Exact where fused with itself; otherwise as Llama. The forward pass is Llama's, for sequences that fit into the window.
Source: Jiang et al. (2023); Hugging Face's ``MistralForCausalLM``.
"""

from __future__ import annotations

from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.models.decoder import llama
from fusion_core.models.decoder.described import DecoderConfig, spelling
from fusion_core.models.decoder.layers import Norm
from fusion_core.models.decoder.record import decoder
from fusion_core.models.units import Params


class MistralConfig(DecoderConfig):
    """Shape of a Mistral."""


def arrays(config: MistralConfig) -> Params:
    """Return the layout of every array."""
    return llama.layouts(config, qkv=False, out=False, mlp=False)


def run(params: Params, config: MistralConfig, ids: Array, norm: Norm) -> Array:
    """Return the logits. Raises InputError if the sequence is longer than the window."""
    if ids.shape[1] > (window := config.settings.get("sliding_window") or ids.shape[1]):
        raise InputError(f"a sequence of {ids.shape[1]} tokens is longer than sliding_window, {window}")
    return llama.run(params, config, ids, norm)


SPELLING = spelling("mistral", MistralConfig, "MistralForCausalLM", passed={"hidden_act": "silu"})
RECORD = decoder(SPELLING, arrays, run, longest=lambda config: config.settings.get("sliding_window"))
