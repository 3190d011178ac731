"""mT5 and umT5: T5 v1.1 with a larger vocabulary, and with a relative position bias in every layer.

ByT5 and flan-T5 are T5 v1.1 in their files too. Exact where fused with itself; otherwise as T5 (docs/t5_fusion.md).
Source: Xue et al. (2021), Chung et al. (2023); ``MT5ForConditionalGeneration`` and ``UMT5ForConditionalGeneration``.
"""

from __future__ import annotations

from typing import Any

from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.files import config_from_json


class MT5Config(T5Config):
    """Shape of an mT5. Its logits are never scaled, whatever a file says; a head that is saved as the embedding is read so."""


class UMT5Config(T5Config):
    """Shape of a umT5. It has a head of its own; ``tie_word_embeddings`` only says whether logits are divided by √d_model.

    transformers 5 divides always, and 4 as the file says; files that say nothing are read as 5 reads them.
    """

    @property
    def own_head(self) -> bool:
        """Whether the head is a matrix of its own: always."""
        return True

    @property
    def bias_in_every_layer(self) -> bool:
        """Whether every self-attention has a relative position bias: always."""
        return True


def mt5_from_json(values: dict[str, Any], origin: str) -> T5Config:
    """Return the mT5 that a ``config.json`` describes. Raises InputError as for a T5."""
    return config_from_json(
        {"feed_forward_proj": "gated-gelu", **values, "scale_decoder_outputs": False}, origin, MT5Config
    )


def umt5_from_json(values: dict[str, Any], origin: str) -> T5Config:
    """Return the umT5 that a ``config.json`` describes. Raises InputError as for a T5."""
    return config_from_json({"feed_forward_proj": "gated-gelu", **values}, origin, UMT5Config)
