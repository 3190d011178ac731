"""The form of an architecture's record: what fusion, growth, files and forward passes need to know of one kind of network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from fusion_core.errors import InputError
from fusion_core.models.norms import NormKind
from fusion_core.models.units import Config, Params, Stack

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
      initial: (configuration, seed, name, dtype) -> one array of ``init``'s, by itself; None if they are drawn together.
      stream: name of the residual stream's space and of the field with its width; None if each layer reads only the one
        before it and there are no norms.
      norm: configuration -> kind of its norms.
      tied: configuration -> the arrays before a tied head. They carry the head's factors, since the head is the embedding,
        which the input uses too, and so must not be scaled.
      logit_scale: configuration -> factor on the logits, in units of what the embedding gives the stream.
      input_scale: (configuration, array's name) -> factor by which the network multiplies what it looks up in the array.
      ratios: (field, field, why): quotients of sizes that must agree between sources, and stay when units are copied.
      caveat: what different sources of this kind, besides their norms' statistics, do not keep; "" if nothing.
      logits: (params, configuration, batch) -> logits; None if the forward pass is the caller's, or there is none here.
      run: (params, configuration, batch, norm) -> logits, with ``norm`` in the place of the norms.
      cannot_run: configuration -> why there is no forward pass for it here; "" if there is one.
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
    input_scale: Callable[[Config, str], float] = lambda config, name: 1.0
    ratios: tuple[tuple[str, str, str], ...] = ()
    caveat: str = ""
    logits: Callable[[Params, Config, Batch], Array] | None = None
    run: Callable[[Params, Config, Batch, Norm], Array] | None = None
    initial: Callable[[Config, int, str, Any], Array] | None = None
    cannot_run: Callable[[Config], str] = lambda config: ""
    files: Files | None = None

    def check_runs(self, config: Config) -> None:
        """Raise InputError, with the reason, if there is no forward pass for the configuration here."""
        if reason := self.cannot_run(config):
            raise InputError(
                f"a {type(config).__name__} cannot be run here: {reason}; fuse or grow it, and run it in transformers"
            )
