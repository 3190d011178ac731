"""Settings of a T5's computation: precision, memory, speed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fusion_core.errors import InputError
from fusion_core.models.t5.products import Product, product, reverse_product

QUERY_CHUNK = 64  # query positions of one chunk of memory-lean attention


@dataclasses.dataclass(frozen=True)
class Compute:
    """Choices of precision, memory and speed. All but ``dtype`` and ``z_loss`` leave the loss as it is, up to rounding.

    Attributes:
      dtype: dtype of activations and products, "float32" or "bfloat16". Parameters, the softmax, the norms' statistics
        and the loss's log-sum-exp are float32 with both; float64 parameters are computed in float64 under "float32".
      remat: whether to keep only the input of every block for the backward pass and recompute the rest: about a third
        more operations, for a memory that does not grow with the activations inside a block. On a CPU it helps only
        together with ``scan``, or with ``compiler_options``, which training has.
      scan: whether to compile one block for all layers, with their parameters stacked inside the step, instead of one
        a layer: the program does not grow with depth. Slower on a CPU, because of the stacking (docs/t5.md).
      reverse_only: whether gradients of weights are multiplied in the order that is faster on a CPU, by a fifth of a
        step (``products``). Gradients and Hessian-vector products by forward over reverse work as before; ``jax.jvp``
        of the loss does not. For training; the theory in ``bea`` may need the default.
      loss_chunk: tokens whose logits are held at once, in the forward and the backward pass; if None, all of the batch.
      attention: "plain" holds the matrix of all pairs [batch, heads, target, source]; "chunked" only that of 64 query
        positions at a time, which the backward pass computes again; "fused" never holds it: on a GPU it is cuDNN's one
        kernel, elsewhere ``jax.nn``'s plain form of the same. Fused attention is for bfloat16, without dropout and packed
        rows, and for padding that comes last in every row: the loss of a batch with other padding is nan. The position
        bias is rounded to bfloat16.
      z_loss: weight of ``(log Σ exp logits)²`` added to every token's loss; T5's own training used 1e-4.

    Raises:
      InputError: ``dtype`` or ``attention`` is unknown, or a number is out of its range.
    """

    dtype: str = "float32"
    remat: bool = False
    scan: bool = False
    reverse_only: bool = False
    loss_chunk: int | None = None
    attention: str = "plain"
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("dtype", ("float32", "bfloat16")), ("attention", ("plain", "chunked", "fused"))):
            if getattr(self, name) not in known:
                raise InputError(
                    f"Compute.{name} is {getattr(self, name)!r}; it must be {' or '.join(map(repr, known))}"
                )
        if self.attention == "fused" and self.dtype != "bfloat16":
            raise InputError("Compute.attention is 'fused', which needs dtype 'bfloat16'; use 'chunked' with 'float32'")
        if self.loss_chunk is not None and self.loss_chunk < 1:
            raise InputError(
                f"Compute.loss_chunk is {self.loss_chunk}; it must be a positive number of tokens, or None"
            )
        if not 0 <= self.z_loss < float("inf"):
            raise InputError(f"Compute.z_loss is {self.z_loss}; it must be zero or positive, and finite")

    def compiler_options(self) -> dict[str, str]:
        """Return options of XLA's compiler that the choices need, for ``jax.jit`` or ``train.Trainer``.

        On a CPU XLA takes out the barriers that keep a rematerialised block from being merged with the first computation of
        it, unless they are in a scan; the option keeps them.
        """
        kept = self.remat and not self.scan and jax.default_backend() == "cpu"
        return {"xla_disable_hlo_passes": "cse_barrier_expander"} if kept else {}

    @property
    def multiply(self) -> Product:
        """Product of activations and weights."""
        return reverse_product if self.reverse_only else product

    def activations(self, params_dtype: jnp.dtype) -> jnp.dtype:
        """Return the dtype of activations for parameters of ``params_dtype``."""
        return jnp.dtype(jnp.bfloat16) if self.dtype == "bfloat16" else params_dtype
