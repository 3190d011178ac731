"""Fusion rules of Llama and GPT-2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.growth import operators
from fusion_core.growth.agreement import NormMode, added
from fusion_core.growth.calibration import NormKind
from fusion_core.growth.linear import FusionMap, Params
from fusion_core.models.decoder.config import GPT2Config, LlamaConfig
from fusion_core.models.norms import normed
from fusion_core.models.registry import architecture, parameter_shapes

LLAMA: operators.Table = {
    "embed_tokens.weight": operators.embedding,
    **operators.GROUPED_QUERY_ATTENTION,
    **dict.fromkeys([f"{n}_proj.weight" for n in ("gate", "up", "down")], operators.dense),
    **dict.fromkeys([f"{n}_proj.bias" for n in ("gate", "up", "down")], operators.bias),
    **dict.fromkeys(["input_layernorm.weight", "post_attention_layernorm.weight", "norm.weight"], operators.norm),
    "lm_head.weight": operators.dense_out,
}

GPT2: operators.Table = {
    "wte.weight": operators.embedding,
    "wpe.weight": operators.embedding,
    **operators.PACKED_ATTENTION,
    "c_fc.weight": operators.conv1d,
    "c_fc.bias": operators.bias,
    **dict.fromkeys([f"ln_{n}.{part}" for n in "12f" for part in ("weight", "bias")], operators.norm),
    "lm_head.weight": operators.dense_out,
}

# where the head is the embedding, the last norm carries the weights of the mean
TIED_LLAMA = {**LLAMA, "norm.weight": operators.final_norm}
TIED_GPT2 = {**GPT2, "ln_f.weight": operators.final_norm, "ln_f.bias": operators.final_norm}


def _equal_ratio(configs: Sequence[Any], over: str, under: str, why: str) -> None:
    pairs = [(getattr(config, over), getattr(config, under)) for config in configs]
    for i, (top, bottom) in enumerate(pairs[1:], start=2):
        if top // bottom != pairs[0][0] // pairs[0][1]:
            raise InputError(
                f"cannot fuse networks 1 and {i}: {over} / {under} is {pairs[0][0]} / {pairs[0][1]} and {top} / {bottom}; "
                f"{why}, so the ratios must agree"
            )


def fused_llama_config(configs: Sequence[LlamaConfig], norm: NormMode = "plain") -> LlamaConfig:
    """Widths and heads add up; depth, head width, rotary positions and the number of query heads a key head must agree.

    Raises:
      InputError: they do not.
    """
    why = "a fused key head serves as many query heads as each source's"
    _equal_ratio(configs, "num_attention_heads", "num_key_value_heads", why)
    summed = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
    return added(configs, "hidden_size", summed, ("num_hidden_layers",), norm)


def fused_gpt2_config(configs: Sequence[GPT2Config], norm: NormMode = "plain") -> GPT2Config:
    """Widths and heads add up; depth, head width and positions must agree.

    Raises:
      InputError: they do not.
    """
    _equal_ratio(configs, "n_embd", "n_head", "all heads of a GPT-2 are equally wide")
    return added(configs, "n_embd", ("n_inner", "n_head"), ("n_layer",), norm)


def _mapper(table: operators.Table, tied: operators.Table) -> Callable[[Sequence[Any], tuple[float, ...]], FusionMap]:
    def mapping(configs: Sequence[Any], weights: tuple[float, ...]) -> FusionMap:
        """The fusion whose logits are, up to the norms' statistics, ``Σ wᵢ logitsᵢ``."""
        chosen = tied if configs[0].tie_word_embeddings else table
        return operators.table_map(chosen, [parameter_shapes(config) for config in configs], weights)

    return mapping


llama_map = _mapper(LLAMA, TIED_LLAMA)
gpt2_map = _mapper(GPT2, TIED_GPT2)


def decoder_pass(params: Params, config: Any, batch: Any, norm: Any) -> Array:
    """Logits on a batch of ``ids``, with ``norm(parts, x, mask)`` in the place of the norms; every token counts."""
    return architecture(config).run(params, config, batch, norm)  # type: ignore[misc]


def decoder_unit(x: Array, config: Any, groups: tuple[int, ...]) -> Array:
    return normed(x, architecture(config).norm(config), groups)  # type: ignore[misc]


def llama_norm(config: LlamaConfig) -> NormKind:
    return NormKind(centred=False, epsilon=config.rms_norm_eps)


def gpt2_norm(config: GPT2Config) -> NormKind:
    return NormKind(centred=True, epsilon=config.layer_norm_epsilon)
