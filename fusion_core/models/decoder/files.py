"""Checkpoints of decoders in Hugging Face's layout: ``config.json``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fusion_core.errors import InputError
from fusion_core.models.decoder.config import GPT2Config, Llama3Rope, LlamaConfig
from fusion_core.models.fields import made
from fusion_core.models.settings import Settings

# buffers of old files of GPT-2, GPT-NeoX and Llama
UNUSED = re.compile(r"\.(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")


class Spelling(NamedTuple):
    """The form of ``config.json`` for one kind of network.

    Attributes:
      model_type: name of the kind in the file.
      config: class of its configuration.
      model: name of its class in transformers.
      fixed: settings that change the arrays -> the only value of each that is supported.
      read: (values, their origin) -> values with all fields of ``config``; raises InputError.
      write: (configuration, its fields) -> fields to write; raises InputError.
      passed: settings that change the function -> the value that the forward pass here has; other values pass through.
      rope_json: rotary positions in transformers 5's form -> fields to write.
      kept: settings of training alone -> (what a file means that leaves it out, what is written if nothing is said).
    """

    model_type: str
    config: type
    model: str
    fixed: dict[str, Any]
    read: Callable[[dict[str, Any], str], dict[str, Any]]
    write: Callable[[Any, dict[str, Any]], dict[str, Any]]
    passed: Mapping[str, Any] = MappingProxyType({})
    kept: Mapping[str, tuple[Any, Any]] = MappingProxyType({})
    rope_json: Callable[[dict[str, Any]], dict[str, Any]] = lambda rope: rope_json(rope)

    def cannot_run(self, config: Any) -> str:
        """Return why the forward pass here does not compute what the settings say; "" if it does."""
        for name, ours in self.passed.items():
            if config.settings.get(name, ours) != ours:
                return f"{name} is {config.settings[name]!r}, and the forward pass here knows {ours!r} alone"
        rope = config.settings.get("rope_parameters") or {}
        if rope.get("rope_type", "default") not in KNOWN_ROPES or rope.get("partial_rotary_factor", 1) != 1:
            return f"the rotary positions are {rope}, and the forward pass here knows {' and '.join(KNOWN_ROPES)} alone"
        return ""


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
    settings = fields.pop("settings")
    said = {"architectures": [spelling.model], "model_type": spelling.model_type, "use_cache": True}
    said |= spelling.fixed | dict(spelling.passed) | {name: ours for name, (_, ours) in spelling.kept.items()}
    rope = settings.get("rope_parameters")
    if rope and "rope_theta" in fields:
        rope = rope | {"rope_theta": fields["rope_theta"]}  # which the file may have left out
    return said | spelling.write(config, fields) | settings | (spelling.rope_json(rope) if rope else {})


def config_from_json(spelling: Spelling, values: dict[str, Any], origin: str) -> Any:
    """Return the configuration that ``config.json`` describes; fields that do not change the function are ignored.

    Raises:
      InputError: a field is missing, or a setting is not supported.
    """
    for name, wanted in spelling.fixed.items():
        if values.get(name, wanted) != wanted:
            raise InputError(f"{origin}: {name} is {values[name]!r}; only {wanted!r} can be read here")
    settings = {n: values[n] for n, ours in spelling.passed.items() if values.get(n, ours) != ours}
    settings |= {n: v for n, (left, ours) in spelling.kept.items() if (v := values.get(n, left)) != ours}
    values = spelling.read(values, origin)
    kinds, depth = values.get("layer_types"), values.get("num_hidden_layers")
    if kinds is not None and depth is not None and len(kinds) != depth:
        raise InputError(
            f"{origin}: layer_types has {len(kinds)} entries for num_hidden_layers, {depth}; mend one of them"
        )
    values = values | {"settings": Settings(settings | values.get("settings", {}))}
    fields = {f.name: f for f in dataclasses.fields(spelling.config) if f.name != "norm_groups"}
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and values.get(n) is None]
    if missing:
        raise InputError(
            f"{origin}: {', '.join(missing)} is missing; this is no {spelling.model_type} that can be read"
        )
    # a list of end tokens, as newer files have, must be hashable here
    found = {n: tuple(v) if isinstance(v := values[n], list) else v for n in fields if n in values}
    return made(spelling.config, found, origin)


KNOWN_ROPES = ("default", "llama3")


def rope_of(values: dict[str, Any], theta: str = "rope_theta", turned: str = "partial_rotary_factor") -> dict[str, Any]:
    """Return the rotary positions as transformers 5 spells them, in one dict, however the file does.

    Args:
      values: contents of ``config.json``.
      theta, turned: older names of the base and of the part of a head that is turned.
    """
    rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    old = rope.pop("type", "default")
    rope.setdefault("rope_type", old)
    for name, older in (("rope_theta", theta), ("partial_rotary_factor", turned)):
        if rope.get(name) is None and values.get(older) is not None:
            rope[name] = values[older]
    if rope.get("partial_rotary_factor") == 1 and turned == "partial_rotary_factor":
        del rope["partial_rotary_factor"]  # as if it were left out
    return rope


def rope_json(rope: dict[str, Any], theta: str = "rope_theta", turned: str = "partial_rotary_factor") -> dict[str, Any]:
    """Return the rotary positions in the spellings of transformers 5 (``rope_parameters``) and of older versions."""
    named = (("rope_theta", theta), ("partial_rotary_factor", turned))
    older = {name: rope[n] for n, name in named if n in rope and (n == "rope_theta" or rope[n] != 1)}
    stretched = {n: v for n, v in rope.items() if n not in ("rope_theta", "partial_rotary_factor")}
    found = {"rope_parameters": rope, **older}
    return found | ({"rope_scaling": stretched} if rope["rope_type"] != "default" else {})


def llama_json(config: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a network of Llama's kind, its rotary positions in transformers' spellings.

    Raises:
      InputError: hidden_size is no multiple of num_attention_heads.
    """
    check_heads_divide(config)
    scaling = fields.pop("rope_scaling")
    stretched = {"rope_type": "llama3", **scaling} if scaling else {"rope_type": "default"}
    return fields | rope_json(stretched | {"rope_theta": fields["rope_theta"]})


