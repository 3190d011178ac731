"""Fields of a ``config.json`` on which no array depends, kept as they are: what a file says and fusion need not know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

# fields that say who wrote the file and how, how arrays that are there were once drawn, and what classifiers and caches do
ABOUT = {
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache", "_name_or_path"),
    *("auto_map", "initializer_range", "_attn_implementation", "_attn_implementation_autoset", "is_decoder"),
    *("classifier_dropout", "cache_implementation", "unsloth_version", "unsloth_fixed"),
}
# what a field means in transformers where a file leaves it out
LEFT_OUT: dict[str, Any] = {
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window"), False),
    **{"pretraining_tp": 1, "use_parallel_residual": True},
}


class Settings(dict[str, Any]):
    """Values by their names in ``config.json``: a dict that is not changed, and so can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))

    def differing(self, other: Settings) -> list[str]:
        """Return the fields that must agree and do not; a field left out is null or what ``LEFT_OUT`` says."""
        value = lambda settings, name: left if (left := settings.get(name)) is not None else LEFT_OUT.get(name)
        return [n for n in {**self, **other} if n not in ABOUT and value(self, n) != value(other, n)]

    def for_layers(self, depth: int, sources: Sequence[int]) -> Settings:
        """Return the settings of another number of layers: lists with an entry a layer follow the layers copied."""
        follow = lambda v: [v[i] for i in sources] if isinstance(v, list) and len(v) == depth else v
        return Settings({name: follow(value) if name == "layer_types" else value for name, value in self.items()})


NONE = Settings()
