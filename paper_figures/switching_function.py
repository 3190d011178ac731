r"""The final loss has an exact derivative in the growth step, as accurate as the order of its modified fields.

The derivative of the final loss in the growth step n₁, at a fixed budget: predicted by the switching function at the event,
and measured by moving the event (five points). Two tanh networks train on a teacher task, are fused, and train on. The time
of both phases is fixed while the step size h is halved repeatedly. Shown is the relative error of the
prediction: every task as a point, the median as a line, the range as a band.

What one should see: with the bare fields (order 1) the error falls with slope 1, with the modified fields of order 2 and 3
with slopes 2 and 3. The legend has the slopes measured over the three smallest steps (with larger ones, terms of higher
order still matter), mean and standard deviation over the tasks.

.. math:: \frac{d\ell}{dn_1} = \langle \lambda, h_1 J \tilde f_1 \rangle
          - \frac{c_1}{c_2} \langle \lambda, h_2 \tilde f_2 \rangle, \qquad \lambda = \partial \ell / \partial \Theta
"""

import dataclasses
import time
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import bea
from paper_figures.results import Claim, Results, spread
from toy_models.when_to_grow import derivative

SEED = 3
DEPENDS = ("bea", "fusion_core", "toy_models")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
      runs: number of independent tasks with their two networks.
      largest: the largest step size; the next ones are halves.
      halvings: number of halvings of the step size; the slope is taken over the three smallest steps.
    """

    runs: int
    largest: float
    halvings: int


PRESETS = {
    "smoke": Config(runs=1, largest=0.08, halvings=2),
    "full": Config(runs=6, largest=derivative.LARGEST, halvings=derivative.HALVINGS),
}

LABELS = {1: "bare fields, order 1", 2: "modified fields, order 2", 3: "modified fields, order 3"}


def compute(preset: str) -> Results:
    """Measure errors and slopes for every order, task and step size, in float64."""
    started, config = time.perf_counter(), PRESETS[preset]
    found = [derivative.compute(config.largest, config.halvings, SEED + run) for run in range(config.runs)]
    arrays: dict[str, Any] = {
        "step_sizes": [row["step_size"] for row in found[0]["rows"]],
        "measured": [[row["measured"] for row in run["rows"]] for run in found],
    }
    for i, order in enumerate(LABELS):
        by_size = [{row["step_size"]: row["errors"][i] for row in run["rows"]} for run in found]
        arrays[f"order{order}_errors"] = [list(errors.values()) for errors in by_size]
        arrays[f"order{order}_slopes"] = [bea.measured_order(e.__getitem__, sorted(e)[:3]).slope for e in by_size]
    return Results.of("switching_function", preset, SEED, dataclasses.asdict(config), arrays, started)


def draw(results: Results) -> Figure:
    """Draw error against step size, log-log, one colour an order, with guides of exactly these slopes."""
    h = results.arrays["step_sizes"]
    figure = Figure()
    axes = figure.add_subplot()
    for i, (order, label) in enumerate(LABELS.items()):
        errors, slopes = results.arrays[f"order{order}_errors"], results.arrays[f"order{order}_slopes"]
        style: dict[str, Any] = {"color": f"C{i}", "marker": "osD"[i]}
        axes.fill_between(h, errors.min(axis=0), errors.max(axis=0), color=style["color"], alpha=0.13, linewidth=0)
        for run in errors:
            axes.plot(h, run, linestyle="none", alpha=0.35, markeredgewidth=0, markersize=3.5, **style)
        middle = np.median(errors, axis=0)
        axes.plot(h, middle, label=f"{label}: slope {spread(slopes)}", zorder=3, **style)
        guide = middle[-1] / 2.5 * (h / h[-1]) ** order
        axes.plot(h, guide, color="0.45", linestyle="--", linewidth=0.9)
        axes.annotate(
            f"$h^{order}$" if order > 1 else "$h$",
            (h[-1], guide[-1]),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color="0.3",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("step size $h$ (learning rate), at fixed times of both phases")
    axes.set_ylabel(r"relative error of the predicted $d\ell / dn_1$")
    runs = len(results.arrays["measured"])
    axes.set_title(f"Derivative of the final loss in the growth step ({runs} {'task' if runs == 1 else 'tasks'})")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1)
    return figure


def predicted(results: Results) -> list[Claim]:
    """Return what the README shows: the order of the error of the derivative."""
    slopes = ", ".join(spread(results.arrays[f"order{order}_slopes"]) for order in LABELS)
    return [
        (
            "derivative of the final loss in the growth step, by fields of order 1, 2, 3",
            "error of order 1, 2, 3",
            f"slopes {slopes}",
        )
    ]


def finding(results: Results) -> str:
    """Return a sentence on whether the measured slopes are those of the caption."""
    slopes = {order: float(results.arrays[f"order{order}_slopes"].mean()) for order in LABELS}
    kept = all(abs(slope - order) < 0.15 for order, slope in slopes.items())
    h = results.arrays["step_sizes"][-1]
    last = {order: float(np.median(results.arrays[f"order{order}_errors"][:, -1])) for order in LABELS}
    numbers = "; ".join(
        f"{label}: slope {slopes[order]:.2f}, expected {order}, off by {last[order]:.1e} at h = {h:.3g}"
        for order, label in LABELS.items()
    )
    return f"Measured slopes ({'as' if kept else 'NOT as'} predicted, to 0.15): {numbers}."
