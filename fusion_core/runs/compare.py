r"""The arms of a run compared: losses at equal FLOPs, and what it cost each to reach another's final loss.

An *arm* is a path of nodes that ends with a trained network: a node that the plan gives an ``arm`` name, or one without
successors. Its curve is the validation loss of its last network: of the nodes since the last growth (or the random start)
of that path. Costs of a point of the curve:

* *sources paid*: the FLOPs of all nodes before it, each once, and its own;
* *sources given*: those since the last growth alone.

Arm A *reaches* a loss where its curve first falls to it, linear in FLOPs between evaluations. Against arm B it saves

.. math:: 1 - \frac{C_A(\ell_B)}{C_B}

with B's final loss and whole cost, in FLOPs and in wall time. The wall time of a node is its steps at its median pace, so
that compilation, evaluations and interruptions do not count; that of a path is the sum over its nodes, each once, as on one
machine. A saving is None if A does not reach the loss.

The results of a run, ``results.json``::

    name, provenance
    nodes         {node: facts} of the first seed: kind, inputs, arm, step, start, flops, before_flops, total_flops, final,
                  step_flops, parameters, seconds, the curves [[step, value], ...] loss, validation_loss, steps_per_second,
                  tokens_per_second, input_wait; rule (of an ``auto`` node); theory (of a growth: records of its terms)
    seeds         {seed: nodes}, if the plan has seeds
    comparison
      budget      FLOPs, or None
      arms        [{name, node, chain (nodes since the random start or the last growth), sources (nodes before them),
                    parameters, grown_at (FLOPs at the last growth, or None), flops, share (of the budget), seconds, loss,
                    curve [[FLOPs paid, loss], ...] of the first seed}]
      savings     [{arm, other, flops_paid, flops_given, wall_paid, wall_given, difference (of final losses, paired)}]

Every number of arms and savings that depends on the seed is {mean, standard_error, values}: one value a seed, in order; the
mean is over those that are not None, the standard error None for fewer than two.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Nodes = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """An arm in one seed.

    Attributes:
      node: the last one.
      chain: nodes since the last growth or the random start.
      sources: all nodes before them.
      points: of the curve: (FLOPs, seconds, validation loss), with the sources paid.
      before: FLOPs and seconds of the sources.
    """

    node: str
    chain: tuple[str, ...]
    sources: tuple[str, ...]
    points: tuple[tuple[float, float, float], ...]
    before: tuple[float, float]

    @property
    def loss(self) -> float:
        """The final validation loss."""
        return self.points[-1][2]

    def reach(self, loss: float) -> tuple[float, float] | None:
        """Return the FLOPs and seconds, sources paid, at which the curve first falls to a loss; None if it does not."""
        for before, point in zip((self.points[0], *self.points), self.points, strict=False):
            if point[2] <= loss:
                along = 1.0 if before[2] <= point[2] else (before[2] - loss) / (before[2] - point[2])
                along = min(max(along, 0.0), 1.0)
                flops, seconds = (b + along * (p - b) for b, p in zip(before[:2], point[:2], strict=True))
                return flops, seconds
        return None


def arms_of(nodes: Nodes) -> dict[str, str]:
    """Return the arms of a run: name -> last node."""
    used = {name for node in nodes.values() for name in node["inputs"]}
    ends = {name: node for name, node in nodes.items() if node["kind"] == "train"}
    return {node["arm"] or name: name for name, node in ends.items() if node["arm"] or name not in used}


def seconds_of(node: Mapping[str, Any]) -> float:
    """Return the wall time of a node's training at its median pace; 0 for a growth."""
    return (node["step"] - node["start"]) * _pace(node) if node["kind"] == "train" else 0.0


def _pace(node: Mapping[str, Any]) -> float:
    """Return the seconds of a step. The first record includes the compilation."""
    paces = [value for _, value in node["steps_per_second"] if value > 0]
    paces = paces[1:] or paces
    return 1 / statistics.median(paces) if paces else 0.0


