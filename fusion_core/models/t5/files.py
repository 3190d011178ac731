"""T5 checkpoints in Hugging Face's layout: their names, and ``config.json``."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from fusion_core.errors import InputError
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import Params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# in released checkpoints, but read by no version of the model
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def flat_names(tree: Any) -> dict[str, Any]:
    """Leaves of a nested dict under dotted names, in Hugging Face's spelling: ``encoder.block.0.layer...weight``."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, tuple))[0]
    return {".".join(part.key for part in path): leaf for path, leaf in leaves}


def nested(flat: dict[str, Any]) -> Params:
    """Inverse of ``flat_names``."""
    tree: Params = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def config_to_json(config: T5Config) -> dict[str, Any]:
    """The ``config.json`` that transformers reads: our fields, and those that say what the model is."""
    fields = dataclasses.asdict(config)
    if fields.pop("norm_groups"):
        raise InputError(
            f"a T5 with grouped norms (norm_groups is {config.norm_groups}) cannot be exported to Hugging Face's format: "
            "its T5 has one norm over the whole width; fuse with norm='plain' or 'calibrated' instead"
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "use_cache": True,
        "initializer_factor": 1.0,
        # transformers 5 ties the two tensors in memory whatever tie_word_embeddings says, and scales by this
        "scale_decoder_outputs": config.tie_word_embeddings,
        **fields,
    }


def config_from_json(values: dict[str, Any], origin: str = "config.json") -> T5Config:
    """Reads the fields of a T5 from ``config.json``; those that do not change the function are passed over.

    ``tie_word_embeddings`` may be absent or forced to true by current transformers, which then keeps the truth in
    ``scale_decoder_outputs``.
    """
    if values.get("model_type") != "t5":
        raise InputError(f"{origin}: model_type is {values.get('model_type')!r}; only 't5' can be read here")
    known = {f.name for f in dataclasses.fields(T5Config)} - {"norm_groups"}
    fields = {k: v for k, v in values.items() if k in known}
    fields["tie_word_embeddings"] = bool(
        values.get("scale_decoder_outputs", values.get("tie_word_embeddings") is not False)
    )
    fields["dropout_rate"] = _rate(values.get("dropout_rate", 0.1), origin)  # the reference's default
    if fields.get("num_decoder_layers") is None:
        fields["num_decoder_layers"] = fields.get("num_layers", T5Config.num_layers)
    return T5Config(**fields)


def _rate(value: Any, origin: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{origin}: dropout_rate is {value!r}; it must be a number from 0 to below 1")
    return float(value)
