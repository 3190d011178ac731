"""Fusion rules of T5 v1.0 and v1.1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from fusion_core.growth import operators
from fusion_core.growth.agreement import NormMode, added
from fusion_core.growth.calibration import NormKind
from fusion_core.growth.linear import FusionMap, Params
from fusion_core.models.norms import unit_rms
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import normed_forward, parameter_shapes, shifted_right

TABLE: operators.Table = {
    "shared.weight": operators.embedding,
    **operators.RELATIVE_ATTENTION,
    **operators.FEED_FORWARD,
    **operators.GATED_FEED_FORWARD,
    "layer_norm.weight": operators.norm,
    "final_layer_norm.weight": operators.norm,
    "lm_head.weight": operators.dense_out,
}


def fused_t5_config(configs: Sequence[T5Config], norm: NormMode = "plain") -> T5Config:
    """The fused network's shape: widths, feed-forward widths and heads add up.

    Raises:
      InputError: depths, vocabularies or conventions differ.
    """
    depths = ("num_layers", "num_decoder_layers")
    return added(configs, "d_model", ("d_ff", "num_heads"), depths, norm, _deepen)


def _deepen(field: str, depth: int) -> str:
    return f'"identity_layers", depth={{"{field}": {depth}}}) keeps its function; "stacking" in its place copies the layers'


def t5_map(configs: Sequence[T5Config], weights: tuple[float, ...]) -> FusionMap:
    """The fusion of T5s whose logits are, up to the norms' statistics, ``Σ wᵢ logitsᵢ``.

    Untied: ``lm_head`` carries wᵢ. Tied: the embedding cannot be scaled, since the input uses it too, so the final
    decoder norm carries ``√(D/dᵢ)·wᵢ``, which also undoes the change of the logits' factor from dᵢ^-½ to D^-½.

    RMSNorm sees the mean square of the whole stream: for equal networks nothing changes and fusion is exact; different
    ones are each rescaled by ``rmsᵢ / rms``, unless the norms are grouped.
    Source: Mazzawi et al. (2024); docs/t5_fusion.md.
    """
    mapping = operators.table_map(TABLE, [parameter_shapes(config) for config in configs], weights)
    if not configs[0].tie_word_embeddings:
        return mapping
    width = sum(config.d_model for config in configs)
    scales = [math.sqrt(width / config.d_model) * w for config, w in zip(configs, weights, strict=True)]
    return operators.replace_scales(mapping, {("decoder", "final_layer_norm", "weight"): scales})


def t5_pass(params: Params, config: T5Config, batch: Any, norm: Any) -> Array:
    """Logits on a batch of ``encoder_ids`` and ``targets``, with ``norm(parts, x, mask)`` in the place of the norms."""
    ids, targets = jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["targets"])
    masks = {"encoder": ids != config.pad_token_id, "decoder": targets != config.pad_token_id}
    return normed_forward(
        params,
        config,
        ids,
        shifted_right(targets, config),
        masks["encoder"],
        lambda parts, x: norm(parts, x, masks[parts["path"][0]]),
    )


def t5_unit(x: Array, config: T5Config, groups: tuple[int, ...]) -> Array:
    """The norm without its scale."""
    return unit_rms(x, config.layer_norm_epsilon, groups)


def t5_norm(config: T5Config) -> NormKind:
    return NormKind(centred=False, epsilon=config.layer_norm_epsilon)
