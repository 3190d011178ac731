"""The record of a decoder-only network, from its arrays, the spelling of its files and, if there is one, its forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from fusion_core.models.architecture import HEAD, Architecture, Batch, Files, Norm
from fusion_core.models.decoder import files, llama
from fusion_core.models.decoder.layers import DEVIATION, init_normal, initial_normal
from fusion_core.models.norms import NormKind, normed
from fusion_core.models.units import Config, Params, Stack, by_name

_GROUPS = ("num_attention_heads", "num_key_value_heads", "a fused key head serves as many query heads as each source's")


def decoder(
    spelling: files.Spelling,
    arrays: Callable[[Config], Params],
    run: Callable[[Params, Config, Array, Callable[[Params, Array], Array]], Array] | None = None,
    stream: str = "hidden_size",
    embedding: str = "model.embed_tokens.weight",
    *,
    norm: Callable[[Config], NormKind] = llama.norm_kind,
    stacks: Callable[[Config], tuple[Stack, ...]] = llama.stacks,
    tied: Callable[[Config], tuple[str, ...]] = llama.tied,
    ratio: tuple[str, str, str] = _GROUPS,
    longest: Callable[[Config], int | None] = lambda config: None,
    head: str = HEAD,
    **more: Any,
) -> Architecture:
    """Return the record of a decoder-only network.

    Args:
      spelling: form of its ``config.json``.
      arrays: as in ``Architecture``.
      run: (params, configuration, ids, norm) -> logits; if None, there is no forward pass here.
      stream: as in ``Architecture``.
      embedding: name of the token embedding; old files of the bare model lack its first part in front of all names.
      norm, stacks, tied, ratio, longest: see ``Architecture`` and ``Files``.
      head: name of the head; files may have it under transformers' newer name.
      more: further attributes of ``Architecture``.
    """
    prefix = embedding.split(".")[0] + "."

    def on_batch(params: Params, config: Config, batch: Batch, norm: Norm) -> Array:
        ids = jnp.asarray(batch["ids"])
        mask = jnp.ones(ids.shape, bool)
        assert run is not None
        record.check_runs(config)
        return run(params, config, ids, lambda parts, x: norm(parts, x, mask))

    def logits(params: Params, config: Config, batch: Batch) -> Array:
        def own(parts: Params, x: Array) -> Array:
            scaled = normed(x, norm(config), config.norm_groups) * parts["weight"]
            return scaled + parts["bias"] if "bias" in parts else scaled

        assert run is not None
        record.check_runs(config)
        return run(params, config, jnp.asarray(batch["ids"]), own)

    def initial(config: Config, seed: int, name: str, dtype: Any) -> Array:
        named = by_name(arrays(config))
        return initial_normal(named[name], (seed, list(named).index(name)), name, DEVIATION, dtype)

    def cannot_run(config: Config) -> str:
        return (
            spelling.cannot_run(config) if run else f"there is no forward pass of {spelling.model_type} networks here"
        )

    def aliases(config: Config) -> dict[str, tuple[str, ...]]:
        bare = {name: (name.removeprefix(prefix),) for name in by_name(arrays(config))}
        return bare | ({embedding: (*bare[embedding], head, HEAD)} if config.tie_word_embeddings else {head: (HEAD,)})

    record = Architecture(
        config=spelling.config,
        arrays=arrays,
        stacks=stacks,
        init=lambda config, seed, **options: init_normal(arrays(config), seed, **options),
        initial=initial,
        stream=stream,
        norm=norm,
        tied=tied,
        ratios=(ratio,),
        logits=logits if run else None,
        run=on_batch if run else None,
        cannot_run=cannot_run,
        **more,
        files=Files(
            model_type=spelling.model_type,
            read_config=functools.partial(files.config_from_json, spelling),
            write_config=functools.partial(files.config_to_json, spelling),
            copies=lambda config: dict.fromkeys((head, HEAD), embedding) if config.tie_word_embeddings else {},
            aliases=aliases,
            ignored=lambda config, name: bool(files.UNUSED.search(name)),
            longest=longest,
        ),
    )
    return record
