"""Qwen2: a Llama whose q, k and v have biases, and nothing else has.

Source: Yang et al. (2024); the numbers are those of Hugging Face's ``Qwen2ForCausalLM``; sliding windows pass through.
"""

from __future__ import annotations

import dataclasses

from fusion_core.models.decoder import files, llama
from fusion_core.models.decoder.config import Llama3Rope, TokenId, check_llama_sizes
from fusion_core.models.settings import NONE, Settings
from fusion_core.models.units import Params


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Shape of a Qwen2. The attributes are those of ``LlamaConfig``, but for the biases, which are always q's, k's and v's.

    Raises:
      InputError: a size is not a positive integer, or sizes do not fit.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    rope_scaling: Llama3Rope | None = None
    tie_word_embeddings: bool = False
    bos_token_id: TokenId = None
    eos_token_id: TokenId = None
    pad_token_id: TokenId = None
    norm_groups: tuple[int, ...] = ()
    settings: Settings = NONE

    def __post_init__(self) -> None:
        check_llama_sizes(self)


def arrays(config: Qwen2Config) -> Params:
    """Return the layout of every array."""
    return llama.layouts(config, qkv=True, out=False, mlp=False)


_PASSED = {"hidden_act": "silu", "use_sliding_window": False}
_KEPT = {"attention_dropout": (0.0, 0.0)}
SPELLING = files.Spelling(
    "qwen2", Qwen2Config, "Qwen2ForCausalLM", {}, files.qwen2_fields, files.llama_json, _PASSED, _KEPT
)
