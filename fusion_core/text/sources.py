"""The interface from text to a trainer, ``DataSource``, and what its implementations share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fusion_core.errors import InputError

Batch = dict[str, np.ndarray]
State = dict[str, Any]


@runtime_checkable
class DataSource(Protocol):
    """An endless, deterministic sequence of batches that can be continued from any of them."""

    def batches(self, size: int, state: State | None = None) -> Iterator[tuple[Batch, State]]:
        """Yield this process's rows of the global batches of ``size``, each with the state (JSON values) after it.

        Args:
          size: rows of a global batch, shared evenly by the processes.
          state: where to continue; None is the beginning.

        Raises:
          InputError: the processes cannot share the batch, or ``state`` is of another source.
        """
        ...


def first_batches(source: DataSource, size: int, count: int) -> list[Batch]:
    """Return the first ``count`` batches of ``size`` rows of a source."""
    return [batch for batch, _ in itertools.islice(source.batches(size), count)]


def batches_by_step(
    make: Callable[[int], Batch], size: int, fingerprint: str, state: State | None, index: int, count: int
) -> Iterator[tuple[Batch, State]]:
    """Return ``DataSource.batches`` of a source whose global batch is a function of the step alone.

    Args:
      make: returns the global batch of a step.
      size: rows of it.
      fingerprint: of the source, see ``check_source``.
      state: where to continue; None is the beginning.
      index, count: of this process and of all of them.

    Raises:
      InputError: the processes cannot share the batch, or ``state`` is of another source or batch.
    """
    if size < 1 or size % count:
        raise InputError(f"{count} processes cannot share a batch of {size}; take a multiple of {count}")
    source = f"{fingerprint} {size}"
    if state:
        check_source(state, source)
    rows = slice(index * size // count, (index + 1) * size // count)

    def draw(start: int) -> Iterator[tuple[Batch, State]]:
        for step in itertools.count(start):
            yield {name: array[rows] for name, array in make(step).items()}, {"source": source, "step": step + 1}

    return draw(state["step"] if state else 0)


def check_noise(noise_density: float, mean_span: float) -> None:
    """Raise InputError if either number is out of range."""
    if not 0 < np.float32(noise_density) < 1 or not mean_span >= 1:
        raise InputError(
            f"a noise density of {noise_density} with spans of {mean_span}; they must lie between 0 and 1, and at 1 or above"
        )


def check_process(index: int, count: int) -> None:
    """Raise InputError if there is no process ``index`` among ``count``."""
    if not 0 <= index < count:
        raise InputError(f"process {index} of {count}; count processes from 0")


def check_source(state: State, fingerprint: str) -> None:
    """Raise InputError if a state was made by a source of another fingerprint."""
    if state.get("source") != fingerprint:
        raise InputError(
            f"the state is of another text or other settings: {state.get('source')} instead of {fingerprint}; "
            "use the run's own, or begin anew"
        )


def merge_states(states: Sequence[State]) -> State:
    """Return the state of a run from those of its processes after the same step; any number of processes continues from it.

    Raises:
      InputError: they are of different runs or steps.
    """
    # reading continues at the block that the slowest lane is in
    first = min(states, key=lambda state: state["from"]["number"] if "from" in state else 0)
    for state in states:
        for name in ("source", "step"):
            if state[name] != first[name]:
                raise InputError(
                    f"states of {name} {first[name]} and {state[name]} cannot be merged; take those after one step"
                )
    if "lanes" not in first:
        return first  # a source in memory: all states are equal
    return first | {"lanes": {lane: at for state in states for lane, at in state["lanes"].items()}}
