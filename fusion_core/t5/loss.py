"""Cross-entropy over a vocabulary, with the logits of all tokens held at once or a chunk of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fusion_core.t5.layers import wide_dtype


@jax.custom_vjp
def _half_product(hidden: Array, head: Array) -> Array:
    """``hidden headᵀ`` of bf16 factors, summed and kept in float32; the gradient's products are of bf16 factors too.

    JAX's own gradient would multiply by the float32 cotangent, at a fraction of a GPU's speed.
    """
    return jnp.einsum("...d,vd->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _half_forward(hidden: Array, head: Array) -> tuple[Array, tuple[Array, Array]]:
    return _half_product(hidden, head), (hidden, head)


def _half_backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    hidden, head = kept
    half = cotangent.astype(hidden.dtype)
    flat = half.reshape(-1, half.shape[-1])
    to_head = jnp.einsum("nv,nd->vd", flat, hidden.reshape(-1, hidden.shape[-1]), preferred_element_type=head.dtype)
    return half @ head.astype(hidden.dtype), to_head


_half_product.defvjp(_half_forward, _half_backward)


def head_logits(hidden: Float[Array, "... width"], head: Float[Array, "vocabulary width"]) -> Array:
    """``hidden headᵀ``, in the head's dtype and at least that of its factors; bf16 against a float32 head: in float32."""
    if hidden.dtype == head.dtype:
        return hidden @ head.T
    return _half_product(hidden, head)


def _sums(hidden: Array, head: Array, targets: Array, counts: Array, z_loss: float) -> dict[str, Array]:
    logits = head_logits(hidden, head)
    logits = logits.astype(wide_dtype(logits.dtype))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nll = jnp.sum((log_z - picked) * counts)
    correct = jnp.sum(jnp.where(picked >= jnp.max(logits, axis=-1), counts, 0))
    total = nll + z_loss * jnp.sum(log_z**2 * counts) if z_loss else nll
    return {"total": total, "nll": nll, "correct": correct}


def token_sums(
    hidden: Float[Array, "batch target width"],
    head: Float[Array, "vocabulary width"],
    targets: Int[Array, "batch target"],
    counted: Array,
    *,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> dict[str, Float[Array, ""]]:
    """Sums over the counted tokens, with logits ``hidden headᵀ``.

    Args:
      hidden: what the head reads, already scaled.
      head: one row a word of the vocabulary.
      targets: the words that should come.
      counted: true (or 1) where a token counts.
      z_loss: weight of the squared log-sum-exp.
      chunk: tokens whose logits are held at once, in the forward pass and in the backward pass, which computes them
        again; None: all.

    Returns:
      ``nll``: cross-entropies in nats; ``total``: they plus z-loss; ``correct``: tokens whose logit is the largest
      (not exceeded, so that ties count); ``tokens``: how many were counted. float32, or the head's dtype if wider.
    """
    counts = counted.astype(wide_dtype(head.dtype))
    tokens = jnp.sum(counts)
    if chunk is None:
        return _sums(hidden, head, targets, counts, z_loss) | {"tokens": tokens}
    n = -(-targets.size // chunk)

    def split(x: Array) -> Array:
        flat = x.reshape(targets.size, *x.shape[2:])
        filled = jnp.pad(flat, [(0, n * chunk - targets.size), *[(0, 0)] * (flat.ndim - 1)])
        return filled.reshape(n, chunk, *x.shape[2:])

    @jax.checkpoint
    def add(sums: dict[str, Array], parts: tuple[Array, Array, Array]) -> tuple[dict[str, Array], None]:
        return jax.tree.map(jnp.add, sums, _sums(parts[0], head, parts[1], parts[2], z_loss)), None

    zeros = dict.fromkeys(("total", "nll", "correct"), jnp.zeros((), counts.dtype))
    sums, _ = jax.lax.scan(add, zeros, (split(hidden), split(targets), split(counts)))
    return sums | {"tokens": tokens}
