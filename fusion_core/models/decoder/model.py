"""Logits of every decoder-only transformer that the registry has a record for."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from fusion_core.models.registry import architecture
from fusion_core.models.units import Config, Params


def forward(params: Params, config: Config, ids: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
    """Return the logits of the next token at every position.

    Attention is causal, so padding on the right changes nothing before it.

    Args:
      params: parameters, as ``fusion_core.models.registry.init`` or ``load_pretrained`` return them.
      config: their ``LlamaConfig``, ``Qwen2Config``, ``MistralConfig`` or ``GPT2Config``.
      ids: tokens.

    Returns:
      Logits in the params' dtype.

    Raises:
      InputError: a sequence is longer than a GPT-2's positions or a Mistral's window, or there is no forward pass here for
        the kind of network or its settings (``Architecture.cannot_run``).
    Source: Touvron et al. (2023), Yang et al. (2024), Radford et al. (2019); weights and numbers as Hugging Face's models.
    """
    record = architecture(config)
    record.check_runs(config)
    assert record.logits is not None
    return record.logits(params, config, {"ids": ids})
