"""The shape of a T5, in Hugging Face's names."""

from __future__ import annotations

import dataclasses
from typing import Any

from fusion_core.errors import InputError
from fusion_core.models.fields import check_config

# name -> (d_model, d_ff, heads, layers of the encoder and of the decoder, head width)
_V1_0 = {
    "t5-small": (512, 2048, 8, 6, 64),
    "t5-base": (768, 3072, 12, 12, 64),
    "t5-large": (1024, 4096, 16, 24, 64),
    "t5-3b": (1024, 16384, 32, 24, 128),
    "t5-11b": (1024, 65536, 128, 24, 128),
}
_EFFICIENT = {
    "t5-efficient-tiny": (256, 1024, 4, 4, 64),
    "t5-efficient-mini": (384, 1536, 8, 4, 64),
}
# The paper's S, fused once (two of them) and twice. The parts of the paper that we could read give no sizes: S is
# t5-small here, and the others are its fusions.
_DEEP_FUSION = {
    "deep-fusion-s": (512, 2048, 8, 6, 64),
    "deep-fusion-m": (1024, 4096, 16, 6, 64),
    "deep-fusion-l": (2048, 8192, 32, 6, 64),
}
_V1_1 = {
    "t5-v1_1-small": (512, 1024, 6, 8, 64),
    "t5-v1_1-base": (768, 2048, 12, 12, 64),
    "t5-v1_1-large": (1024, 2816, 16, 24, 64),
    "t5-v1_1-xl": (2048, 5120, 32, 24, 64),
    "t5-v1_1-xxl": (4096, 10240, 64, 24, 64),
}


ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu", "swish")


def check_norm_groups(kind: str, groups: tuple[int, ...], width: int) -> None:
    """Raise InputError if the groups are not positive integers that sum to the width."""
    if groups and (min(groups) < 1 or sum(groups) != width):
        raise InputError(f"{kind}.norm_groups is {groups}; it must be positive widths that add up to {width}")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape and conventions of a T5. The fields are those of Hugging Face's ``config.json``.

    Attributes:
      vocab_size: rows V of the embedding, sentinels included.
      d_model: width d of the residual stream.
      d_kv: width of one head; the inner width of attention is ``num_heads * d_kv`` and need not be ``d_model``.
      d_ff: hidden width of the feed-forward blocks.
      num_layers, num_decoder_layers: depth of encoder and decoder.
      num_heads: attention heads H.
      relative_attention_num_buckets: number of buckets of the relative position bias, even and at least 4.
      relative_attention_max_distance: distance in tokens from which on all share the last bucket.
      feed_forward_proj: an activation (``"relu"``: v1.0), with ``"gated-"`` before it if its output gates a second matrix's;
        ``"gated-gelu"`` (v1.1) is tanh-approximated, as ``"gelu_new"`` is.
      tie_word_embeddings: whether the head is the embedding: logits are ``(h / √d) Eᵀ`` if true (v1.0), and
        ``h lm_headᵀ`` with a matrix of its own if false (v1.1).
      layer_norm_epsilon: added to the mean square in RMSNorm.
      pad_token_id, eos_token_id, decoder_start_token_id: ids of padding, of the end token, and of the decoder's first
        input. Several end tokens are a tuple: each ends an answer; training writes the tokenizer's.
      dropout_rate: probability in [0, 1) with which a unit is dropped by functions that get a random key; without a key
        none is. 0.1 in published T5s.
      norm_groups: widths of the groups, one after the other, that RMSNorm normalizes apart (``fuse`` with
        ``norm="grouped"``); if empty, one group, as in every published T5. Hugging Face has no such field.

    Raises:
      InputError: a field is of another type or range (``fusion_core.models.fields``), an id is not in the vocabulary,
        ``feed_forward_proj`` is unknown, the buckets or their distance are too few, or the groups do not sum to ``d_model``.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    layer_norm_epsilon: float = 1e-6
    pad_token_id: int = 0
    eos_token_id: int | tuple[int, ...] = 1
    decoder_start_token_id: int = 0
    dropout_rate: float = 0.0
    norm_groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_config(self)
        for name, ids in (
            ("pad_token_id", (self.pad_token_id,)),
            ("eos_token_id", self.ends),
            ("decoder_start_token_id", (self.decoder_start_token_id,)),
        ):
            if not ids or not all(type(i) is int and 0 <= i < self.vocab_size for i in ids):
                raise InputError(
                    f"T5Config.{name} is {getattr(self, name)!r}; it must be an id from 0 to {self.vocab_size - 1}"
                )
        if self.feed_forward_proj.removeprefix("gated-") not in ACTIVATIONS:
            raise InputError(
                f"T5Config.feed_forward_proj is {self.feed_forward_proj!r}; it can be {', '.join(ACTIVATIONS)}, and "
                "each of them with 'gated-' before it"
            )
        check_norm_groups("T5Config", self.norm_groups, self.d_model)
        # Bidirectional attention halves the buckets by direction, and each half is exact and logarithmic by halves
        # again: with fewer than 4 buckets a part is empty.
        if self.relative_attention_num_buckets < 4 or self.relative_attention_num_buckets % 2:
            raise InputError(
                f"T5Config.relative_attention_num_buckets is {self.relative_attention_num_buckets}; "
                "it must be an even number, at least 4"
            )
        # the logarithmic half of the causal buckets begins at the distance of half their number
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise InputError(
                f"T5Config.relative_attention_max_distance is {self.relative_attention_max_distance}; it must be above "
                f"{self.relative_attention_num_buckets // 2}, half of the buckets"
            )

    @property
    def inner_dim(self) -> int:
        """Width between q, k, v and o, ``num_heads * d_kv``."""
        return self.num_heads * self.d_kv

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end an answer."""
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def gated(self) -> bool:
        """Whether the feed-forward blocks are gated."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def own_head(self) -> bool:
        """Whether the head is a matrix of its own."""
        return not self.tie_word_embeddings

    @property
    def bias_in_every_layer(self) -> bool:
        """Whether every self-attention has a relative position bias, and not only each stack's first."""
        return False

    @classmethod
    def named(cls, name: str, **changes: Any) -> T5Config:
        """Return the published configuration ``name``, with the fields in ``changes`` replaced.

        "t5-small" ... "t5-11b"; "t5-v1_1-small" ... "t5-v1_1-xxl"; "t5-efficient-tiny" and "-mini"; and
        "deep-fusion-s", "-m", "-l", of which two of one size fuse to the next. The dropout rate is 0 unless it is
        among the ``changes``.

        Raises:
          InputError: the name is unknown; the message lists the known ones.
        Source: Raffel et al. (2020), table of model variants; config files of the released v1.1 and efficient checkpoints
        (for the latter Tay et al. (2021) print a d_kv of 32; it is 64 in the files and by both parameter counts).
        """
        v1_0 = _V1_0 | _EFFICIENT | _DEEP_FUSION
        if name in v1_0:
            d_model, d_ff, heads, layers, d_kv = v1_0[name]
            style: dict[str, Any] = {"feed_forward_proj": "relu", "tie_word_embeddings": True}
        elif name in _V1_1:
            d_model, d_ff, heads, layers, d_kv = _V1_1[name]
            style = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        else:
            raise InputError(f"no T5 is named {name!r}; known are {', '.join([*v1_0, *_V1_1])}")
        shape = {"d_model": d_model, "d_ff": d_ff, "num_heads": heads, "d_kv": d_kv}
        return cls(**{**shape, "num_layers": layers, "num_decoder_layers": layers, **style, **changes})
