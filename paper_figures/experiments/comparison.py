"""The arms of records at three budgets, as plain arrays, and estimates from them.

``compare`` gives the configuration and arrays of a figure's ``Results``; ``Comparison`` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.span_corruption import target_length
from paper_figures.experiments import statistics
from paper_figures.experiments.record import Record, load_record, path_of
from paper_figures.experiments.smoke import shared_record
from paper_figures.experiments.statistics import KINDS, SCRATCH, Arms, Estimate, Path, estimate
from paper_figures.results import Results

MEANS = ("paid", "given")  # kinds of savings of mean curves
SHARES = (0.25, 0.5, 1.0)  # of the whole budget
REFERENCE = "scratch_rates"  # the record with the networks from scratch at every rate
FLOAT32 = "scratch_float32"  # the same at its best rates, for records of runs in float32 on a CPU
SMALL = "small"  # the arm of one small network with the whole budget
TUNED = "scratch, tuned"
LATEST = 0.9  # share of a budget after which a growth is none of that budget
POINTS = 161  # of a drawn curve


def records_of(name: str, preset: str) -> list[Record]:
    """Return the record of a figure, and the reference, with the network from scratch at every rate, if both have one budget.

    The reference of runs on a CPU is of a CPU too: a GPU rounds products of float32 to TF32.

    Raises:
      InputError: a record is missing, with the command that makes it, or the two should be of one text and are not.
    """
    if preset == "smoke":
        return [shared_record()]
    record = load_record(name)
    wanted = FLOAT32 if _on_cpu(record) and path_of(FLOAT32, "json").exists() else REFERENCE
    if name in (REFERENCE, FLOAT32):
        return [record]
    own = any(arm.startswith(SCRATCH) for arm in statistics.arms_over_seeds(record.seeds))
    if own and not path_of(wanted, "json").exists():
        return [record]
    reference = load_record(wanted)
    of_one_budget = abs(whole_budget([record]) / whole_budget([reference]) - 1) < statistics.SLACK
    if not of_one_budget or record.settings.get("data") != reference.settings.get("data"):
        return [record]
    if record.text and reference.text and record.text != reference.text:
        raise InputError(
            f"{name} and {wanted} are of different texts, so that their losses do not compare; run both anew"
        )
    return [record, reference]


def _on_cpu(record: Record) -> bool:
    """Return whether all of a record's networks were trained on a CPU."""
    devices = [
        node.get("device", "") for nodes in record.seeds.values() for node in nodes.values() if node["kind"] == "train"
    ]
    return all(device.startswith("cpu") for device in devices)


def arms_of_records(records: Sequence[Record]) -> dict[str, dict[str, Path]]:
    """Return the arms of the first record, and from the others those from scratch and the small one that it lacks.

    They are of the first record's seeds alone, for everything is paired over seeds.
    """
    found = statistics.arms_over_seeds(records[0].seeds)
    for record in records[1:]:
        more = statistics.arms_over_seeds(
            {seed: record.seeds[seed] for seed in record.seeds if seed in records[0].seeds}
        )
        found |= {a: p for a, p in more.items() if a not in found and (a.startswith(SCRATCH) or a == SMALL)}
    return found


def large_node(records: Sequence[Record]) -> dict[str, Any]:
    """Return the facts of the first network from scratch; its step is the unit of FLOPs."""
    for record in records:
        nodes = next(iter(record.seeds.values()))
        for name, arm in statistics.paths_of(nodes).items():
            if name.startswith(SCRATCH):
                return nodes[arm.arm.node]
    raise InputError(f"{records[0].name} has no arm whose name begins with {SCRATCH!r}; give the plan one")


def whole_budget(records: Sequence[Record]) -> float:
    """Return the FLOPs of the plan's budget; without one those of the longest network from scratch."""
    for record in records:
        budget, nodes = record.settings.get("budget"), next(iter(record.seeds.values()))
        if isinstance(budget, int | float):
            return float(budget)
        if isinstance(budget, dict):
            return budget["steps"] * nodes[budget["node"]]["step_flops"] if "node" in budget else float(budget["flops"])
    arms = arms_of_records(records)
    return max(path.end for name, paths in arms.items() if name.startswith(SCRATCH) for path in paths.values())


