"""The one table of architectures: to add one, add one record to ``ARCHITECTURES``.

A record's ``arrays`` gives for every array which axis makes or reads which units of which space. From it follow shapes,
fusion (spaces are concatenated), operators that copy units or layers, learning-rate factors, optimizer states, and the
streaming of checkpoint files (``fusion_core.growth``, ``fusion_core.checkpoints``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.models import conv, mlp
from fusion_core.models.architecture import HEAD as HEAD
from fusion_core.models.architecture import Architecture as Architecture
from fusion_core.models.architecture import Batch as Batch
from fusion_core.models.architecture import Files, Norm
from fusion_core.models.decoder.records import DECODERS
from fusion_core.models.fields import check_values
from fusion_core.models.norms import NormKind
from fusion_core.models.t5 import files as t5_files
from fusion_core.models.t5 import relatives
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import forward as t5_forward
from fusion_core.models.t5.model import normed_forward, shifted_right
from fusion_core.models.t5.parameters import arrays as t5_arrays
from fusion_core.models.t5.parameters import init as t5_init
from fusion_core.models.t5.parameters import initial as t5_initial
from fusion_core.models.t5.parameters import stacks as t5_stacks
from fusion_core.models.units import Axis, Config, Layout, Params, Space, by_name, shapes_of

# T5


def _t5_run(params: Params, config: T5Config, batch: Batch, norm: Norm) -> Array:
    """Return the logits of ``targets`` given ``encoder_ids``; padding does not count."""
    ids, targets = jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["targets"])
    masks = {"encoder": ids != config.pad_token_id, "decoder": targets != config.pad_token_id}
    normed_parts = lambda parts, x: norm(parts, x, masks[parts["path"][0]])
    return normed_forward(params, config, ids, shifted_right(targets, config), masks["encoder"], normed_parts)


def _t5_logits(params: Params, config: T5Config, batch: Batch) -> Array:
    """Return the logits at ``decoder_ids`` given ``encoder_ids``; all tokens count."""
    return t5_forward(params, config, jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["decoder_ids"]))


_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _t5_aliases(config: T5Config) -> dict[str, tuple[str, ...]]:
    embedding: dict[str, tuple[str, ...]] = {"shared.weight": _EMBEDDINGS}
    if not config.own_head:
        return embedding
    # an unscaled head equal to the embedding is saved once
    return embedding | {HEAD: ("shared.weight", *_EMBEDDINGS)}


def _t5_copies(config: T5Config) -> dict[str, str]:
    return dict.fromkeys((*_EMBEDDINGS, *(() if config.own_head else (HEAD,))), "shared.weight")


T5 = Architecture(
    config=T5Config,
    arrays=t5_arrays,
    stacks=t5_stacks,
    init=t5_init,
    initial=t5_initial,
    stream="d_model",
    norm=lambda config: NormKind(centred=False, epsilon=config.layer_norm_epsilon),
    tied=lambda config: ("decoder.final_layer_norm.weight",) if not config.own_head else (),
    logit_scale=lambda config: config.d_model**-0.5 if config.tie_word_embeddings else 1.0,
    logits=_t5_logits,
    run=_t5_run,
    files=Files(
        model_type="t5",
        read_config=t5_files.config_from_json,
        write_config=t5_files.config_to_json,
        copies=_t5_copies,
        aliases=_t5_aliases,
        ignored=lambda config, name: name == t5_files.UNUSED,
        spans=True,
    ),
)


def _relative(
    kind: type, read: Callable[[dict[str, Any], str], T5Config], model_type: str, **more: Any
) -> Architecture:
    """Return the record of a network of T5's kind."""
    assert T5.files is not None
    files = dataclasses.replace(T5.files, model_type=model_type, read_config=read)
    return dataclasses.replace(T5, config=kind, files=files, **more)


MT5 = _relative(relatives.MT5Config, relatives.mt5_from_json, "mt5")
UMT5 = _relative(
    relatives.UMT5Config,
    relatives.umt5_from_json,
    "umt5",
    cannot_run=lambda config: "the forward pass here has one position bias a stack, and a umT5 one a layer",
)

# Networks whose layers each read only the one before

MLP = Architecture(config=mlp.MLPConfig, arrays=mlp.arrays, stacks=mlp.stacks, init=mlp.init)
CONV = Architecture(config=conv.ConvConfig, arrays=conv.arrays, stacks=conv.stacks, init=conv.init)

