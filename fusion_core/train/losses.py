"""Losses for the trainer."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array

from fusion_core.models.t5 import Compute, T5Config, batch_loss
from fusion_core.train.step import Batch, Loss, Params


def t5_loss(config: T5Config, compute: Compute = Compute()) -> Loss:
    """Return the cross-entropy of a T5, with dropout if there is a key (see ``fusion_core.models.t5.batch_loss``).

    For training alone: it is always computed with ``reverse_only``, since a step needs no other derivative.
    """
    fast = dataclasses.replace(compute, reverse_only=True)

    def loss(params: Params, batch: Batch, key: Array | None = None) -> tuple[Array, dict[str, Array]]:
        return batch_loss(params, config, batch, fast, key)

    return loss