def tokens_a_step(record: Record) -> int:
    """Return the tokens of a training step, of the encoder and of the decoder, by the plan's defaults."""
    defaults = record.settings.get("defaults", {})
    length = int(defaults.get("length", 512))
    return int(defaults.get("batch", 128)) * (length + target_length(length))


def compare(
    records: Sequence[Record], shares: Sequence[float] = SHARES, arms: Arms | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration and the arrays of a comparison at shares of the whole budget.

    Args:
      records: whose arms are compared, see ``arms_of_records``.
      shares: of the whole budget.
      arms: other arms; if None, those of the records.

    Arrays are [arm, budget, seed]: ``loss``, ``reached`` (1 or 0) and a saving of each kind; NaN where an arm has no number.
    ``means_paid`` and ``means_given`` are [arm, budget, 4]: the saving of the mean curves, whether it is reached, its interval.
    The first arm is the tuned one from scratch, which is another arm at each budget.
    """
    arms, large = arms or arms_of_records(records), large_node(records)
    budgets = [share * whole_budget(records) for share in shares]
    best = [statistics.tuned(arms, budget) for budget in budgets]
    seeds = sorted({seed for paths in arms.values() for seed in paths}, key=int)
    names = [TUNED, *arms]
    shape = (len(names), len(budgets), len(seeds))
    arrays: dict[str, Any] = {key: np.full(shape, np.nan) for key in ("loss", "reached", *KINDS)}
    for b, budget in enumerate(budgets):
        for i, name in enumerate(names):
            paths = arms[best[b]] if name == TUNED else arms[name]
            for s, seed in enumerate(seeds):
                if seed not in paths:
                    continue
                loss = paths[seed].loss_at(budget)
                arrays["loss"][i, b, s] = math.nan if loss is None else loss
                if seed in arms[best[b]] and (found := statistics.saving(paths[seed], arms[best[b]][seed], budget)):
                    for key in ("reached", *KINDS):
                        arrays[key][i, b, s] = float(getattr(found, key))
    for kind in MEANS:
        arrays[f"means_{kind}"] = np.full((len(names), len(budgets), 4), np.nan)  # value, reached, low, high
    for i, name in enumerate(names[1:], start=1):
        for b, budget in enumerate(budgets):
            both = [seed for seed in seeds if seed in arms[name] and seed in arms[best[b]]]
            pairs = [arms[name][seed] for seed in both], [arms[best[b]][seed] for seed in both]
            for kind in MEANS if both else ():
                if (mean := statistics.saving_of_means(*pairs, budget, kind)) is not None:
                    arrays[f"means_{kind}"][i, b] = (*mean[:2], *(mean[2] or (math.nan, math.nan)))
    arrays["ran"] = [[float(seed in arms.get(name, arms[best[-1]])) for seed in seeds] for name in names]
    arrays["grown_at"] = [_grown_at(arms.get(name, {}), large["step_flops"]) for name in names]
    arrays["budgets"] = np.array(budgets) / large["step_flops"]
    config = {
        "record": records[0].name,
        "arms": names,
        "seeds": seeds,
        "tuned": best,
        "rates": [arm for arm in statistics.arms_over_seeds(records[0].seeds) if arm.startswith(SCRATCH)],
        "step_flops": large["step_flops"],
        "parameters": large["parameters"],
        "tokens_a_parameter": [
            b / large["step_flops"] * tokens_a_step(records[0]) / large["parameters"] for b in budgets
        ],
        "measured": [origin for record in records for origin in record.provenance],
    }
    return config, arrays


def _grown_at(paths: Mapping[str, Path], unit: float) -> float:
    """Return the mean FLOPs at the last growth, in steps of the large network; 0 without one."""
    return float(np.mean([path.arm.before[0] for path in paths.values()])) / unit if paths else 0.0


def curves(arms: Arms, names: Sequence[str], unit: float, points: int = POINTS) -> dict[str, Any]:
    """Return the lowest loss so far of some arms at common FLOPs: ``curve_flops`` [arm, point], ``curves`` [arm, point, seed].

    FLOPs are in steps of the large network. Each arm has its own, from its first evaluation to the end that all seeds reach.
    """
    seeds = sorted({seed for name in names for seed in arms[name]}, key=int)
    flops = np.full((len(names), points), np.nan)
    losses = np.full((len(names), points, len(seeds)), np.nan)
    for i, name in enumerate(names):
        begin = max(path.arm.points[0][0] for path in arms[name].values())
        end = min(path.end for path in arms[name].values())
        flops[i] = np.linspace(begin, end, points) / unit
        for s, seed in enumerate(seeds):
            if seed in arms[name]:
                found = [arms[name][seed].loss_at(f) for f in np.linspace(begin, end, points)]
                losses[i, :, s] = [math.nan if loss is None else loss for loss in found]
    return {"curve_flops": flops, "curves": losses}


class Comparison:
    """Estimates from the arrays of ``compare``; an arm is given by its name, a budget by its number (-1: the whole)."""

    def __init__(self, results: Results) -> None:
        self.config, self.arrays = results.config, results.arrays
        self.arms: list[str] = results.config["arms"]
        self.budgets = results.arrays["budgets"]

    def __contains__(self, arm: str) -> bool:
        return arm in self.arms

    @property
    def others(self) -> list[str]:
        """All arms but those from scratch."""
        return [arm for arm in self.arms if not arm.startswith(SCRATCH)]

    def step_of(self, arm: str, budget: int = -1) -> float:
        """Return the growth step of an arm as a share of a budget; 0 without a growth."""
        return float(self.arrays["grown_at"][self.arms.index(arm)] / self.budgets[budget])

    def grown_within(self, arms: Sequence[str], budget: int = -1) -> list[str]:
        """Return the arms that are grown early enough in a budget to train on, and that train to it."""
        return [arm for arm in arms if self.step_of(arm, budget) < LATEST and self.loss(arm, budget) is not None]

    def most_tried(self, arms: Sequence[str]) -> list[str]:
        """Return the arms that were run in the most seeds: a mean over fewer is of other networks, and not the best of them."""
        most = max(map(self.seeds_of, arms), default=0)
        return [arm for arm in arms if self.seeds_of(arm) == most]

    def seeds_of(self, arm: str) -> int:
        """Return the number of seeds that an arm was run in."""
        return int((self.arrays["ran"][self.arms.index(arm)] > 0).sum())

    def _values(self, key: str, arm: str, budget: int) -> np.ndarray:
        i = self.arms.index(arm)
        return self.arrays[key][i, budget][self.arrays["ran"][i] > 0]

    def loss(self, arm: str, budget: int = -1) -> Estimate | None:
        """Return the loss at a budget; None if the arm has none there."""
        return estimate(self._values("loss", arm, budget).tolist())

    def saving(self, arm: str, kind: str = "paid", budget: int = -1) -> Estimate | None:
        """Return a saving of one of ``KINDS``, over the seeds that the arm and the tuned scratch network share."""
        values, reached = self._values(kind, arm, budget), self._values("reached", arm, budget)
        both = self.arrays["ran"][0][self.arrays["ran"][self.arms.index(arm)] > 0] > 0
        values, reached = values[both], reached[both]
        if np.isnan(values).any():
            return None
        return estimate(values.tolist(), int(reached.sum()))

    def saving_of_means(self, arm: str, kind: str = "paid", budget: int = -1) -> Estimate | None:
        """Return the saving of the mean curves, as an estimate of one value with the jackknife's interval."""
        value, reached, low, high = self.arrays[f"means_{kind}"][self.arms.index(arm), budget].tolist()
        if math.isnan(value):
            return None
        return Estimate((value,), int(reached), value, None, None if math.isnan(low) else (low, high))

    def difference(self, arm: str, other: str, budget: int = -1) -> Estimate | None:
        """Return loss less that of another arm, paired over the seeds of both."""
        i, j = self.arms.index(arm), self.arms.index(other)
        both = (self.arrays["ran"][i] > 0) & (self.arrays["ran"][j] > 0)
        return estimate((self.arrays["loss"][i, budget] - self.arrays["loss"][j, budget])[both].tolist())

    def tuned(self, budget: int = -1) -> str:
        """Return the name of the tuned arm from scratch at a budget."""
        return str(self.config["tuned"][budget])
