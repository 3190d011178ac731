"""The shapes of decoder-only transformers, in Hugging Face's names."""

from __future__ import annotations

import dataclasses

from fusion_core.errors import InputError
from fusion_core.models.fields import BASE, ROPE, check_config
from fusion_core.models.settings import NONE, Settings
from fusion_core.models.t5.config import check_norm_groups

TokenId = int | tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Stretching of Llama 3.1's rotary positions to longer sequences (``rope_type`` "llama3" in Hugging Face's files).

    Attributes:
      factor: divisor F ≥ 1 of the low frequencies.
      low_freq_factor: l; frequencies with fewer turns than this in the original length are divided.
      high_freq_factor: h > l; frequencies with more turns are kept; those between the two are interpolated.
      original_max_position_embeddings: the length L that the model was first trained on, in tokens.

    Raises:
      InputError: a value is outside its range.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        check_config(self, {**ROPE, "factor": BASE})
        if self.high_freq_factor <= self.low_freq_factor:
            raise InputError(
                f"Llama3Rope.high_freq_factor is {self.high_freq_factor!r}; it must be a number above low_freq_factor"
            )


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a network of Llama's kind.

    Attributes:
      vocab_size: rows V of the embedding.
      hidden_size: width d of the residual stream.
      intermediate_size: hidden width of the feed-forward blocks.
      num_hidden_layers: depth.
      num_attention_heads: query heads H.
      num_key_value_heads: key and value heads G; H is a multiple of G, and query head h reads head ``h // (H/G)``.
      head_dim: width of a head; ``H * head_dim`` need not be ``hidden_size``.

    Raises:
      InputError: a field is of another type or range (``fusion_core.models.fields``), or sizes do not fit.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        check_config(self)
        kind, groups = type(self).__name__, getattr(self, "norm_groups", ())
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"{kind}.num_attention_heads is {self.num_attention_heads}; it must be a multiple of "
                f"num_key_value_heads, {self.num_key_value_heads}"
            )
        check_norm_groups(kind, groups, self.hidden_size)


@dataclasses.dataclass(frozen=True)
class RotaryConfig(Shape):
    """A decoder with RMSNorm, rotary positions, grouped-query attention and a SiLU-gated feed-forward.

    Attributes:
      max_position_embeddings: intended length of the longest sequence, in tokens; no array depends on it.
      rms_norm_eps: added to the mean square in RMSNorm.
      rope_theta: base of the rotary frequencies ``θ^(-2i/head_dim)``; ``head_dim`` is even.
      rope_scaling: stretching of the frequencies; None if there is none.
      tie_word_embeddings: whether the head is the embedding.
      bos_token_id, eos_token_id, pad_token_id: ids with a meaning, for the files.
      norm_groups: as in ``T5Config``.
      settings: fields of ``config.json`` that no array depends on and that are not above, kept as they are: rotary positions
        of other kinds, dropout rates, and the like. With most of them there is no forward pass here.
    """

    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Llama3Rope | None = None
    tie_word_embeddings: bool = False
    bos_token_id: TokenId = None
    eos_token_id: TokenId = None
    pad_token_id: TokenId = None
    norm_groups: tuple[int, ...] = ()
    settings: Settings = NONE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 2:
            kind = type(self).__name__
            raise InputError(f"{kind}.head_dim is {self.head_dim}; rotary positions turn pairs, so it must be even")


@dataclasses.dataclass(frozen=True)
class LlamaConfig(RotaryConfig):
    """A Llama. The attributes are those of ``RotaryConfig``, and the biases.

    Attributes:
      attention_bias, mlp_bias: whether their matrices have biases.

    Raises:
      InputError: as ``Shape``; ``head_dim`` is odd.
    """

    bos_token_id: TokenId = 1
    eos_token_id: TokenId = 2
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """A decoder with LayerNorm, learned positions, biases everywhere and a tanh-approximated GELU feed-forward.

    Attributes:
      vocab_size: rows V of the embedding.
      n_positions: rows of the position embedding, the longest sequence.
      n_embd: width d of the residual stream and of all heads together.
      n_layer: depth.
      n_head: heads; each is ``n_embd / n_head`` wide.
      n_inner: hidden width of the feed-forward blocks.
      layer_norm_epsilon: added to the variance in LayerNorm.
      tie_word_embeddings: whether the head is the embedding.
      bos_token_id, eos_token_id, pad_token_id: ids with a meaning, for the files.
      norm_groups: as in ``T5Config``.
      settings: fields of ``config.json`` that no array depends on and that are not above, kept as they are: rotary positions
        of other kinds, dropout rates, and the like. With most of them there is no forward pass here.

    Raises:
      InputError: a field is of another type or range (``fusion_core.models.fields``), or sizes do not fit.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    bos_token_id: TokenId = 50256
    eos_token_id: TokenId = 50256
    pad_token_id: TokenId = None
    norm_groups: tuple[int, ...] = ()
    settings: Settings = NONE

    def __post_init__(self) -> None:
        check_config(self)
        if self.n_embd % self.n_head:
            raise InputError(f"GPT2Config.n_embd is {self.n_embd}; it must be a multiple of n_head, {self.n_head}")
        check_norm_groups("GPT2Config", self.norm_groups, self.n_embd)
