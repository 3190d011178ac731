"""The identities that follow from an architecture's record, as checks of a record of one's own.

A record (``fusion_core.models.architecture.Architecture``) says which axis of which array makes or reads which units. From
it follow fusion, growth, rates, moments and files; so a mistake in it is a network that is fused wrongly. Each check
holds the forward pass against one of those that follow; all are in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.checkpoints.batches import probe
from fusion_core.errors import InputError
from fusion_core.models import registry
from fusion_core.models.architecture import Architecture
from fusion_core.models.units import Config, Params
from fusion_core.testing import follows, records
from fusion_core.testing.case import Case
from fusion_core.testing.strategies import EXAMPLES, library, random_params

# name -> (what it holds, the check)
CHECKS: dict[str, tuple[str, Callable[[Case], None]]] = {
    "table": ("fields, spaces and arrays count the same units, and the start has their shapes", records.table),
    "units": ("units of a space in another order give the same outputs", follows.units),
    "maps": ("J is linear with its transpose and pseudo-inverse, for fusion and operators", follows.maps),
    "self_fusion": (
        "a network fused with itself has its outputs, with noise and every kind of norm too",
        follows.self_fusion,
    ),
    "mean": ("different sources give the weighted mean of their outputs", follows.mean),
    "operators": ("what an operator claims to keep, it keeps", follows.operators),
    "rates": ("with the factors on the learning rates the outputs keep their velocity", follows.rates),
    "moments": ("an optimizer's grown state is what the grown network gathers", follows.moments),
    "files": ("a checkpoint is read as it was written, and fused and grown by streaming as in memory", records.files),
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of a record: call it; ``str`` of it is its name, for pytest's ``ids``.

    Attributes:
      name: a name in ``CHECKS``.
      case: what it is a check of.
    """

    name: str
    case: Case

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> None:
        """Raise AssertionError, with what is wrong, if the identity does not hold."""
        with _registered(self.case.record), jax.enable_x64(True):
            CHECKS[self.name][1](self.case)


@contextlib.contextmanager
def _registered(record: Architecture) -> Iterator[None]:
    """Put the record into the table of architectures, and the one that it replaces back afterwards."""
    kind = record.files.model_type if record.files else None
    tables: list[tuple[dict[Any, Architecture], Any]] = [(registry.ARCHITECTURES, record.config)]
    tables += [(registry.MODEL_TYPES, kind)] if kind else []
    before = [table.get(key) for table, key in tables]
    registry.forget()
    for table, key in tables:
        table[key] = record
    try:
        yield
    finally:
        for (table, key), old in zip(tables, before, strict=True):
            if old is None:
                del table[key]
            else:
                table[key] = old
        registry.forget()


def checks(
    record: Architecture,
    configs: Sequence[Config],
    *,
    outputs: Callable[[Params, Config], Array] | None = None,
    batch: Any = None,
    params: Callable[[Config, int], Params] = random_params,
    without: Sequence[str] = (),
    grouped: bool = True,
    tolerance: float = 1e-9,
    examples: int = EXAMPLES,
) -> list[Check]:
    """Return the checks of an architecture's record, for ``pytest.mark.parametrize("check", ..., ids=str)``.

    Args:
      record: the architecture; it need not be in the registry.
      configs: two or more small configurations of it that can be fused, with different numbers of units.
      outputs: ``(params, config) -> array``, the forward pass on a batch; if None, the record's ``logits`` on ``batch``.
      batch: the batch of the record's forward pass; if None, random tokens.
      params: ``(config, seed) -> params``, random and of one structure; if None, ``random_params``.
      without: names of growth operators that are left out, such as ``"net2net_depth"`` where activations are not ReLU.
      grouped: whether the forward pass has norms of groups (``norm_groups``), with which a mean is exact.
      tolerance: largest difference of outputs, as a share of the largest; larger if the forward pass computes in float32.
      examples: number of examples that each check draws.

    Raises:
      InputError: hypothesis is not installed; there are not two configurations of the record's class; a space has one unit
        in all of them; or there is no forward pass.
    """
    library()
    kinds = {type(config).__name__ for config in configs if not isinstance(config, record.config)}
    if len(configs) < 2 or kinds:
        raise InputError(
            f"checks need two or more configurations of the class {record.config.__name__}, but got {len(configs)}"
            + (f", of {', '.join(sorted(kinds))} too" if kinds else "")
        )
    with _registered(record):
        widest: dict[str, int] = {}
        for config in configs:
            for name, space in registry.spaces(config).items():
                widest[name] = max(space.size, widest.get(name, 0))
        for name, size in widest.items():
            if size < 2:
                raise InputError(f"the space {name} has one unit in every configuration; give one with two or more")
        batch = probe(configs[0], 0) if batch is None and record.files is not None else batch
    case = Case(
        record,
        tuple(configs),
        outputs or _own(record, batch),
        params,
        batch,
        tuple(without),
        grouped,
        tolerance,
        examples,
    )
    return [Check(name, case) for name in CHECKS if name != "files" or record.files is not None]


def _own(record: Architecture, batch: Any) -> Callable[[Params, Config], Array]:
    """Return the record's own forward pass on a batch."""
    if record.logits is None:
        raise InputError(
            f"the record of {record.config.__name__} has no logits; give outputs, (params, config) -> array"
        )
    if batch is None:
        raise InputError("the record's logits need a batch of tokens; give batch")
    return functools.partial(_logits, record.logits, {name: np.asarray(leaf) for name, leaf in batch.items()})


def _logits(logits: Callable[..., Array], batch: Any, params: Params, config: Config) -> Array:
    return logits(params, config, jax.tree.map(jnp.asarray, batch))


def check_architecture(record: Architecture, configs: Sequence[Config], **options: Any) -> list[str]:
    """Make all checks of an architecture's record, and return their names.

    Args:
      record, configs, options: as in ``checks``.

    Raises:
      AssertionError: some fail; the message has a line for each.
      InputError: as ``checks``.
    """
    made, failed = checks(record, configs, **options), []
    for check in made:
        try:
            check()
        except Exception as error:  # of the user's forward pass too
            failed.append(f"{check.name} ({CHECKS[check.name][0]}): {str(error) or type(error).__name__}")
    if failed:
        raise AssertionError(
            f"{len(failed)} of {len(made)} checks of {record.config.__name__} fail:\n" + "\n".join(failed)
        )
    return [check.name for check in made]
