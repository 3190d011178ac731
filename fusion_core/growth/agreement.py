"""What sources must agree on: the fused configuration, or one error that names the field and both values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from fusion_core.errors import InputError

NormMode = Literal["plain", "calibrated", "grouped"]
NORM_MODES: tuple[NormMode, ...] = ("plain", "calibrated", "grouped")


def unequal_depth(depths: tuple[int, int], i: int, of: str = "", deepen: str = "") -> InputError:
    """The error that networks 1 and ``i`` have these depths.

    Args:
      depths: of the two.
      i: the number of the second, from 2 on.
      of: the field that counts the layers; empty: there is one depth only.
      deepen: what brings the shallower one to the same depth: arguments of ``fusion_core.grow`` after params and config,
        and what to know of them; empty: there is no operator.
    """
    where = f"{of} of networks 1 and {i}" if of else f"networks 1 and {i}"
    first = 1 if depths[0] < depths[1] else i
    remedy = (
        f"bring network {first} to the same depth first: fusion_core.grow(params, config, {deepen}"
        if deepen
        else "no growth operator deepens such a network; give networks of the same depth"
    )
    return InputError(f"cannot fuse depth {depths[0]} with depth {depths[1]} ({where}): fusion widens only; {remedy}")


def added(
    configs: Sequence[Any],
    width: str,
    summed: Sequence[str],
    depths: Sequence[str],
    norm: NormMode = "plain",
    deepen: Callable[[str, int], str] = lambda field, depth: "",
) -> Any:
    """The first configuration with the fields ``width`` and ``summed`` added up; all others must agree.

    Grouped norms keep each source's groups: ``norm_groups`` is their concatenation.

    Args:
      configs: of one dataclass.
      width: the field of the residual stream's width.
      summed: the other fields that add up.
      depths: the fields that count layers.
      norm: mode of the norms.
      deepen: (field of a depth, the larger one) -> what ``unequal_depth`` says of it.

    Raises:
      InputError: a field differs, or a source has grouped norms and ``norm`` would lose them.
    """
    first = configs[0]
    for i, config in enumerate(configs[1:], start=2):
        for name in depths:
            ours, theirs = getattr(first, name), getattr(config, name)
            if ours != theirs:
                raise unequal_depth((ours, theirs), i, name, deepen(name, max(ours, theirs)))
        for field in dataclasses.fields(first):
            ours, theirs = getattr(first, field.name), getattr(config, field.name)
            if field.name not in (width, *summed, "norm_groups") and ours != theirs:
                raise InputError(
                    f"cannot fuse networks 1 and {i}: {field.name} is {ours!r} and {theirs!r}; it must agree"
                )
    groups: tuple[int, ...] = ()
    if norm == "grouped":
        groups = sum((config.norm_groups or (getattr(config, width),) for config in configs), ())
    else:
        for i, config in enumerate(configs, start=1):
            if config.norm_groups:
                raise InputError(
                    f"network {i} has grouped norms (norm_groups is {config.norm_groups}), which the norm mode {norm!r} "
                    "would lose; fuse with norm='grouped'"
                )
    sums = {name: sum(getattr(config, name) for config in configs) for name in (width, *summed)}
    return dataclasses.replace(first, **sums, norm_groups=groups)
