"""The fields of a ``config.json``: the type and range of each, once for all architectures, which spell them alike.

Files are checked before anything reads them, configurations when they are made. A field that is not here passes through as
it is, and no code of ours reads it.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fusion_core.errors import InputError

LARGEST, MOST_LAYERS = 2**31 - 1, 100_000  # of a size or an id; of layers, which the weights have to have too
_short = reprlib.Repr()
_short.maxother = _short.maxstring = _short.maxlong = 60


class Kind(NamedTuple):
    """The values that a field may have.

    Attributes:
      what: they are, in words.
      holds: value -> whether it is one.
      parts: of an object, the kinds of its fields, any of which may be null.
    """

    what: str
    holds: Callable[[Any], bool]
    parts: Mapping[str, Kind] = MappingProxyType({})


def whole(what: str, least: int, most: int = LARGEST) -> Kind:
    """Return the kind of whole numbers in a range; true is none."""
    return Kind(what, lambda value: isinstance(value, int) and type(value) is not bool and least <= value <= most)


def real(what: str, least: float, most: float = 1e38) -> Kind:
    """Return the kind of numbers in a range, which float32 holds if it is left out; true is none."""
    return Kind(
        what, lambda value: isinstance(value, int | float) and type(value) is not bool and least <= value <= most
    )


def many(what: str, kind: Kind) -> Kind:
    """Return the kind of lists of values of one kind."""
    return Kind(what, lambda value: isinstance(value, list | tuple) and all(map(kind.holds, value)))


TINY = 1e-30  # positive numbers below it are 0 to float32, or their inverses infinite
SIZE = whole(f"a positive integer, at most {LARGEST:,}", 1)
LAYERS = whole(f"a positive integer, at most {MOST_LAYERS:,}", 1, MOST_LAYERS)
ID = whole("an id from 0 on", 0)
IDS = Kind(
    f"{ID.what}, or a list of such",
    lambda value: ID.holds(value) or (isinstance(value, list | tuple) and bool(value) and all(map(ID.holds, value))),
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text of at most 1,000 letters", lambda value: isinstance(value, str) and len(value) <= 1000)
TEXTS = many("a list of texts", TEXT)
SHARE = real("a number from 0 to 1", 0.0, 1.0)
RATE = Kind("at least 0 and below 1", lambda value: SHARE.holds(value) and value < 1)
PART = real("a number above 0 and up to 1", TINY, 1.0)
POSITIVE = real("a positive number", TINY)
NOT_NEGATIVE = real("a finite number that is not negative", 0.0)
BASE = real("a number of at least 1", 1.0)
POSITIVES = many("a list of positive numbers", POSITIVE)

# rotary positions of every kind
ROPE = {
    **dict.fromkeys(("rope_type", "type"), TEXT),
    **{"rope_theta": BASE, "partial_rotary_factor": PART, "original_max_position_embeddings": SIZE},
    **dict.fromkeys(("factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow"), POSITIVE),
    **dict.fromkeys(("low_freq_factor", "mscale", "mscale_all_dim"), NOT_NEGATIVE),
    **dict.fromkeys(("long_factor", "short_factor"), POSITIVES),
}
ROPES = Kind("an object", lambda value: isinstance(value, Mapping), ROPE)
FIELDS = {
    # sizes, in the names of T5s, of Llamas, of GPT-2s
    **dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_heads"), SIZE),
    **dict.fromkeys(("relative_attention_num_buckets", "relative_attention_max_distance"), SIZE),
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"), SIZE),
    **dict.fromkeys(("head_dim", "max_position_embeddings", "n_positions", "n_embd", "n_head", "n_inner"), SIZE),
    **dict.fromkeys(("num_layers", "num_decoder_layers", "num_hidden_layers", "n_layer"), LAYERS),
    # numbers of the forward pass
    **dict.fromkeys(("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"), SHARE),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop"), SHARE),
    **dict.fromkeys(("attn_pdrop", "classifier_dropout"), SHARE),
    "dropout_rate": RATE,
    **dict.fromkeys(("rope_theta", "rotary_emb_base"), BASE),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), PART),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), ROPES),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"), POSITIVE),
    **dict.fromkeys(("sliding_window", "original_max_position_embeddings"), SIZE),
    "max_window_layers": whole("a whole number from 0 on", 0),
    "layer_types": TEXTS,
    # words and switches
    **dict.fromkeys(("model_type", "feed_forward_proj", "dense_act_fn", "activation_function"), TEXT),
    **dict.fromkeys(("hidden_act", "hidden_activation", "dtype", "torch_dtype", "transformers_version"), TEXT),
    "architectures": TEXTS,
    **dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs", "is_gated_act", "is_encoder_decoder"), FLAG),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window", "use_parallel_residual", "use_cache"), FLAG),
    **dict.fromkeys(("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention"), FLAG),
    # ids
    **dict.fromkeys(("decoder_start_token_id", "bos_token_id"), ID),
    "pad_token_id": whole("an id from 0 on, or -1 for none", -1),  # as old files of Llamas have it
    "eos_token_id": IDS,
    **dict.fromkeys(("initializer_range", "initializer_factor"), NOT_NEGATIVE),
}
_MAY_BE_NONE = ("pad_token_id", "bos_token_id", "eos_token_id", "rope_scaling")  # in configurations


def faults(values: Mapping[str, Any], kinds: Mapping[str, Kind] = FIELDS, place: str = "") -> Iterator[str]:
    """Yield what every value that is none of its kind is, and what it must be; null is as if it were left out.

    Args:
      values: by the names of their fields.
      kinds: of the fields; others are passed over.
      place: put in front of the names.
    """
    for name, value in values.items():
        if value is None or (kind := kinds.get(name)) is None:
            continue
        if not kind.holds(value):
            yield f"{place}{name} is {_short.repr(value)}; it must be {kind.what}"
        elif kind.parts:
            yield from faults(value, kind.parts, f"{place}{name}.")


def _joined(found: list[str], most: int = 5) -> str:
    more = f", and {len(found) - most} others" if len(found) > most else ""
    return ", and ".join(found[:most]) + more


def made(kind: type, values: Mapping[str, Any], origin: str) -> Any:
    """Return a configuration of the class ``kind``, with whole numbers as floats in fields of floats.

    Raises:
      InputError: a value is null that must not be, and the message begins with ``origin``; or as ``kind``.
    """
    if nulls := [name for name, value in values.items() if value is None and name not in _MAY_BE_NONE]:
        raise InputError(f"{origin}: {', '.join(nulls)} is null; give it, or leave it out")
    real = {field.name for field in dataclasses.fields(kind) if field.type == "float"}
    return kind(**{name: float(v) if name in real and isinstance(v, int) else v for name, v in values.items()})


def check_values(values: Mapping[str, Any], origin: str) -> None:
    """Raise InputError, which begins with ``origin``, if a value of a ``config.json`` is of another type or range."""
    if found := list(faults(values)):
        raise InputError(f"{origin}: {_joined(found)}; mend the file, or copy it again")


def check_config(config: Any, kinds: Mapping[str, Kind] = FIELDS) -> None:
    """Raise InputError if a field of a configuration, or a setting that passes through, is of another type or range."""
    kind = type(config).__name__
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    nulls = [n for n, v in values.items() if v is None and n in kinds and n not in _MAY_BE_NONE]
    found = [f"{name} is None; it must be {kinds[name].what}" for name in nulls]
    found += faults({name: value for name, value in values.items() if name != "rope_scaling"}, kinds)
    if found:
        raise InputError(f"{kind}.{_joined(found)}")
    check_values(values.get("settings", {}), f"{kind}.settings")
