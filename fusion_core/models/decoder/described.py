"""Decoders that are known by their arrays: fusing needs rules and not a forward pass, so their settings pass through."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from fusion_core.models.decoder import files
from fusion_core.models.decoder.config import Llama3Rope, Shape
from fusion_core.models.settings import ABOUT, NONE, Settings


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Shape):
    """Shape of a decoder, in Llama's names, and whatever else its files say.

    Attributes:
      tie_word_embeddings: whether the head is the embedding.
      settings: all other fields of ``config.json`` (``fusion_core.models.settings``); rotary positions as ``rope_parameters``.
      norm_groups: as in ``T5Config``.
    """

    tie_word_embeddings: bool = False
    settings: Settings = NONE
    norm_groups: tuple[int, ...] = ()

    # what Llama's forward pass asks for

    @property
    def rms_norm_eps(self) -> float:
        """Number that is added to the mean square in RMSNorm; transformers' default if it is left out."""
        return float(self.settings.get("rms_norm_eps", 1e-6))

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies; transformers' default if it is left out."""
        return float(self.settings.get("rope_parameters", {}).get("rope_theta", 10000.0))

    @property
    def rope_scaling(self) -> Llama3Rope | None:
        """Stretching of Llama 3.1's kind; None if there is none."""
        rope = self.settings.get("rope_parameters", {})
        return files.llama3_rope(rope, dict(self.settings), "config") if rope.get("rope_type") == "llama3" else None


def spelling(
    model_type: str,
    config: type,
    model: str,
    *,
    tied: bool = False,
    without: tuple[str, ...] = (),
    old: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values,
    passed: dict[str, Any] | None = None,
) -> files.Spelling:
    """Return the form of ``config.json`` of a decoder whose settings pass through.

    Args:
      model_type, config, model: as in ``Spelling``.
      tied: whether a file that does not say it has a tied head.
      without: our fields that transformers' configuration does not have.
      old: older names of the base of the rotary positions and of the part of a head that is turned.
      complete: values of the file -> the same with what transformers fills in.
      passed: as in ``Spelling``.
    """

    def read(values: dict[str, Any], origin: str) -> dict[str, Any]:
        values = complete(files.with_heads({**values, "tie_word_embeddings": values.get("tie_word_embeddings", tied)}))
        own = {field.name for field in dataclasses.fields(config)}
        rest = {n: v for n, v in values.items() if n not in own | ABOUT | {"rope_scaling", *old}}
        return values | {"settings": rest | {"rope_parameters": files.rope_of(values, *old)}}

    def write(config: Any, fields: dict[str, Any]) -> dict[str, Any]:
        files.check_heads_divide(config)
        return {name: value for name, value in fields.items() if name not in without}

    rope_json = functools.partial(files.rope_json, theta=old[0], turned=old[1])
    return files.Spelling(model_type, config, model, {}, read, write, passed or {}, {}, rope_json)
