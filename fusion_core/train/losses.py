"""The trainer's loss of each kind of network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fusion_core.t5.config import T5Config
from fusion_core.t5.model import forward, shifted_right
from fusion_core.train.step import Batch, Loss, Params


def t5_loss(config: T5Config) -> Loss:
    """Cross-entropy of a T5 on batches of ``encoder_ids`` [batch, source] and ``targets`` [batch, target]."""

    def loss(params: Params, batch: Batch, key: Array | None = None) -> tuple[Array, dict[str, Array]]:
        # The one line that knows which loss the model has; ``key`` is for its dropout.
        return _sums(params, config, batch)

    return loss


def _sums(params: Params, config: T5Config, batch: Any) -> tuple[Array, dict[str, Array]]:
    encoder_ids, targets = jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["targets"])
    mask = encoder_ids != config.pad_token_id
    logits = forward(params, config, encoder_ids, shifted_right(targets, config), mask)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    counted = (targets != config.pad_token_id).astype(logits.dtype)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = jnp.sum((jax.nn.logsumexp(logits, axis=-1) - picked) * counted)
    correct = jnp.sum((picked >= jnp.max(logits, axis=-1)) * counted)
    return nll, {"tokens": jnp.sum(counted), "nll": nll, "correct": correct}
