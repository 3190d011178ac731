r"""A growth event changes neither the loss, at second order, nor the velocity, with the right rates.

Left and middle: the difference between the ends of one step of the small phase and one of the grown network, in this order
and in the other, at repeatedly halved step sizes. A network is fused with itself, or two different ones are fused (MLPs on
teacher tasks). Every task is a point, the median a line.

Right: the jump of the function's velocity at the event when a network is fused with k copies of itself, relative to the
velocity before; by optimizer, for every kind of array alone and for all together. Each dot is one network: open rings are
without the rate factors, filled dots with them; the vertical marks are the jumps predicted from the small network and the
factors alone.

What one should see: slope 2 for the parameters in both cases, but slope 3 for the loss if growth keeps the function; slope 2
for two different networks, and 3 after subtracting the predicted conflict. Right, every ring on its mark, every
filled dot at rounding, below 1e-6.

.. math:: \dot y_{grown} = \sum_j \dot y_j / r_j \ \text{ without the factors } r_j, \qquad \sum_j \dot y_j \ \text{ with them}
"""

import dataclasses
import time
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from paper_figures.results import Claim, Results, spread
from toy_models import growth_event as event

SEED = 0
DEPENDS = ("bea", "fusion_core", "toy_models")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
      sizes: widths of the small networks.
      samples: number of samples of the teacher tasks.
      runs: independent tasks with their networks.
      largest: the largest step size; the next ones are halves.
      halvings: number of halvings of the step size.
      copies: numbers of fused copies, for the velocity.
    """

    sizes: tuple[int, ...]
    samples: int
    runs: int
    largest: float
    halvings: int
    copies: tuple[int, ...]


PRESETS = {
    "smoke": Config(sizes=(3, 4, 4, 2), samples=24, runs=2, largest=0.01, halvings=3, copies=(2,)),
    "full": Config(sizes=(4, 12, 12, 2), samples=64, runs=8, largest=0.01, halvings=5, copies=(2, 3)),
}

KEYS = {name: f"gap{i}" for i, name in enumerate(event.GAPS)}
LABELS = {
    "self, parameters": "with itself: parameters",
    "self, loss": "with itself: loss",
    "two, parameters": "two different: parameters",
    "two, loss": "two different: loss",
    "two, loss without the conflict": "two different: loss less the predicted conflict",
}
STYLES = {
    "self, parameters": ("C5", "o", "--"),
    "self, loss": ("C0", "s", "-"),
    "two, parameters": ("C5", "o", "--"),
    "two, loss": ("C1", "s", "-"),
    "two, loss without the conflict": ("C2", "D", "-"),
}
ROWS = ("first weights", "hidden weights", "last weights", event.ALL)
OPTIMIZERS = {"sgd": "gradient descent", "adam": "Adam", "adafactor": "Adafactor"}
ROUNDING = 1e-6  # largest jump that counts as none, in float64
FLOOR = 1e-17  # position at which an exact zero is drawn


def compute(preset: str) -> Results:
    """Measure differences and slopes by seed and step size, and jumps of the velocity, all in float64."""
    started, config = time.perf_counter(), PRESETS[preset]
    seeds = [SEED + run for run in range(config.runs)]
    step_sizes = [config.largest / 2**k for k in range(config.halvings + 1)]
    arrays: dict[str, Any] = {"step_sizes": step_sizes}
    for name, found in event.neutrality(config.sizes, config.samples, seeds, step_sizes).items():
        arrays |= {f"{KEYS[name]}_errors": found["errors"], f"{KEYS[name]}_slopes": found["slopes"]}
    for row in event.velocity_jumps(config.sizes, config.samples, seeds, config.copies):
        if row["kind"] in ROWS:
            for what in ("with", "without", "predicted"):
                arrays[_key(row["optimizer"], row["copies"], row["kind"], what)] = row[what]
    return Results.of("growth_event", preset, SEED, dataclasses.asdict(config), arrays, started)


def draw(results: Results) -> Figure:
    """Draw differences against step size, log-log, and the jumps, one row an optimizer and kind of array, on a log axis."""
    figure = Figure(figsize=(12.0, 4.9))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.35))
    middle.sharey(left)
    _draw_gaps(left, results, list(event.GAPS)[:2], "Steps swapped: fused with itself")
    _draw_gaps(middle, results, list(event.GAPS)[2:], "Steps swapped: two different networks")
    left.set_ylabel("difference between the two orders\n(norm of parameters; loss in target variances)")
    _draw_jumps(right, results)
    return figure


def predicted(results: Results) -> list[Claim]:
    """Return what the README shows: orders of the loss's change, and jumps of the function's velocity."""
    names = {
        "self, loss": "swapping a small and a grown step, a network fused with itself",
        "two, loss": "the same, two different networks",
        "two, loss without the conflict": "the same, less the predicted conflict",
    }
    slope = lambda name: spread(results.arrays[f"{KEYS[name]}_slopes"])
    orders = [(names[n], f"loss changes at order {event.GAPS[n]}", f"slope {slope(n)}") for n in names]
    first, jumps = results.config["copies"][0], _jumps(results)
    median = lambda what: ", ".join(
        f"{100 * np.median(results.arrays[_key(o, first, event.ALL, what)]):.0f}" for o in OPTIMIZERS
    )
    words = " and ".join(", ".join(OPTIMIZERS.values()).rsplit(", ", 1))
    return [
        *orders,
        ("the function's velocity across the event, with the rate factors", "no jump", f"at most {jumps['worst']:.0e}"),
        (f"the same, without them: {words}, k = {first}", f"{median('predicted')} %", f"{median('without')} %"),
    ]


def finding(results: Results) -> str:
    """Return a sentence on whether slopes and jumps are as predicted, from the numbers."""
    slopes = {name: float(results.arrays[f"{key}_slopes"].mean()) for name, key in KEYS.items()}
    kept = all(abs(slopes[name] - order) < 0.15 for name, order in event.GAPS.items())
    numbers = "; ".join(f"{LABELS[name]} {slopes[name]:.2f}, expected {order}" for name, order in event.GAPS.items())
    jumps = _jumps(results)
    worst, off = jumps["worst"], jumps["off"]
    still, as_marked = worst <= ROUNDING, off <= ROUNDING
    first = results.config["copies"][0]
    whole = ", ".join(
        f"{name} {100 * np.median(results.arrays[_key(o, first, event.ALL, 'without')]):.0f} %"
        for o, name in OPTIMIZERS.items()
    )
    return (
        f"Measured slopes ({'as' if kept else 'NOT as'} predicted, to 0.15): {numbers}. With the factors the velocity "
        f"{'does not jump' if still else 'DOES jump, NOT as predicted'} (at most {worst:.0e} of it); without them it jumps by "
        f"{whole} in the median network (k = {first}, all arrays), {'as' if as_marked else 'NOT as'} predicted "
        f"(off by {off:.0e} at most, all kinds of arrays)."
    )


def _jumps(results: Results) -> dict[str, float]:
    """Return the largest jump with the factors, and how far those without them are off their prediction."""
    cases = [(o, k, kind) for o in OPTIMIZERS for k in results.config["copies"] for kind in ROWS]
    kept, without, marks = (
        np.array([results.arrays[_key(*case, what)] for case in cases]) for what in ("with", "without", "predicted")
    )
    return {"worst": float(kept.max()), "off": float(np.abs(without - marks).max())}


def _key(optimizer: str, copies: int, kind: str, what: str) -> str:
    return f"jump_{optimizer}_{copies}_{kind.replace(' ', '_')}_{what}"


def _draw_gaps(axes: Any, results: Results, names: list[str], title: str) -> None:
    h = results.arrays["step_sizes"]
    for name in names:
        errors, slopes = (results.arrays[f"{KEYS[name]}_{what}"] for what in ("errors", "slopes"))
        color, marker, line = STYLES[name]
        style: dict[str, Any] = {"color": color, "marker": marker}
        for run in errors:
            axes.plot(h, run, linestyle="none", alpha=0.3, markeredgewidth=0, markersize=3, **style)
        text = f"{LABELS[name].split(': ')[-1]}: slope {spread(slopes)}"
        axes.plot(h, np.median(errors, axis=0), linestyle=line, label=text, zorder=3, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("step size $h$ of both phases")
    axes.set_title(title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), handlelength=3)


def _draw_jumps(axes: Any, results: Results) -> None:
    copies, labels, at = results.config["copies"], [], []
    y = 0.0
    for i, (optimizer, title) in enumerate(OPTIMIZERS.items()):
        for kind in ROWS:
            at.append(y)
            labels.append(kind)
            for j, k in enumerate(copies):
                where = y + 0.32 * (j - (len(copies) - 1) / 2)
                jump = {w: results.arrays[_key(optimizer, k, kind, w)] for w in ("with", "without", "predicted")}
                marker = "os^"[j]
                shown = {what: np.maximum(values, FLOOR) for what, values in jump.items()}
                here = np.full(len(shown["with"]), where)
                predicted = shown["predicted"][jump["predicted"] > ROUNDING]
                axes.plot(predicted, here[: len(predicted)], "|", color="0.25", markersize=9, markeredgewidth=0.8)
                ring = {"color": f"C{i}", "marker": marker, "linestyle": "none", "markersize": 4.2}
                axes.plot(shown["without"], here, markerfacecolor="none", markeredgewidth=0.8, **ring)
                axes.plot(shown["with"], here, alpha=0.8, markeredgewidth=0, **ring)
            y += 1
        axes.text(3e-12, y - 2.5, title, color=f"C{i}", va="center", ha="center", fontweight="bold")
        y += 0.6
    axes.axvline(ROUNDING, color="0.6", linestyle=":", linewidth=1)
    axes.text(ROUNDING, -0.75, "no jump below", ha="right", va="bottom", fontsize=7.5, color="0.4")
    axes.set_xscale("log")
    axes.set_xlim(FLOOR / 3, 30)
    axes.set_yticks(at, labels)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("jump of the function's velocity (share of that before)")
    axes.set_title("Velocity of the function across self-fusion")
    grey: dict[str, Any] = {"color": "0.25", "linestyle": "none", "markersize": 5}
    handles = [
        axes.plot([], [], marker="o", markeredgewidth=0, label="with the rate factors", **grey)[0],
        axes.plot([], [], marker="o", markerfacecolor="none", label="without", **grey)[0],
        axes.plot([], [], marker="|", color="0.25", linestyle="none", markersize=10, label="without, predicted")[0],
    ]
    if len(copies) > 1:
        handles += [
            axes.plot([], [], marker="os^"[j], markerfacecolor="none", label=f"k = {k} copies", **grey)[0]
            for j, k in enumerate(copies)
        ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2)
