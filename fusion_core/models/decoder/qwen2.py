"""Qwen2: a Llama whose q, k and v have biases, and nothing else has.

Source: Yang et al. (2024); the numbers are those of Hugging Face's ``Qwen2ForCausalLM``; sliding windows pass through.
"""

from __future__ import annotations

import dataclasses

from fusion_core.models.decoder import files, llama
from fusion_core.models.decoder.config import RotaryConfig
from fusion_core.models.units import Params


@dataclasses.dataclass(frozen=True)
class Qwen2Config(RotaryConfig):
    """Shape of a Qwen2: that of ``RotaryConfig``; q, k and v have biases."""

    max_position_embeddings: int = 32768
    rope_theta: float = 1_000_000.0


def arrays(config: Qwen2Config) -> Params:
    """Return the layout of every array."""
    return llama.layouts(config, qkv=True, out=False, mlp=False)


_PASSED = {"hidden_act": "silu", "use_sliding_window": False}
_KEPT = {"attention_dropout": (0.0, 0.0)}
SPELLING = files.Spelling(
    "qwen2", Qwen2Config, "Qwen2ForCausalLM", {}, files.qwen2_fields, files.llama_json, _PASSED, _KEPT
)