ARCHITECTURES: dict[type, Architecture] = {record.config: record for record in (T5, MT5, UMT5, *DECODERS, MLP, CONV)}
# name in config.json -> record
MODEL_TYPES: dict[str, Architecture] = {
    record.files.model_type: record for record in ARCHITECTURES.values() if record.files is not None
}


def register(record: Architecture) -> None:
    """Add the record of an architecture of one's own, which fusion, growth and files then take (docs/testing.md).

    Raises:
      InputError: its configurations' class, or the model type of its files, has another record.
    """
    kind = record.files.model_type if record.files is not None else None
    if ARCHITECTURES.get(record.config, record) is not record or MODEL_TYPES.get(kind or "", record) is not record:
        taken = record.config.__name__ if record.config in ARCHITECTURES else repr(kind)
        raise InputError(
            f"{taken} has another record already; give the configurations a class and model type of their own"
        )
    ARCHITECTURES[record.config] = record
    if kind is not None:
        MODEL_TYPES[kind] = record
    forget()


def forget() -> None:
    """Forget layouts and spaces that are kept by their configuration, since a record has changed."""
    layouts.cache_clear()
    spaces.cache_clear()


def architecture(config: Config) -> Architecture:
    """Return the record of a configuration. Raises InputError if there is none."""
    record = ARCHITECTURES.get(type(config))
    if record is None:
        known = ", ".join(kind.__name__ for kind in ARCHITECTURES)
        raise InputError(f"no architecture has a configuration of type {type(config).__name__}; there are {known}")
    return record


def parameter_shapes(config: Config) -> Params:
    """Return the tree of shapes, as ``jax.ShapeDtypeStruct`` of float32. Raises InputError as ``architecture``."""
    return shapes_of(architecture(config).arrays(config))


def init(config: Config, seed: int, **options: Any) -> Params:
    """Return random parameters; equal seeds give equal ones. The options are those of the architecture's ``init``."""
    return architecture(config).init(config, seed, **options)


def initial(config: Config, seed: int, name: str, dtype: Any) -> Array:
    """Return one array of ``init(config, seed, dtype=dtype)``, by its dotted name; the others are not kept."""
    record = architecture(config)
    if record.initial is not None:
        return record.initial(config, seed, name, dtype)
    return by_name(record.init(config, seed, dtype=dtype))[name]


@functools.lru_cache(maxsize=32)
def layouts(config: Config) -> dict[str, Layout]:
    """Return the layout of every array, by its dotted name."""
    return by_name(architecture(config).arrays(config))


@functools.lru_cache(maxsize=32)
def spaces(config: Config) -> dict[str, Space]:
    """Return every space of units, by its name."""
    axes = [axis for layout in layouts(config).values() for axis in layout.axes if isinstance(axis, Axis)]
    return {axis.space.name: axis.space for axis in axes}


def resized(config: Config, sizes: Mapping[str, int], **changes: Any) -> Config:
    """Return the configuration with other numbers of units.

    Args:
      config: the configuration to change.
      sizes: new sizes of spaces, by their names; the others stay.
      changes: new values of other fields.
    """
    for space in spaces(config).values():
        size = sizes.get(space.name, space.size)
        if space.position is None:
            changes |= {space.field: size} | {field: multiple * size for field, multiple in space.also}
        else:
            widths = list(changes.get(space.field, getattr(config, space.field)))
            widths[space.position] = size
            changes[space.field] = tuple(widths)
    return dataclasses.replace(config, **changes)


def config_from_json(values: dict[str, Any], origin: str = "config.json") -> Config:
    """Return the configuration that a ``config.json`` describes.

    Args:
      values: contents of the file.
      origin: name of the file, for messages.

    Raises:
      InputError: the model type is unknown, a field is missing or of another type or range, or a setting is not supported.
    """
    check_values(values, origin)
    record = MODEL_TYPES.get(values.get("model_type") or "")
    if record is None or record.files is None:
        known = ", ".join(map(repr, MODEL_TYPES))
        raise InputError(f"{origin}: model_type is {values.get('model_type')!r}; only {known} can be read here")
    try:
        return record.files.read_config(values, origin)
    except InputError as error:  # of the configuration itself
        raise InputError(said if (said := str(error)).startswith(origin) else f"{origin}: {said}") from None


def check_depth(config: Config, arrays: int, origin: str) -> None:
    """Raise InputError if a configuration has more layers than there are arrays, before anything is made for each layer."""
    for stack in architecture(config).stacks(config):
        if stack.layers > arrays:
            raise InputError(
                f"{origin}: {stack.field} is {stack.layers:,}, but the files hold only {arrays:,} tensors; config.json and the "
                "weights do not belong together"
            )
