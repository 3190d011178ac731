r"""Two training phases are one flow to third order, but only with the conflict term.

One gradient-descent step on a first task and one on a second task (two teacher tasks, one tanh network) are compared
with the time-one flow of the composite field, at repeatedly halved step sizes. Shown is the distance between the two
ends: every seed as a point, the median as a line, the range of the seeds as a band.

What one should see: the first-order field alone and the field with the self terms only (the effect of discretisation on
each step by itself) both have an error of slope 2; with the conflict term, half the Lie bracket of the two phases, the
slope is 3. The legend has the measured slopes, mean and standard deviation over the seeds.

.. math:: F = h (f_1 + f_2) - \tfrac{h^2}{2} (f_1'f_1 + f_2'f_2) + \tfrac{h^2}{2} [f_1, f_2] + O(h^3)
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import bea
from bea.pytrees import norm, subtract
from paper_figures.results import Claim, Results, spread
from toy_models import mlp, teacher

SEED = 0
DEPENDS = ("bea", "toy_models")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
      sizes: widths of the network and of both teachers.
      samples: number of training samples of a task.
      runs: number of independent networks and task pairs.
      largest: the largest step size; the next ones are halves.
      halvings: number of halvings of the step size.
      rtol, atol: tolerances of the exact flow; float64.
    """

    sizes: tuple[int, ...]
    samples: int
    runs: int
    largest: float
    halvings: int
    rtol: float = 1e-12
    atol: float = 1e-14


PRESETS = {
    "smoke": Config(sizes=(2, 4, 1), samples=8, runs=2, largest=2**-6, halvings=3),
    "full": Config(sizes=(4, 16, 16, 1), samples=64, runs=8, largest=2**-6, halvings=6),
}

LABELS = {
    "first_order": "no second-order terms",
    "self_terms": "self terms only",
    "composite": "all second-order terms, conflict included",
}
EXPECTED = {"first_order": 2, "self_terms": 2, "composite": 3}  # powers of h


def compute(preset: str) -> Results:
    """Measure errors and slopes for every field, run and step size, in float64."""
    started, config = time.perf_counter(), PRESETS[preset]
    step_sizes = [config.largest / 2**k for k in range(config.halvings + 1)]
    with jax.enable_x64(True):
        errors_of = _errors(config)
        errors = [{h: errors_of(run, h) for h in step_sizes} for run in range(config.runs)]
    measured = {
        name: [bea.measured_order(lambda h, run=run, name=name: run[h][name], step_sizes) for run in errors]
        for name in LABELS
    }
    arrays: dict[str, Any] = {"step_sizes": step_sizes}
    for name, orders in measured.items():
        arrays[f"{name}_errors"] = [[error for _, error in order.points] for order in orders]
        arrays[f"{name}_slopes"] = [order.slope for order in orders]
    return Results.of("order_of_accuracy", preset, SEED, dataclasses.asdict(config), arrays, started)


def draw(results: Results) -> Figure:
    """Draw error against step size, log–log, one colour a field, with the reference slopes."""
    h = results.arrays["step_sizes"]
    figure = Figure()
    axes = figure.add_subplot()
    for i, (name, label) in enumerate(LABELS.items()):
        errors, slopes = results.arrays[f"{name}_errors"], results.arrays[f"{name}_slopes"]
        style: dict[str, Any] = {"color": f"C{i}", "marker": "osD"[i]}
        text = f"{label}: slope {spread(slopes)}"
        axes.fill_between(h, errors.min(axis=0), errors.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)
        for run in errors:
            axes.plot(h, run, linestyle="none", alpha=0.35, markeredgewidth=0, markersize=3.5, **style)
        axes.plot(h, np.median(errors, axis=0), label=text, zorder=3, **style)
    for order, name, where in ((2, "first_order", "above"), (3, "composite", "below")):
        middle = np.median(results.arrays[f"{name}_errors"], axis=0)
        _slope_mark(axes, h, middle, order, where)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("step size $h$ of both phases (learning rate)")
    axes.set_ylabel("error after the two steps (norm in parameter space)")
    runs = len(results.arrays["composite_slopes"])
    axes.set_title(f"Two phases as one flow: error of three formulas ({runs} networks)")
    axes.legend(loc="lower right")
    return figure


def predicted(results: Results) -> list[Claim]:
    """Return what the README shows: the order of each formula's error."""
    names = {
        "first_order": "two training phases as one flow, without second-order terms",
        "self_terms": "the same, without the conflict term only",
        "composite": "the same, with all second-order terms",
    }
    slope = lambda name: spread(results.arrays[f"{name}_slopes"])
    return [(names[name], f"error of order {order}", f"slope {slope(name)}") for name, order in EXPECTED.items()]


def finding(results: Results) -> str:
    """Return a sentence on whether the measured slopes are those of the caption."""
    slopes = {name: float(results.arrays[f"{name}_slopes"].mean()) for name in LABELS}
    kept = all(abs(slopes[name] - order) < 0.15 for name, order in EXPECTED.items())
    numbers = "; ".join(f"{LABELS[name]}: {slopes[name]:.2f}, expected {order}" for name, order in EXPECTED.items())
    return f"Measured slopes ({'as' if kept else 'NOT as'} predicted, to 0.15): {numbers}."


def _slope_mark(axes: Any, h: np.ndarray, error: np.ndarray, order: int, where: str) -> None:
    """Draw a dashed guide of exactly this order, a factor away from the curve."""
    factor = 4.0 if where == "above" else 1 / 6.0
    guide = factor * error[0] * (h / h[0]) ** order
    axes.plot(h, guide, color="0.45", linestyle="--", linewidth=0.9)
    axes.annotate(
        f"$h^{order}$", (h[-1], guide[-1]), xytext=(-4, 0), textcoords="offset points", ha="right", va="center"
    )


def _errors(config: Config) -> Callable[[int, float], dict[str, float]]:
    """Return ``(run, h) -> {name of the field: error}``; the flows of all fields are compiled together, once."""
    dtype = jnp.float64
    seeds = np.random.SeedSequence(SEED).generate_state(3 * config.runs).reshape(config.runs, 3) // 2

    def problem(run: int) -> tuple[mlp.Params, teacher.Samples, teacher.Samples]:
        tasks = [
            teacher.teacher_task(config.sizes, seed=int(s), train=config.samples, validation=1, dtype=dtype).train
            for s in seeds[run, 1:]
        ]
        return mlp.init(config.sizes, seed=int(seeds[run, 0]), dtype=dtype), tasks[0], tasks[1]

    @jax.jit
    def errors(start: mlp.Params, one: teacher.Samples, two: teacher.Samples, h: jax.Array) -> dict[str, jax.Array]:
        phases = [bea.Phase(bea.gradient_field(mlp.mse_loss(*task)), h) for task in (one, two)]
        end = start
        for phase in phases:
            end = jax.tree.map(lambda p, v: p + h * v, end, phase.field(end))
        fields = {
            "first_order": bea.compose(phases, order=1),
            "self_terms": lambda p: jax.tree.map(jnp.add, *(bea.compose([phase])(p) for phase in phases)),
            "composite": bea.compose(phases, order=2),
        }
        flowed = bea.flow(
            lambda points: {name: field(points[name]) for name, field in fields.items()},
            dict.fromkeys(fields, start),
            1.0,
            rtol=config.rtol,
            atol=config.atol,
        )
        return {name: norm(subtract(flowed[name], end)) for name in fields}

    problems = [problem(run) for run in range(config.runs)]
    return lambda run, h: {name: float(error) for name, error in errors(*problems[run], h).items()}
