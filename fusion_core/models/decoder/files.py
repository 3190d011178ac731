"""Llama and GPT-2 checkpoints in Hugging Face's layout: ``config.json``."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from fusion_core.errors import InputError
from fusion_core.models.decoder.config import DecoderConfig, GPT2Config, Llama3Rope, LlamaConfig

KINDS: dict[str, type] = {"llama": LlamaConfig, "gpt2": GPT2Config}
# what a config.json may say beside our fields that changes the function: only these values can be read
FIXED: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu"},
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}
# buffers of old GPT-2 files, and of old Llama files
UNUSED = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")


def config_to_json(config: DecoderConfig) -> dict[str, Any]:
    """The ``config.json`` that transformers reads: our fields, and those that say what the model is.

    Raises:
      InputError: the norms are grouped, or the sizes are none that transformers takes.
    """
    fields = dataclasses.asdict(config)
    if fields.pop("norm_groups"):
        raise InputError(
            f"a decoder with grouped norms (norm_groups is {config.norm_groups}) cannot be exported to Hugging Face's "
            "format, which has one norm over the whole width; fuse with norm='plain' or 'calibrated' instead"
        )
    kind = next(name for name, cls in KINDS.items() if isinstance(config, cls))
    if isinstance(config, LlamaConfig):
        if config.hidden_size % config.num_attention_heads:
            raise InputError(
                f"a Llama with hidden_size {config.hidden_size} and num_attention_heads {config.num_attention_heads} cannot "
                "be exported: transformers demands that the first is a multiple of the second; fuse sources with equal ratios"
            )
        # transformers 5 reads rope_parameters, older versions rope_theta and rope_scaling
        scaling = fields.pop("rope_scaling")
        stretched = {"rope_type": "llama3", **scaling} if scaling else {"rope_type": "default"}
        fields |= {"rope_parameters": stretched | {"rope_theta": fields["rope_theta"]}}
        if scaling:
            fields["rope_scaling"] = stretched
    else:
        dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        fields |= dropouts
    return {"architectures": [ARCHITECTURES[kind]], "model_type": kind, "use_cache": True, **FIXED[kind], **fields}


def _llama_fields(values: dict[str, Any], origin: str) -> dict[str, Any]:
    heads = values.get("num_attention_heads")
    filled = dict(values)
    if filled.get("num_key_value_heads") is None:
        filled["num_key_value_heads"] = heads
    if filled.get("head_dim") is None and heads:
        filled["head_dim"] = values.get("hidden_size", 0) // heads
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise InputError(
            f"{origin}: rope_type is {kind!r}; the rotary positions 'default' and 'llama3' can be read here"
        )
    turned = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if turned not in (None, 1):
        raise InputError(
            f"{origin}: partial_rotary_factor is {turned!r}; only heads that are turned whole can be read here"
        )
    theta = rope.get("rope_theta", values.get("rope_theta"))
    if theta is not None:
        filled["rope_theta"] = float(theta)
    return filled | {"rope_scaling": _llama3_rope(rope, values, origin) if kind == "llama3" else None}


def _llama3_rope(rope: dict[str, Any], values: dict[str, Any], origin: str) -> Llama3Rope:
    found: dict[str, Any] = {field.name: rope.get(field.name) for field in dataclasses.fields(Llama3Rope)}
    length = "original_max_position_embeddings"
    if found[length] is None:
        found[length] = values.get(length)  # transformers 5 takes it from there, too
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{origin}: {name} of the 'llama3' rotary positions is {value!r}; it must be a number")
    return Llama3Rope(**{name: float(value) for name, value in found.items()} | {length: found[length]})


def config_from_json(values: dict[str, Any], origin: str = "config.json") -> DecoderConfig:
    """Reads the fields from ``config.json``; those that do not change the function are passed over.

    Raises:
      InputError: another model type, a field that is missing, or a setting that this model does not have.
    """
    kind = values.get("model_type")
    if kind not in KINDS:
        raise InputError(f"{origin}: model_type is {kind!r}; here {', '.join(map(repr, KINDS))} can be read")
    for name, wanted in FIXED[kind].items():
        if values.get(name, wanted) != wanted:
            raise InputError(f"{origin}: {name} is {values[name]!r}; only {wanted!r} can be read here")
    if kind == "llama":
        values = _llama_fields(values, origin)
    elif values.get("n_inner") is None:
        values = values | {"n_inner": 4 * values.get("n_embd", 0)}
    cls = KINDS[kind]
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "norm_groups"}
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and values.get(n) is None]
    if missing:
        raise InputError(f"{origin}: {', '.join(missing)} is missing; this is no {kind} that can be read")
    # a list of end tokens, as newer files have, must be hashable here
    found = {n: tuple(v) if isinstance(v := values[n], list) else v for n in fields if n in values}
    return cls(**found)
