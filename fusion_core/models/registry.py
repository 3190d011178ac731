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
from fusion_core.models.decoder import files as decoder_files
from fusion_core.models.decoder import gpt2, llama, qwen2
from fusion_core.models.norms import NormKind, normed
from fusion_core.models.t5 import files as t5_files
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import forward as t5_forward
from fusion_core.models.t5.model import normed_forward, shifted_right
from fusion_core.models.t5.parameters import arrays as t5_arrays
from fusion_core.models.t5.parameters import init as t5_init
from fusion_core.models.t5.parameters import stacks as t5_stacks
from fusion_core.models.units import Axis, Config, Layout, Params, Space, Stack, by_name, shapes_of

Batch = dict[str, Any]  # integer arrays by name
Norm = Callable[
    [Params, Array, Array], Array
]  # (a norm's arrays, activations, which tokens count) -> normed activations
HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Files:
    """The form of an architecture's checkpoint files.

    Attributes:
      model_type: name of the architecture in ``config.json``.
      read_config: (values of config.json, their origin) -> configuration; raises InputError.
      write_config: configuration -> values of config.json; raises InputError.
      copies: configuration -> {name: the tensor that it repeats}; files may have these, files that we write do not.
      aliases: configuration -> {name: other names that it may have in files; the first that is there counts}.
      ignored: (configuration, name) -> whether files may have this tensor though the network does not use it.
      spans: whether text becomes pairs of sources and targets with spans left out (T5); else windows in which every next
        token is predicted.
      longest: configuration -> length of the longest sequence in tokens; None if no array depends on it.
    """

    model_type: str
    read_config: Callable[[dict[str, Any], str], Config]
    write_config: Callable[[Config], dict[str, Any]]
    copies: Callable[[Config], Mapping[str, str]]
    aliases: Callable[[Config], Mapping[str, tuple[str, ...]]]
    ignored: Callable[[Config, str], bool]
    spans: bool = False
    longest: Callable[[Config], int | None] = lambda config: None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The record of one kind of network.

    Attributes:
      config: class of its configurations.
      arrays: configuration -> tree of ``Layout``: every array, and the units that its axes make and read.
      stacks: configuration -> its stacks of layers.
      init: (configuration, seed, dtype=...) -> random parameters.
      stream: name of the residual stream's space and of the field with its width; None if each layer reads only the one
        before it and there are no norms.
      norm: configuration -> kind of its norms.
      tied: configuration -> the arrays before a tied head. They carry the head's factors, since the head is the embedding,
        which the input uses too, and so must not be scaled.
      logit_scale: configuration -> factor on the logits.
      ratios: (field, field, why): quotients of sizes that must agree between sources, and stay when units are copied.
      logits: (params, configuration, batch) -> logits; None if the forward pass is the caller's.
      run: (params, configuration, batch, norm) -> logits, with ``norm`` in the place of the norms.
      files: form of its checkpoint files; None if there are no such files.
    """

    config: type
    arrays: Callable[[Config], Params]
    stacks: Callable[[Config], tuple[Stack, ...]]
    init: Callable[..., Params]
    stream: str | None = None
    norm: Callable[[Config], NormKind] | None = None
    tied: Callable[[Config], tuple[str, ...]] = lambda config: ()
    logit_scale: Callable[[Config], float] = lambda config: 1.0
    ratios: tuple[tuple[str, str, str], ...] = ()
    logits: Callable[[Params, Config, Batch], Array] | None = None
    run: Callable[[Params, Config, Batch, Norm], Array] | None = None
    files: Files | None = None


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
    if config.tie_word_embeddings:
        return embedding
    # an unscaled head equal to the embedding is saved once
    return embedding | {HEAD: ("shared.weight", *_EMBEDDINGS)}


def _t5_copies(config: T5Config) -> dict[str, str]:
    return dict.fromkeys((*_EMBEDDINGS, *((HEAD,) if config.tie_word_embeddings else ())), "shared.weight")


T5 = Architecture(
    config=T5Config,
    arrays=t5_arrays,
    stacks=t5_stacks,
    init=t5_init,
    stream="d_model",
    norm=lambda config: NormKind(centred=False, epsilon=config.layer_norm_epsilon),
    tied=lambda config: ("decoder.final_layer_norm.weight",) if config.tie_word_embeddings else (),
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


# Decoders


def decoder(
    spelling: decoder_files.Spelling,
    kind: Any,
    run: Callable[[Params, Config, Array, Callable[[Params, Array], Array]], Array],
    stream: str,
    embedding: str,
    *,
    norm: Callable[[Config], NormKind],
    stacks: Callable[[Config], tuple[Stack, ...]],
    tied: Callable[[Config], tuple[str, ...]],
    ratio: tuple[str, str, str],
    longest: Callable[[Config], int | None] = lambda config: None,
) -> Architecture:
    """Return the record of a decoder-only network.

    Args:
      spelling: form of its ``config.json``.
      kind: the module with its ``arrays`` and ``init``.
      run: (params, configuration, ids, norm) -> logits.
      stream: as in ``Architecture``.
      embedding: name of the token embedding; old files of the bare model lack its first part in front of all names.
      norm, stacks, tied, ratio, longest: see ``Architecture`` and ``Files``.
    """
    prefix = embedding.split(".")[0] + "."

    def on_batch(params: Params, config: Config, batch: Batch, norm: Norm) -> Array:
        ids = jnp.asarray(batch["ids"])
        mask = jnp.ones(ids.shape, bool)
        return run(params, config, ids, lambda parts, x: norm(parts, x, mask))

    def logits(params: Params, config: Config, batch: Batch) -> Array:
        def own(parts: Params, x: Array) -> Array:
            scaled = normed(x, norm(config), config.norm_groups) * parts["weight"]
            return scaled + parts["bias"] if "bias" in parts else scaled

        return run(params, config, jnp.asarray(batch["ids"]), own)

    def aliases(config: Config) -> dict[str, tuple[str, ...]]:
        bare = {name: (name.removeprefix(prefix),) for name in layouts(config)}
        return bare | ({embedding: (*bare[embedding], HEAD)} if config.tie_word_embeddings else {})

    return Architecture(
        config=spelling.config,
        arrays=kind.arrays,
        stacks=stacks,
        init=kind.init,
        stream=stream,
        norm=norm,
        tied=tied,
        ratios=(ratio,),
        logits=logits,
        run=on_batch,
        files=Files(
            model_type=spelling.model_type,
            read_config=functools.partial(decoder_files.config_from_json, spelling),
            write_config=functools.partial(decoder_files.config_to_json, spelling),
            copies=lambda config: {HEAD: embedding} if config.tie_word_embeddings else {},
            aliases=aliases,
            ignored=lambda config, name: bool(decoder_files.UNUSED.search(name)),
            longest=longest,
        ),
    )


_GROUPS = ("num_attention_heads", "num_key_value_heads", "a fused key head serves as many query heads as each source's")
_llama_kind = functools.partial(
    decoder,
    run=llama.run,
    stream="hidden_size",
    embedding="model.embed_tokens.weight",
    norm=llama.norm_kind,
    stacks=llama.stacks,
    tied=llama.tied,
    ratio=_GROUPS,
)
LLAMA = _llama_kind(decoder_files.LLAMA, llama)
QWEN2 = _llama_kind(qwen2.SPELLING, qwen2)
GPT2 = decoder(
    decoder_files.GPT2,
    gpt2,
    run=gpt2.run,
    stream="n_embd",
    embedding="transformer.wte.weight",
    norm=gpt2.norm_kind,
    stacks=gpt2.stacks,
    tied=gpt2.tied,
    ratio=("n_embd", "n_head", "all heads of a GPT-2 are equally wide"),
    longest=lambda config: config.n_positions,
)

# Networks whose layers each read only the one before

MLP = Architecture(config=mlp.MLPConfig, arrays=mlp.arrays, stacks=mlp.stacks, init=mlp.init)
CONV = Architecture(config=conv.ConvConfig, arrays=conv.arrays, stacks=conv.stacks, init=conv.init)

ARCHITECTURES: dict[type, Architecture] = {record.config: record for record in (T5, LLAMA, QWEN2, GPT2, MLP, CONV)}
# name in config.json -> record
MODEL_TYPES: dict[str, Architecture] = {
    record.files.model_type: record for record in ARCHITECTURES.values() if record.files is not None
}


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
      InputError: the model type is unknown, a field is missing, or a setting is not supported.
    """
    record = MODEL_TYPES.get(values.get("model_type", ""))
    if record is None or record.files is None:
        known = ", ".join(map(repr, MODEL_TYPES))
        raise InputError(f"{origin}: model_type is {values.get('model_type')!r}; only {known} can be read here")
    return record.files.read_config(values, origin)
