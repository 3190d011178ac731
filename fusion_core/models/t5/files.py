"""T5 checkpoints in Hugging Face's layout: ``config.json``."""

from __future__ import annotations

import dataclasses
from typing import Any

from fusion_core.errors import InputError
from fusion_core.models.fields import made
from fusion_core.models.t5.config import T5Config

# a tensor of released checkpoints that no version of the model reads
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def config_to_json(config: T5Config) -> dict[str, Any]:
    """Return the ``config.json`` that transformers reads: the fields of ``T5Config`` and those that name the model.

    Raises:
      InputError: the norms are grouped.
    """
    fields = dataclasses.asdict(config)
    if fields.pop("norm_groups"):
        raise InputError(
            f"a T5 with grouped norms (norm_groups is {config.norm_groups}) cannot be exported to Hugging Face's format: "
            "its T5 has one norm over the whole width; fuse with norm='plain' or 'calibrated' instead"
        )
    name = type(config).__name__.removesuffix("Config")
    # transformers 5 ties a T5's two tensors in memory whatever tie_word_embeddings is, and scales by this
    scaled = {"scale_decoder_outputs": config.tie_word_embeddings} if name == "T5" else {}
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": name.lower(),
        "is_encoder_decoder": True,
        "use_cache": True,
        "initializer_factor": 1.0,
        **scaled,
        **fields,
    }


def config_from_json(values: dict[str, Any], origin: str = "config.json", kind: type[T5Config] = T5Config) -> T5Config:
    """Return the T5 that a ``config.json`` describes; fields that do not change the function are ignored.

    Current transformers may leave ``tie_word_embeddings`` out or force it to true; the setting that counts is then in
    ``scale_decoder_outputs``.

    Raises:
      InputError: a field is missing or not valid; the message begins with ``origin``.
    """
    known = {f.name for f in dataclasses.fields(T5Config)} - {"norm_groups"}
    fields = {k: v for k, v in values.items() if k in known} | _token_ids(values, origin)
    fields["tie_word_embeddings"] = bool(
        values.get("scale_decoder_outputs", values.get("tie_word_embeddings") is not False)
    )
    fields["dropout_rate"] = values.get("dropout_rate", 0.1)  # the reference's default
    _check_activation(values, origin)
    if fields.get("num_decoder_layers") is None:
        fields["num_decoder_layers"] = fields.get("num_layers", T5Config.num_layers)
    return made(kind, fields, origin)


def _token_ids(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return the special ids; of those that a file leaves out, transformers has defaults for pad and end."""
    found: dict[str, Any] = {
        "pad_token_id": values.get("pad_token_id", 0),
        "eos_token_id": values.get("eos_token_id", 1),
    }
    found["decoder_start_token_id"] = values.get("decoder_start_token_id")
    for name, value in found.items():
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if value is None or not ids or not all(type(i) is int and i >= 0 for i in ids):
            what = "missing" if name not in values else "null" if value is None else repr(value)
            usual = f"{found['pad_token_id']}, the pad_token_id" if name.startswith("decoder") else "the tokenizer's"
            raise InputError(
                f"{origin}: {name} is {what}; a T5 needs one to train and to write, give it (usually {usual})"
            )
        if isinstance(value, list):
            found[name] = tuple(value) if len(value) > 1 else value[0]
    return found


def _check_activation(values: dict[str, Any], origin: str) -> None:
    """Raise InputError if the fields that transformers derives from ``feed_forward_proj`` say something else."""
    said = values.get("feed_forward_proj") or T5Config.feed_forward_proj
    gated, activation = said.startswith("gated-"), said.removeprefix("gated-")
    derived: dict[str, tuple[Any, ...]] = {"is_gated_act": (gated,), "dense_act_fn": (activation,)}
    if said == "gated-gelu":
        derived["dense_act_fn"] = ("gelu_new",)
    if activation in ("silu", "swish"):
        derived["dense_act_fn"] = ("silu", "swish")
    for name, expected in derived.items():
        if (value := values.get(name)) is not None and value not in expected:
            raise InputError(
                f"{origin}: {name} is {value!r}, but feed_forward_proj, {said!r}, means {expected[0]!r}; mend the one that is "
                "wrong"
            )
