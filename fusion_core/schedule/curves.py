"""Curves of runs as a law of growth is fitted to them: lengths in FLOPs of steps of the large network, sources paid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import bea
from fusion_core.errors import InputError

SKIP = 0.1  # share of the longest run whose points are left out: the first fall from the random start is no power law

Nodes = Mapping[str, Mapping[str, Any]]


class Plateaus(NamedTuple):
    """Losses below which networks have left their plateaus; infinite where there is none.

    Attributes:
      large: of the large network, from scratch or grown.
      small: of the small network.
    """

    large: float = math.inf
    small: float = math.inf


@dataclasses.dataclass(frozen=True)
class RunCurves:
    """Curves of runs, lengths in FLOPs of steps of the large network.

    Attributes:
      unit: FLOPs of a step of the large network.
      scratch, small: (length, loss) of each seed.
      grown: (n1, (n2, loss)) of each grown run, the point at the growth first.
    """

    unit: float
    scratch: tuple[np.ndarray, ...]
    small: tuple[np.ndarray, ...]
    grown: tuple[tuple[float, np.ndarray], ...]

    def plateaus(self, longest: float = math.inf) -> Plateaus:
        """Return the losses below which scratch and the small network have left their plateaus (``bea.plateau_end``).

        Raises:
          InputError: one of them has not been seen to leave it in runs that are no longer.
        """
        found = []
        for name, runs in (("the large network from scratch", self.scratch), ("the small network", self.small)):
            try:
                found.append(bea.plateau_end([run[run[:, 0] <= longest * (1 + 1e-9)] for run in runs])[1])
            except ValueError as error:
                raise InputError(f"{name} is still on its plateau: {error}") from None
        return Plateaus(*found)

    def points(
        self, longest: float = math.inf, skip: float = SKIP, below: Plateaus | None = None
    ) -> tuple[np.ndarray, ...]:
        """Return n1, n2, loss and run of all points that a law is fitted to.

        Args:
          longest: points of longer runs (n1 + n2) are left out.
          skip: points of less than this share of ``longest``, or of the longest run, are left out.
          below: points before the first loss below it in their run are left out: those of a plateau, around which no law
            bends. If None, none are.
        """
        large, little = below or Plateaus()
        of = lambda n1, n2, loss: np.stack(np.broadcast_arrays(n1, n2, loss), axis=1)
        runs = [(of(0.0, *curve.T), large) for curve in self.scratch]
        runs += [(of(curve[:, 0], 0.0, curve[:, 1]), little) for curve in self.small]
        runs += [(of(n1, *curve[curve[:, 0] > 0].T), large) for n1, curve in self.grown]
        end = min(longest, max((float((run[:, 0] + run[:, 1]).max()) for run, _ in runs if len(run)), default=0.0))
        rows = []
        for i, (run, limit) in enumerate(runs):
            length = run[:, 0] + run[:, 1]
            kept = (length <= end * (1 + 1e-9)) & (length >= skip * end) & np.logical_or.accumulate(run[:, 2] < limit)
            rows.append(np.column_stack([run[kept], np.full(kept.sum(), i)]))
        n1, n2, loss, number = np.concatenate(rows or [np.empty((0, 4))]).T
        return n1, n2, loss, number.astype(int)


def run_curves(
    seeds: Mapping[str, Nodes], *, scratch: Sequence[str] = (), small: Sequence[str] = (), grown: Sequence[str] = ()
) -> RunCurves:
    """Return the curves of some nodes of a run's results, or of a record, with the sources paid.

    Args:
      seeds: seed -> node -> facts, as in ``results.json``.
      scratch, small, grown: last nodes of large networks from scratch, of small ones alone, and of grown ones.

    Raises:
      InputError: a seed lacks a node, one of ``grown`` has no growth before it or one of the others has, or a node has no
        validation loss or one that is not finite.
    """
    if not scratch and not grown:
        raise InputError("there is no large network among the nodes; name the one from scratch, or grown ones")
    found: dict[str, list[tuple[float, np.ndarray]]] = {}
    units = set()
    for seed, nodes in seeds.items():
        for name in (*scratch, *small, *grown):
            if name not in nodes:
                raise InputError(f"seed {seed} has no node {name}; name one of {', '.join(nodes)}")
            found.setdefault(name, []).append(_curve(nodes, name, name in grown))
            if name not in small:
                units.add(float(nodes[name]["step_flops"]))
    if len(units) != 1:
        raise InputError(f"steps of the large networks cost {sorted(units)} FLOPs; take networks of one size and batch")
    unit = units.pop()
    if not 0 < unit < math.inf:
        raise InputError(f"a step of the large networks costs {unit} FLOPs; take the results of a finished run")
    scaled = lambda names: tuple(np.stack([c[:, 0] / unit, c[:, 1]], axis=1) for n in names for _, c in found[n])
    after = [(n1 / unit, c) for name in grown for (n1, _), c in zip(found[name], scaled([name]), strict=True)]
    return RunCurves(unit, scaled(scratch), scaled(small), tuple(after))


def _curve(nodes: Nodes, last: str, grown: bool) -> tuple[float, np.ndarray]:
    """Return the FLOPs before the last growth, and the curve (FLOPs since then or since the random start, loss)."""
    chain = [last]
    while (inputs := nodes[chain[0]]["inputs"]) and nodes[inputs[0]]["kind"] == "train":
        chain.insert(0, inputs[0])
    if grown != bool(inputs):
        has, remedy = ("no", "is from a random start") if grown else ("a", "is grown")
        raise InputError(f"the node {last} has {has} growth before it: it {remedy}; name it as what it is")
    before: set[str] = set()
    waiting = list(inputs)
    while waiting:
        name = waiting.pop()
        if name not in before:
            before.add(name)
            waiting += nodes[name]["inputs"]
    spent = math.fsum(float(nodes[name].get("flops", 0.0)) for name in before)
    spent += float(nodes[chain[0]].get("lost_flops", 0.0))  # trials of growing that lost
    points: dict[float, float] = {}  # a node's first evaluation is that of the one before it
    flops = 0.0
    for name in chain:
        node = nodes[name]
        if lacks := [field for field in ("start", "step_flops", "flops", "validation_loss") if field not in node]:
            raise InputError(
                f"the node {name} has no {lacks[0]}; take the results of a finished run of networks that train"
            )
        points |= {flops + (step - node["start"]) * node["step_flops"]: loss for step, loss in node["validation_loss"]}
        flops += float(node["flops"])
    curve = np.array(sorted((at, loss) for at, loss in points.items()), float)
    if curve.ndim != 2 or not np.isfinite(curve).all():
        raise InputError(f"the node {last} has no validation losses, or one that is not finite; name another")
    return spent, curve
