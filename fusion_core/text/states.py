"""The state of a source that several processes share: each process has the positions of its own lanes."""

from __future__ import annotations

from collections.abc import Sequence

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
