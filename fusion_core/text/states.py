"""The state of a source that several processes share: each process has the positions of its own lanes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.sources import State


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


def gathered(state: State) -> State:
    """``merge_states`` of the states of all JAX processes, on each of them; all must call it, after the same step.

    With one process it is the state itself.
    """
    import jax

    if jax.process_count() == 1:
        return state
    from jax.experimental import multihost_utils

    own = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray([own.size], np.int32))).ravel()
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: own.size] = own
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return merge_states([json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)])
