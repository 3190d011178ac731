"""T5 checkpoints in Hugging Face's layout: ``config.json`` and ``model.safetensors`` (or shards with an index)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.t5.config import T5Config
from fusion_core.t5.model import Params, parameter_shapes

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


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); the file is damaged, copy it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object; the file is damaged, copy it again")
    return values


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    if (folder / INDEX).exists():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise InputError(f"{folder / INDEX} has no weight_map of file names; it is damaged, copy it again")
        files = sorted(set(weight_map.values()))
    elif (folder / WEIGHTS).exists():
        files = [WEIGHTS]
    else:
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which is never loaded: save it again as safetensors" if pickled else ""
        raise InputError(f"{folder} has neither {WEIGHTS} nor {INDEX}{hint}")
    tensors: dict[str, np.ndarray] = {}
    for name in files:
        if not (folder / name).exists():
            raise InputError(f"{folder / INDEX} names {name}, which is missing; copy the checkpoint again")
        try:
            tensors |= safetensors.numpy.load_file(folder / name)
        except safetensors.SafetensorError as error:
            raise InputError(f"{folder / name} cannot be read ({error}); it is truncated or damaged") from None
    return tensors


def load_pretrained(path: str | pathlib.Path) -> tuple[Params, T5Config]:
    """Reads a T5 checkpoint folder.

    Returns:
      ``(params, config)``; params is a nested dict of arrays in Hugging Face's names.

    Raises:
      InputError: the folder, a file or a tensor is missing, damaged, of a wrong shape, or not finite.
    """
    folder = pathlib.Path(path)
    if not (folder / "config.json").exists():
        raise InputError(
            f"{folder} is no checkpoint: it has no config.json; give the folder that save_pretrained wrote"
        )
    config = config_from_json(_read_json(folder / "config.json"), str(folder / "config.json"))
    tensors = _read_tensors(folder)
    # a checkpoint may carry copies of the embedding, or the copy instead of the original
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    for copy in copies:
        if copy in tensors:
            tensors.setdefault("shared.weight", tensors[copy])
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    elif "shared.weight" in tensors:  # an unscaled head equal to the embedding is saved once
        tensors.setdefault("lm_head.weight", tensors["shared.weight"])
    tensors.pop(UNUSED, None)
    flat = {}
    for name, shape in flat_names(parameter_shapes(config)).items():
        if name not in tensors:
            raise InputError(
                f"{folder}: the tensor {name} is missing; config.json and the weights do not belong together"
            )
        tensor = tensors[name]
        if tensor.shape != shape:
            raise InputError(f"{folder}: {name} has shape {tensor.shape}, but config.json says {shape}")
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise InputError(f"{folder}: {name} has entries that are not finite; the checkpoint is of a diverged run")
        flat[name] = jnp.asarray(tensor)
    unknown = set(tensors) - set(flat) - set(copies)
    if unknown:
        raise InputError(
            f"{folder}: unknown tensors {sorted(unknown)[:3]}; this is not the T5 that config.json describes"
        )
    return nested(flat), config


def write_pretrained(folder: pathlib.Path, params: Params, config: T5Config) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into an existing folder (see ``save_pretrained``)."""
    values = config_to_json(config)  # first: it refuses what cannot be exported
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in flat_names(params).items()}
    values["dtype"] = str(tensors["shared.weight"].dtype)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def save_pretrained(path: str | pathlib.Path, params: Params, config: T5Config) -> None:
    """Writes a checkpoint folder that transformers' ``T5ForConditionalGeneration.from_pretrained`` reads.

    The folder appears whole or not at all.

    Raises:
      InputError: a parameter's name or shape is not what ``config`` says, or its norms are grouped.
      FileExistsError: ``path`` exists and is not an empty folder.
    """
    expected = flat_names(parameter_shapes(config))
    found = {name: tuple(leaf.shape) for name, leaf in flat_names(params).items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(f"{name} has shape {found.get(name)}, but the config says {expected.get(name)}")
    with atomic.new_folder(pathlib.Path(path)) as folder:
        write_pretrained(folder, params, config)
