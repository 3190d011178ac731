"""Fields of configurations that must agree on a fusion, and those that need not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from fusion_core.errors import InputError
from fusion_core.models.registry import layouts, spaces
from fusion_core.models.settings import LEFT_OUT, Settings
from fusion_core.models.units import Config

# what people call fields of several names -> the names
SHORT = {
    "pad": ("pad_token_id",),
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "start": ("decoder_start_token_id",),
    "max_length": ("max_position_embeddings",),
    "window": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    "rope": ("rope_theta", "rope_scaling", "rope_parameters"),
    "dropout": ("dropout_rate", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
}


class Kept(NamedTuple):
    """A field in which sources differ, and whose value the fused network has.

    Attributes:
      field: its name.
      values: the value of each source; the first one's is kept.
    """

    field: str
    values: tuple[Any, ...]


def differing(first: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Return the fields that must agree, as they count no units, and do not: name -> the two values."""
    counted = {field for space in spaces(first).values() for field in (space.field, *dict(space.also))}
    inside = {(space.field, space.position) for space in spaces(first).values()}
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(first):
        ours, theirs = getattr(first, field.name), getattr(other, field.name)
        if isinstance(ours, Settings):
            found |= {n: (ours.get(n), theirs.get(n)) for n in ours.differing(theirs)}
        elif field.name in counted:
            if isinstance(ours, tuple):
                pairs = enumerate(zip(ours, theirs, strict=True))
                found |= {f"{field.name}[{j}]": pair for j, pair in pairs if (field.name, j) not in inside}
        else:
            found[field.name] = (ours, theirs)
    return {name: (a, b) for name, (a, b) in found.items() if a != b and name != "norm_groups"}


def check_agree(first: Config, other: Config, i: int) -> None:
    """Raise InputError if network 1 and network ``i`` differ in a field that must agree."""
    for name, (a, b) in differing(first, other).items():
        raise InputError(
            f"cannot fuse networks 1 and {i}: {name} is {a!r} and {b!r}; it must agree, or be allowed to differ by name"
        )


def with_first(configs: Sequence[Config], allowed: Sequence[str]) -> tuple[list[Config], list[Kept]]:
    """Return the configurations with the first one's values of the fields that need not agree, and those that differ.

    Args:
      configs: configurations of the sources, all of one kind.
      allowed: names of the fields, or short ones (``SHORT``).

    Raises:
      InputError: a name is no field, or arrays depend on the field.
    """
    first = configs[0]
    names = {field: name for name in allowed for field in SHORT.get(name, (name,))}
    known = {n for c in configs for n in (*(f.name for f in dataclasses.fields(c)), *getattr(c, "settings", ()))}
    for name in allowed:
        if not known.intersection(SHORT.get(name, (name,))):
            differ = {n for other in configs[1:] for n in differing(first, other)}
            raise InputError(
                f"{name} is no field of these sources' configurations that could be allowed to differ; "
                f"{'they differ in ' + ', '.join(sorted(differ)) if differ else 'they agree in all'}"
            )
    changed = [first]
    values: dict[str, None] = {}
    for other in configs[1:]:
        off = [n for n in differing(first, other) if n in names]
        values |= dict.fromkeys(off)
        fields = {n: getattr(first, n) for n in off if hasattr(first, n) and n not in getattr(first, "settings", ())}
        aligned = dataclasses.replace(other, **{n: v for n, v in fields.items() if n in _own(first)})
        if isinstance(getattr(other, "settings", None), Settings):
            kept = {n: first.settings[n] for n in off if n in first.settings}
            rest = {n: v for n, v in other.settings.items() if n not in off}
            aligned = dataclasses.replace(aligned, settings=Settings(rest | kept))
        _check_same_arrays(other, aligned, off)
        changed.append(aligned)
    return changed, [Kept(n, tuple(value_of(config, n) for config in configs)) for n in values]


def _own(config: Config) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _check_same_arrays(before: Config, after: Config, names: Sequence[str]) -> None:
    a, b = ({name: layout.shape for name, layout in layouts(config).items()} for config in (before, after))
    if a != b:
        odd = next(name for name in {**a, **b} if a.get(name) != b.get(name))
        raise InputError(
            f"{' and '.join(names)} cannot be allowed to differ: {odd} depends on it; bring the sources to one value first"
        )


def value_of(config: Config, name: str) -> Any:
    """Return a field's value, wherever it is; what it means if a file leaves it out."""
    settings = getattr(config, "settings", {})
    return getattr(config, name) if name in _own(config) else settings.get(name, LEFT_OUT.get(name))
