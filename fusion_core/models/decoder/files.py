"""Checkpoints of decoders in Hugging Face's layout: ``config.json``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from fusion_core.errors import InputError
from fusion_core.models.decoder.config import GPT2Config, Llama3Rope, LlamaConfig

# buffers of old GPT-2 files, and of old Llama files
UNUSED = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")


class Spelling(NamedTuple):
    """The form of ``config.json`` for one kind of network.

    Attributes:
      model_type: name of the kind in the file.
      config: class of its configuration.
      model: name of its class in transformers.
      fixed: settings that change the function -> the only value of each that is supported.
      read: (values, their origin) -> values with all fields of ``config``; raises InputError.
      write: (configuration, its fields) -> fields to write; raises InputError.
    """

    model_type: str
    config: type
    model: str
    fixed: dict[str, Any]
    read: Callable[[dict[str, Any], str], dict[str, Any]]
    write: Callable[[Any, dict[str, Any]], dict[str, Any]]


def config_to_json(spelling: Spelling, config: Any) -> dict[str, Any]:
    """Return the ``config.json`` that transformers reads: the configuration's fields and those that name the model.

    Raises:
      InputError: the norms are grouped, or transformers does not support the sizes.
    """
    fields = dataclasses.asdict(config)
    if fields.pop("norm_groups"):
        raise InputError(
            f"a decoder with grouped norms (norm_groups is {config.norm_groups}) cannot be exported to Hugging Face's "
            "format, which has one norm over the whole width; fuse with norm='plain' or 'calibrated' instead"
        )
    said = {"architectures": [spelling.model], "model_type": spelling.model_type, "use_cache": True}
    return said | spelling.fixed | spelling.write(config, fields)


def config_from_json(spelling: Spelling, values: dict[str, Any], origin: str) -> Any:
    """Return the configuration that ``config.json`` describes; fields that do not change the function are ignored.

    Raises:
      InputError: a field is missing, or a setting is not supported.
    """
    for name, wanted in spelling.fixed.items():
        if values.get(name, wanted) != wanted:
            raise InputError(f"{origin}: {name} is {values[name]!r}; only {wanted!r} can be read here")
    values = spelling.read(values, origin)
    fields = {f.name: f for f in dataclasses.fields(spelling.config) if f.name != "norm_groups"}
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and values.get(n) is None]
    if missing:
        raise InputError(
            f"{origin}: {', '.join(missing)} is missing; this is no {spelling.model_type} that can be read"
        )
    # a list of end tokens, as newer files have, must be hashable here
    found = {n: tuple(v) if isinstance(v := values[n], list) else v for n in fields if n in values}
    return spelling.config(**found)


def llama_json(config: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a network of Llama's kind, its rotary positions in transformers' spellings.

    Raises:
      InputError: hidden_size is no multiple of num_attention_heads.
    """
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"a {type(config).__name__.removesuffix('Config')} with hidden_size {config.hidden_size} and "
            f"num_attention_heads {config.num_attention_heads} cannot be exported: transformers demands that the first is a "
            "multiple of the second; fuse sources with equal ratios"
        )
    # transformers 5 reads rope_parameters, older versions rope_theta and rope_scaling
    scaling = fields.pop("rope_scaling")
    stretched = {"rope_type": "llama3", **scaling} if scaling else {"rope_type": "default"}
    fields |= {"rope_parameters": stretched | {"rope_theta": fields["rope_theta"]}}
    return fields | ({"rope_scaling": stretched} if scaling else {})


def llama_fields(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return the values with the fields that old files leave out, and the rotary positions under our names.

    Raises:
      InputError: the rotary positions are of another kind than "default" and "llama3", or turn a part of a head only.
    """
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
        found[length] = values.get(length)  # as transformers 5 does
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{origin}: {name} of the 'llama3' rotary positions is {value!r}; it must be a number")
    return Llama3Rope(**{name: float(value) for name, value in found.items()} | {length: found[length]})


def _gpt2_fields(values: dict[str, Any], origin: str) -> dict[str, Any]:
    return values if values.get("n_inner") is not None else values | {"n_inner": 4 * values.get("n_embd", 0)}


def _gpt2_json(config: GPT2Config, fields: dict[str, Any]) -> dict[str, Any]:
    return fields | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)


LLAMA = Spelling("llama", LlamaConfig, "LlamaForCausalLM", {"hidden_act": "silu"}, llama_fields, llama_json)
_GPT2_FIXED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
GPT2 = Spelling("gpt2", GPT2Config, "GPT2LMHeadModel", _GPT2_FIXED, _gpt2_fields, _gpt2_json)
