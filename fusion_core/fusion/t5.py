"""Fusion rules of T5 v1.0 and v1.1, norm mode ``plain``: the norms see the concatenated stream."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from fusion_core.errors import InputError
from fusion_core.fusion.linear import FusionMap, Rule
from fusion_core.t5.config import T5Config
from fusion_core.t5.model import parameter_shapes

# Fields that add up over the sources; all others must agree.
SUMMED = ("d_model", "d_ff", "num_heads")

# The axes that are split among the sources, by the name of the array's parent.
BLOCK_DIAGONAL = dict.fromkeys(("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"), (0, 1))
CONCATENATED = {"shared": (1,), "lm_head": (1,), "relative_attention_bias": (1,), "layer_norm": (0,)}
AXES = BLOCK_DIAGONAL | CONCATENATED | {"final_layer_norm": (0,)}


def fused_t5_config(configs: Sequence[T5Config]) -> T5Config:
    """The fused network's shape: widths, feed-forward widths and heads add up.

    Raises:
      InputError: depths, vocabularies or conventions differ.
    """
    first = configs[0]
    for i, config in enumerate(configs[1:], start=2):
        for name in ("num_layers", "num_decoder_layers"):
            ours, theirs = getattr(first, name), getattr(config, name)
            if ours != theirs:
                raise InputError(
                    f"cannot fuse depth {ours} with depth {theirs} ({name} of networks 1 and {i}): fusion widens only; "
                    "bring them to the same depth first"
                )
        for field in dataclasses.fields(T5Config):
            ours, theirs = getattr(first, field.name), getattr(config, field.name)
            if field.name not in SUMMED and ours != theirs:
                raise InputError(
                    f"cannot fuse networks 1 and {i}: {field.name} is {ours!r} and {theirs!r}; it must agree"
                )
    return dataclasses.replace(first, **{name: sum(getattr(c, name) for c in configs) for name in SUMMED})


def t5_map(configs: Sequence[T5Config], weights: tuple[float, ...]) -> FusionMap:
    """The fusion of T5s whose logits are, up to the norms' statistics, ``Σ wᵢ logitsᵢ``.

    Untied: ``lm_head`` carries wᵢ. Tied: the embedding cannot be scaled, since the input uses it too, so the final
    decoder norm carries ``√(D/dᵢ)·wᵢ``, which also undoes the change of the logits' factor from dᵢ^-½ to D^-½.

    RMSNorm sees the mean square of the whole stream: for equal networks nothing changes and fusion is exact; different
    ones are each rescaled by ``rmsᵢ / rms``.
    Source: Mazzawi et al. (2024); t5_fusion.md.
    """
    width = sum(config.d_model for config in configs)
    ones = (1.0,) * len(configs)
    shapes = tuple(parameter_shapes(config) for config in configs)

    def rule(path: tuple[Any, ...], _: Any) -> Rule:
        name = path[-2].key
        scales = ones
        if name == "lm_head":
            scales = weights
        elif name == "final_layer_norm" and path[0].key == "decoder" and configs[0].tie_word_embeddings:
            scales = tuple(math.sqrt(width / c.d_model) * w for c, w in zip(configs, weights, strict=True))
        return Rule(AXES[name], scales)

    rules = jax.tree_util.tree_map_with_path(rule, shapes[0], is_leaf=lambda node: isinstance(node, tuple))
    return FusionMap(rules=rules, shapes=shapes, weights=weights)
