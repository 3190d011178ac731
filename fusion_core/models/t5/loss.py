"""Cross-entropy over a vocabulary, with the logits of all tokens held at once, or of a chunk of tokens at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fusion_core.models.t5.layers import wide_dtype
from fusion_core.models.t5.products import Product, product


def _sums(
    hidden: Array, head: Array, targets: Array, counts: Array, z_loss: float, multiply: Product
) -> dict[str, Array]:
    logits = multiply(hidden, head)
    logits = logits.astype(wide_dtype(logits.dtype))
    picked = _picked(logits, targets)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = jnp.sum((log_z - picked) * counts)
    correct = jnp.sum(jnp.where(picked >= jnp.max(logits, axis=-1), counts, 0))
    total = nll + z_loss * jnp.sum(log_z**2 * counts) if z_loss else nll
    return {"total": total, "nll": nll, "correct": correct}


def _picked(logits: Array, targets: Array) -> Array:
    """Return the logit of every target."""
    if jax.default_backend() == "cpu":  # where a comparison of every logit takes longer than the gather
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # one more sum in the pass that finds log Σ exp, and no scatter in the backward pass
    chosen = jnp.arange(logits.shape[-1], dtype=targets.dtype) == targets[..., None]
    return jnp.sum(jnp.where(chosen, logits, 0), axis=-1)


def token_sums(
    hidden: Float[Array, "batch target width"],
    head: Float[Array, "vocabulary width"],
    targets: Int[Array, "batch target"],
    counted: Array,
    *,
    z_loss: float = 0.0,
    chunk: int | None = None,
    multiply: Product = product,
) -> dict[str, Float[Array, ""]]:
    """Return sums over the counted tokens, with logits ``hidden headᵀ``.

    Args:
      hidden: input of the head, already scaled.
      head: matrix with one row for each token of the vocabulary.
      targets: ids of the correct tokens.
      counted: true (or 1) where a token counts.
      z_loss: weight of the squared log-sum-exp.
      chunk: tokens whose logits are held at once, in the forward pass and in the backward pass, which computes them
        again; if None, all.
      multiply: product of hidden and head.

    Returns:
      ``nll``: cross-entropies in nats; ``total``: ``nll`` plus z-loss; ``correct``: tokens whose logit is not exceeded
      (ties count); ``tokens``: the number of counted tokens. float32, or the head's dtype if wider.
    """
    counts = counted.astype(wide_dtype(head.dtype))
    tokens = jnp.sum(counts)
    if chunk is None:
        return _sums(hidden, head, targets, counts, z_loss, multiply) | {"tokens": tokens}
    n = -(-targets.size // chunk)

    def split(x: Array) -> Array:
        flat = x.reshape(targets.size, *x.shape[2:])
        filled = jnp.pad(flat, [(0, n * chunk - targets.size), *[(0, 0)] * (flat.ndim - 1)])
        return filled.reshape(n, chunk, *x.shape[2:])

    @jax.checkpoint
    def add(sums: dict[str, Array], parts: tuple[Array, Array, Array]) -> tuple[dict[str, Array], None]:
        return jax.tree.map(jnp.add, sums, _sums(parts[0], head, parts[1], parts[2], z_loss, multiply)), None

    zeros = dict.fromkeys(("total", "nll", "correct"), jnp.zeros((), counts.dtype))
    sums, _ = jax.lax.scan(add, zeros, (split(hidden), split(targets), split(counts)))
    return sums | {"tokens": tokens}