def check_heads_divide(config: Any) -> None:
    """Raise InputError if hidden_size is no multiple of num_attention_heads, which transformers demands."""
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"a {type(config).__name__.removesuffix('Config')} with hidden_size {config.hidden_size} and "
            f"num_attention_heads {config.num_attention_heads} cannot be exported: transformers demands that the first is a "
            "multiple of the second; fuse sources with equal ratios"
        )


def with_heads(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the numbers of key heads and the width of a head, which old files leave out."""
    heads = values.get("num_attention_heads")
    filled = dict(values)
    if filled.get("num_key_value_heads") is None:
        filled["num_key_value_heads"] = heads
    if filled.get("head_dim") is None and heads:
        filled["head_dim"] = (values.get("hidden_size") or 0) // heads or None
    return filled


def llama_fields(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return the values with the fields that old files leave out, and the rotary positions under our names.

    Rotary positions of other kinds than "default" and "llama3", or of a part of a head, are settings.

    Raises:
      InputError: the numbers of "llama3" are not valid.
    """
    rope = rope_of(values)
    filled = with_heads(values) | {"rope_scaling": None}
    if rope.get("rope_theta") is not None:
        filled["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] not in KNOWN_ROPES or rope.get("partial_rotary_factor", 1) != 1:
        filled["settings"] = {"rope_parameters": rope}
    elif rope["rope_type"] == "llama3":
        filled["rope_scaling"] = llama3_rope(rope, values, origin)
    return filled


def qwen2_fields(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return ``llama_fields``, and the windows if they are used."""
    found = llama_fields(values, origin)
    return found | {"settings": found.get("settings", {}) | windows(values)}


WINDOWS = ("sliding_window", "max_window_layers", "layer_types")


def windows(values: dict[str, Any]) -> dict[str, Any]:
    """Return the sliding windows of a Qwen, with the kind of every layer, so that copies of layers keep theirs."""
    if not values.get("use_sliding_window"):
        return {}
    window, first, depth = (
        values.get("sliding_window"),
        values.get("max_window_layers"),
        values.get("num_hidden_layers"),
    )
    kinds = values.get("layer_types")
    if kinds is None and depth and first is not None:
        kinds = ["sliding_attention" if window and i >= first else "full_attention" for i in range(depth)]
    return {"use_sliding_window": True} | dict(zip(WINDOWS, (window, first, kinds), strict=True))


def llama3_rope(rope: dict[str, Any], values: dict[str, Any], origin: str) -> Llama3Rope:
    """Return the numbers of Llama 3.1's rotary positions. Raises InputError if they are not numbers."""
    found: dict[str, Any] = {field.name: rope.get(field.name) for field in dataclasses.fields(Llama3Rope)}
    length = "original_max_position_embeddings"
    if found[length] is None:
        found[length] = values.get(length)  # as transformers 5 does
    return made(Llama3Rope, found, origin)


def _gpt2_fields(values: dict[str, Any], origin: str) -> dict[str, Any]:
    return values if values.get("n_inner") is not None else values | {"n_inner": 4 * (values.get("n_embd") or 0)}


_DROPPED = {"attention_dropout": (0.0, 0.0)}
LLAMA = Spelling(
    "llama", LlamaConfig, "LlamaForCausalLM", {}, llama_fields, llama_json, {"hidden_act": "silu"}, _DROPPED
)
_GPT2_PASSED = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
GPT2 = Spelling(
    "gpt2",
    GPT2Config,
    "GPT2LMHeadModel",
    {"add_cross_attention": False},
    _gpt2_fields,
    lambda config, fields: fields,
    _GPT2_PASSED,
    dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), (0.1, 0.0)),
)
