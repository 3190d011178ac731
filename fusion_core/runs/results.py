"""``results.json`` of a finished run, and records made of it, read by the types of what is in them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from fusion_core.checked import checked
from fusion_core.errors import InputError
from fusion_core.text.json_files import LARGE, read_json

REMEDY = "give the results.json of a finished run, or a record"
Curve = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class NodeResults:
    """The facts of a node that are computed with; there are others, and records leave some out.

    Attributes:
      kind: ``"train"``, or what kind of growth.
      inputs: the nodes that it goes on from.
      step, start: its last step and its first one.
      arm: name of the curve that ends with it; "" if it has none of its own.
      parameters: their number.
      step_flops, flops, lost_flops, before_flops, total_flops: of a step, of the node, of lost trials, of what comes before.
      loss, validation_loss: (step, loss) in order.
      steps_per_second, tokens_per_second, input_wait: (step, value) in order.
      final: the last validation loss.
      theory, greedy: what was measured.
      device: that it ran on.
    """

    kind: str
    inputs: list[str]
    step: int
    validation_loss: Curve
    start: int = 0
    arm: str = ""
    parameters: int = 0
    step_flops: float = 0.0
    flops: float = 0.0
    lost_flops: float = 0.0
    before_flops: float = 0.0
    total_flops: float = 0.0
    loss: Curve = dataclasses.field(default_factory=list)
    steps_per_second: Curve = dataclasses.field(default_factory=list)
    tokens_per_second: Curve = dataclasses.field(default_factory=list)
    input_wait: Curve = dataclasses.field(default_factory=list)
    final: float | None = None
    theory: list[dict[str, Any]] | dict[str, Any] = dataclasses.field(default_factory=list)
    greedy: dict[str, Any] | None = None
    device: str = ""


def check_nodes(nodes: Any, *, whole: bool) -> None:
    """Raise ValueError unless these are nodes of one seed, none of which goes on from itself.

    Args:
      nodes: name -> facts, as JSON has them.
      whole: whether all nodes that others go on from must be there.
    """
    known = {field.name for field in dataclasses.fields(NodeResults)}
    found = {}
    for name, facts in checked(dict[str, dict[str, Any]], nodes).items():
        try:
            found[name] = checked(NodeResults, {key: value for key, value in facts.items() if key in known})
        except ValueError as error:
            raise ValueError(f"node {name[:100]}: {error}") from None
    left = dict(found)
    while left:
        free = [name for name, node in left.items() if not any(before in left for before in node.inputs)]
        if not free:
            raise ValueError(f"the nodes {', '.join(list(left)[:5])} go on from one another in a circle")
        for name in free:
            if whole and (missing := [before for before in left[name].inputs if before not in found]):
                raise ValueError(f"node {name} goes on from {missing[0][:100]}, which is not there")
        left = {name: node for name, node in left.items() if name not in free}


def check_results(values: Mapping[str, Any], origin: object, remedy: str = REMEDY, *, whole: bool = True) -> None:
    """Check the contents of a results file or a record: ``nodes`` of one seed, ``seeds`` (seed -> nodes), or both.

    Args:
      values: the object in the file.
      origin, remedy: begin and end of the message.
      whole: as in ``check_nodes``.

    Raises:
      InputError: a value is missing or of another type.
    """
    try:
        seeds = checked(dict[str, dict[str, Any]], values.get("seeds") or {})
        if "nodes" not in values and not seeds:
            raise ValueError("it has neither nodes nor seeds")
        if odd := [seed for seed in seeds if not seed.isdecimal() or not seed.isascii()]:
            raise ValueError(f"{odd[0][:100]!r} is no seed")
        for nodes in (*seeds.values(), *([values["nodes"]] if "nodes" in values else [])):
            check_nodes(nodes, whole=whole)
        checked(str | None, values.get("text"))
        checked(dict[str, Any] | list[dict[str, Any]], values.get("provenance", {}))
    except ValueError as error:
        raise InputError(f"{origin} holds no results that can be read ({error}); {remedy}") from None


def read_results(file: pathlib.Path, remedy: str = REMEDY) -> dict[str, Any]:
    """Return the contents of a run's results file. Raises FileNotFoundError, or InputError as ``check_results``."""
    values = read_json(file, remedy, longest=LARGE, finite=False)
    check_results(values, file, remedy)
    return values


def of_seeds(results: Mapping[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """Return the nodes of each seed of what ``read_results`` read; ``seed`` is that of a run without ``seeds``."""
    return results.get("seeds") or {str(seed): results["nodes"]}