def _ancestors(nodes: Nodes, name: str) -> dict[str, None]:
    found: dict[str, None] = {}
    for before in nodes[name]["inputs"]:
        found |= {**_ancestors(nodes, before), before: None}
    return found


def arm_of(nodes: Nodes, last: str) -> Arm:
    """Return the arm that ends with a node."""
    chain = [last]
    while nodes[chain[0]]["inputs"] and nodes[nodes[chain[0]]["inputs"][0]]["kind"] == "train":
        chain.insert(0, nodes[chain[0]]["inputs"][0])
    sources = tuple(name for name in _ancestors(nodes, last) if name not in chain)
    flops = math.fsum(float(nodes[name].get("flops", 0.0)) for name in sources)
    seconds = math.fsum(seconds_of(nodes[name]) for name in sources)
    before, points = (flops, seconds), []
    for name in chain:
        node = nodes[name]
        flops += float(node.get("lost_flops", 0.0))  # trials of growing that lost are paid by the node that grew
        for step, loss in node["validation_loss"]:
            steps = step - node["start"]
            points.append((flops + steps * node["step_flops"], seconds + steps * _pace(node), loss))
        flops = flops - float(node.get("lost_flops", 0.0)) + float(node["flops"])
        seconds += seconds_of(node)
    return Arm(last, tuple(chain), sources, tuple(points), before)


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard error of the values that are not None, and all values."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "standard_error": statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None,
        "values": list(values),
    }


def compare_arms(seeds: Sequence[Nodes], budget: float | None) -> dict[str, Any]:
    """Compare the arms of a run over its seeds; the module has the format.

    Args:
      seeds: the nodes of each seed.
      budget: FLOPs that every arm may cost; None if the plan has none.
    """
    first = seeds[0]
    arms = {name: [arm_of(nodes, last) for nodes in seeds] for name, last in arms_of(first).items()}
    arms = {name: runs for name, runs in arms.items() if all(run.points for run in runs)}
    listed = []
    for name, runs in arms.items():
        run = runs[0]
        total = [r.points[-1][0] for r in runs]
        grown = bool(first[run.chain[0]]["inputs"])
        listed.append(
            {
                "name": name,
                "node": run.node,
                "chain": list(run.chain),
                "sources": list(run.sources),
                "parameters": first[run.node]["parameters"],
                "grown_at": over_seeds([r.before[0] for r in runs]) if grown else None,
                "flops": over_seeds(total),
                "share": None if budget is None else over_seeds([flops / budget for flops in total]),
                "seconds": over_seeds([r.points[-1][1] for r in runs]),
                "loss": over_seeds([r.loss for r in runs]),
                "curve": [[flops, loss] for flops, _, loss in run.points],
            }
        )
    pairs = [(one, other) for one in arms for other in arms if one != other]
    return {"budget": budget, "arms": listed, "savings": [_saving(arms, *pair) for pair in pairs]}


def _saving(arms: Mapping[str, Sequence[Arm]], name: str, other: str) -> dict[str, Any]:
    """Return what an arm saved against another one."""
    found: dict[str, list[float | None]] = {
        key: [] for key in ("flops_paid", "flops_given", "wall_paid", "wall_given", "difference")
    }
    for ours, theirs in zip(arms[name], arms[other], strict=True):
        reached = ours.reach(theirs.loss)
        for i, unit in enumerate(("flops", "wall")):
            whole = theirs.points[-1][i]
            known = reached is not None and whole > 0
            found[f"{unit}_paid"].append(1 - reached[i] / whole if known and reached else None)
            found[f"{unit}_given"].append(1 - (reached[i] - ours.before[i]) / whole if known and reached else None)
        found["difference"].append(ours.loss - theirs.loss)
    return {"arm": name, "other": other, **{key: over_seeds(values) for key, values in found.items()}}
