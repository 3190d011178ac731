"""FLOPs of a training step, counted from the shapes, and the peak FLOP/s of devices."""

from __future__ import annotations

import re

from fusion_core.models.t5.config import T5Config

# part of JAX's name of a device kind -> peak of dense bf16 products in FLOP/s, and of float32 ones if published.
# Sources: NVIDIA's data sheets (dense, without sparsity; float32 outside the tensor cores); Google Cloud's TPU pages.
# JAX has a TPU v2 or v3 as two devices, one a core; the table's entries are per core, too.
_PEAKS = {
    "v100": (125e12, 15.7e12),  # float16: it has no bf16
    "a100": (312e12, 19.5e12),
    "h100 pcie": (756e12, 51e12),
    "h100 nvl": (835e12, 60e12),
    "h100": (989e12, 67e12),
    "h200": (989e12, 67e12),
    "b200": (2250e12, 80e12),
    "l4": (121e12, 30.3e12),
    "tpu v2": (22.5e12, None),
    "tpu v3": (61.5e12, None),
    "tpu v4": (275e12, None),
    "tpu v5 lite": (197e12, None),
    "tpu v5e": (197e12, None),
    "tpu v5": (459e12, None),
    "tpu v5p": (459e12, None),
    "tpu v6 lite": (918e12, None),
    "tpu v6e": (918e12, None),
}


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """Return the peak of one device in floating-point operations a second, or None if it is not known.

    Args:
      device_kind: ``jax.Device.device_kind``: "NVIDIA H100 80GB HBM3", "TPU v5 lite", "cpu", ...
      dtype: "bfloat16" or "float32".
    """
    words = device_kind.lower().replace("-", " ")
    found = [name for name in _PEAKS if re.search(rf"\b{re.escape(name)}\b", words)]
    if not found:
        return None
    bf16, f32 = _PEAKS[max(found, key=len)]
    return f32 if dtype == "float32" else bf16


def forward_flops(config: T5Config, batch: int, source: int, target: int) -> float:
    """Return the floating-point operations of the matrix products of one forward pass (see ``step_flops``)."""
    d, inner, v = config.d_model, config.inner_dim, config.vocab_size
    ff = (3 if config.gated else 2) * d * config.d_ff
    encoder = source * (4 * d * inner + ff) + 2 * source * source * inner
    decoder = target * (4 * d * inner + ff) + 2 * target * target * inner
    cross = target * 2 * d * inner + source * 2 * d * inner + 2 * target * source * inner
    layers = config.num_layers * encoder + config.num_decoder_layers * (decoder + cross)
    return 2.0 * batch * (layers + target * d * v)


def step_flops(config: T5Config, batch: int, source: int, target: int) -> float:
    """Return the floating-point operations of one training step: matrix products, forward and backward.

    A product of [m, n] and [n, p] counts 2·m·n·p; the backward pass costs twice the forward one. Embedding look-ups,
    norms, softmax and the optimizer are left out (under 5 % at every size that we train), and so is rematerialisation:
    model FLOPs utilisation is defined by the model's own operations. Packed rows count as full rows: the products
    between documents are computed, then masked.

    Args:
      config: the network's configuration.
      batch: sequences in the global batch, or rows of packed ones.
      source, target: their lengths in tokens.

    Source: Chowdhery et al. (2022), appendix B, for the definition of the utilisation.
    """
    return 3.0 * forward_flops(config, batch, source, target)


def utilisation(
    flops: float, seconds: float, device_kind: str, devices: int = 1, dtype: str = "bfloat16"
) -> float | None:
    """Return the model FLOPs utilisation ``flops / (seconds · devices · peak)``; None if the peak is not known."""
    peak = peak_flops(device_kind, dtype)
    return None if peak is None else flops / (seconds * devices * peak)
