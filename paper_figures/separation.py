r"""How copies part: by a symmetry that noise breaks, at a rate that theory gives; and what a push in its direction is worth.

Small tanh networks learn from a teacher, are fused with themselves, and train on by gradient descent; float64. Left: the
norm of the copies' difference ``δ = (1 − Π) Θ`` after antisymmetric noise of three sizes (points), and the flow of a small
difference along the symmetric run (lines), from the start alone. Middle: the error of that prediction over a fixed time
against the step size, with the gradient's flow and with the modified field; every network as a point. Right: the loss after
growth, by what was between the copies: nothing, noise of 0.1 to 1, a push along the 16 leading directions, of the norm of
noise of 0.1, alone and on top of noise; medians of the ratio to the run without anything, bands between the quartiles.

What one should see: points on the lines until the difference is of the size of the weights; slopes 1 and 2; and a push that is
ahead of five times the noise at first, but not in the end.

.. math:: \delta' = -(1 - \Pi) H(\Pi\Theta) \delta, \qquad \tilde H = H + \tfrac h2 (H^2 + H'[\nabla L])
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import bea
from bea.pytrees import norm, subtract
from fusion_core.growth import MLPConfig, fuse, fusion_map
from fusion_core.schedule.separation import noise_norm
from paper_figures.results import Claim, Results, spread
from toy_models import mlp, teacher

SEED = 0
DEPENDS = ("bea", "fusion_core", "toy_models")
SHOWN_NOISE = (1e-5, 1e-3, 1e-1)  # left
VARIANTS = {  # right: name -> (noise, push)
    "nothing": (0.0, 0.0),
    "noise 0.1": (0.1, 0.0),
    "noise 0.3": (0.3, 0.0),
    "noise 0.5": (0.5, 0.0),
    "noise 1": (1.0, 0.0),
    "push 0.1": (0.0, 0.1),
    "noise 0.5, push 0.1": (0.5, 0.1),
    "noise 1, push 0.1": (1.0, 0.1),
}
ORDERS = {"plain": 1, "modified": 2}
LINEAR = 0.05  # share of the parameters' norm up to which a difference counts as small
LANCZOS, DIRECTIONS = 60, 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
      sizes: widths of the small network.
      features: width of the teacher.
      samples: of the task.
      networks: number of tasks with a network each.
      step: step size h.
      grown: steps before the growth.
      marks: steps after it at which losses and differences are measured.
      time: time over which errors are measured, in units of step size.
      largest, halvings: step sizes for the orders.
    """

    sizes: tuple[int, ...]
    features: int
    samples: int
    networks: int
    step: float
    grown: int
    marks: tuple[int, ...]
    time: float
    largest: float
    halvings: int


PRESETS = {
    "smoke": Config((3, 4, 1), 6, 16, 2, 0.1, 100, (0, 100, 200, 400), 0.8, 0.2, 2),
    "full": Config((4, 6, 6, 1), 16, 128, 8, 0.1, 600, (0, 125, 250, 500, 1000, 2000, 4000, 8000), 1.6, 0.2, 3),
}


class _Experiment:
    """The functions of all tasks, compiled once; a task is an argument."""

    def __init__(self, config: Config) -> None:
        self.config, self.network = config, MLPConfig(config.sizes)
        self.mapping = fusion_map([self.network] * 2)
        self.train, self.errors = jax.jit(self._train), jax.jit(self._errors)
        self.loss = jax.jit(_loss)
        self.flow = jax.jit(self._flow)
        self.separation = jax.jit(self._separation)
        self.pushed = jax.jit(self._pushed)

    def sources(self, seed: int) -> tuple[teacher.Samples, mlp.Params]:
        """Return a task, and the network that has learned from it."""
        config = self.config
        sizes = (config.sizes[0], config.features, config.sizes[-1])
        task = teacher.teacher_task(sizes, seed=seed, train=config.samples, validation=1, dtype=jnp.float64).train
        start = mlp.init(config.sizes, seed=seed + 1000, dtype=jnp.float64)
        return task, self.train(task, start, config.grown, config.step)

    def copies(self, small: mlp.Params, noise: float) -> mlp.Params:
        """Return two copies of a network, with antisymmetric noise between them."""
        if not noise:
            return self.mapping.embed((small, small))
        return fuse([(small, self.network)] * 2, off_diagonal="antisymmetric", noise=noise, seed=1)[0]

    def difference(self, params: mlp.Params) -> mlp.Params:
        """Return the antisymmetric part."""
        return bea.antisymmetric_part(self.mapping.exchanges, params)

    def _train(self, task: teacher.Samples, params: mlp.Params, steps: Any, h: Any) -> mlp.Params:
        field = bea.gradient_field(lambda p: _loss(p, task))
        one = lambda _, p: jax.tree.map(lambda x, v: x + h * v, p, field(p))
        return jax.lax.fori_loop(0, steps, one, params)

    def _flow(self, task: teacher.Samples, params: mlp.Params, along: mlp.Params, span: Any) -> Any:
        field = bea.gradient_field(lambda p: _loss(p, task))
        tangent = bea.separation_field(field, self.mapping.exchanges)
        return bea.flow(tangent, (params, along), span, rtol=1e-7, atol=1e-9, max_steps=100_000)

    def _separation(self, task: teacher.Samples, params: mlp.Params) -> bea.Separation:
        options: dict[str, Any] = {"steps": LANCZOS, "directions": DIRECTIONS}
        return bea.separation_rate(lambda p: _loss(p, task), self.mapping.exchanges, params, **options)

    def _pushed(self, task: teacher.Samples, params: mlp.Params, directions: mlp.Params, size: Any) -> mlp.Params:
        """Return parameters pushed by a norm, along each direction to the side on which the loss does not rise."""
        slope = jax.grad(_loss)(params, task)
        signs = jax.vmap(lambda e: jnp.where(bea.pytrees.inner(slope, e) > 0, -1.0, 1.0))(directions)
        weights = size * signs / DIRECTIONS**0.5
        return jax.tree.map(lambda x, e: x + jnp.tensordot(weights, e, 1), params, directions)

    def _errors(self, task: teacher.Samples, noisy: mlp.Params, h: Any, steps: Any) -> dict[str, Any]:
        """Return the error of the predicted difference after the fixed time, relative to its start, for each field."""
        exchange, span = self.mapping.exchanges, self.config.time
        start, found = self.difference(noisy), {}
        measured = self.difference(self._train(task, noisy, steps, h))
        for name, order in ORDERS.items():
            field = bea.modified_field(bea.gradient_field(lambda p: _loss(p, task)), h, order=order)
            tangent = bea.separation_field(field, exchange)
            _, along = bea.flow(tangent, (noisy, start), span, rtol=1e-12, atol=1e-15)
            found[name] = norm(subtract(along, measured)) / norm(start)
        return found

    def growth(self, task: teacher.Samples, small: mlp.Params) -> dict[str, Any]:
        """Return measured and predicted norms of the difference at the marks, for every shown size of noise."""
        config = self.config
        params, along = self.copies(small, 0.0), self.difference(self.copies(small, 1.0))
        found, predicted, measured, at = self.separation(task, params), [], [], 0
        weights = float(norm(params))
        for mark in config.marks:
            if mark > at:
                params, along = self.flow(task, params, along, (mark - at) * config.step)
            predicted.append(float(norm(along)))
            at = mark
        for size in SHOWN_NOISE:
            measured.append([float(norm(self.difference(run))) for run in self.run(task, self.copies(small, size))])
        return {
            "measured": measured,
            "predicted": np.outer(SHOWN_NOISE, predicted),
            "weights": weights,
            "rate": float(found.rate),
            "uncertainty": float(found.uncertainty),
        }

    def run(self, task: teacher.Samples, params: mlp.Params) -> Iterator[mlp.Params]:
        """Yield the parameters at the marks."""
        at = 0
        for mark in self.config.marks:
            params, at = self.train(task, params, mark - at, self.config.step), mark
            yield params

    def losses(self, task: teacher.Samples, small: mlp.Params) -> list[list[float]]:
        """Return the losses at the marks, for every variant."""
        copies = self.copies(small, 0.0)
        directions, unit, found = self.separation(task, copies).directions, noise_norm(self.mapping, copies), []
        for noise, push in VARIANTS.values():
            params = self.pushed(task, self.copies(small, noise), directions, push * unit)
            found.append([float(self.loss(run, task)) for run in self.run(task, params)])
        return found


def _loss(params: mlp.Params, task: teacher.Samples) -> jax.Array:
    return mlp.mse_loss(*task)(params)


def compute(preset: str) -> Results:
    """Train, grow and train on; measure differences, errors and losses, in float64."""
    started, config = time.perf_counter(), PRESETS[preset]
    step_sizes = [config.largest / 2**k for k in range(config.halvings + 1)]
    arrays: dict[str, Any] = {"step_sizes": step_sizes, "marks": config.marks, "sizes": SHOWN_NOISE}
    found: dict[str, list[Any]] = {f"{name}_{what}": [] for name in ORDERS for what in ("errors", "slopes")}
    with jax.enable_x64(True):
        experiment, losses = _Experiment(config), []
        for number in range(config.networks):
            task, small = experiment.sources(SEED + number)
            if not number:
                arrays |= experiment.growth(task, small)
            noisy = experiment.copies(small, 1e-6)
            errors = [experiment.errors(task, noisy, h, round(config.time / h)) for h in step_sizes]
            for name in ORDERS:
                table = {h: error[name] for h, error in zip(step_sizes, errors, strict=True)}
                order = bea.measured_order(lambda h, table=table: table[h], step_sizes)
                found[f"{name}_errors"].append([error for _, error in order.points])
                found[f"{name}_slopes"].append(order.slope)
            losses.append(experiment.losses(task, small))
    return Results.of(
        "separation", preset, SEED, dataclasses.asdict(config), arrays | found | {"losses": losses}, started
    )


def worst_in_linear_range(results: Results) -> float:
    """Return the largest relative error of a predicted difference among those that are small against the parameters."""
    measured, predicted = results.arrays["measured"], results.arrays["predicted"]
    small = measured < LINEAR * results.arrays["weights"]
    return float(np.max(np.abs(predicted / measured - 1)[small], initial=0.0))


def ratios(results: Results) -> np.ndarray:
    """Return the losses over those of the run with nothing between the copies, [networks, variants, marks]."""
    losses = results.arrays["losses"]
    return losses / losses[:, :1]


def draw(results: Results) -> Figure:
    """Draw differences, errors and losses side by side."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_growth(left, results)
    _draw_orders(middle, results)
    _draw_losses(right, results)
    return figure


def _draw_growth(axes: Any, results: Results) -> None:
    marks, weights = results.arrays["marks"], float(results.arrays["weights"])
    for i, size in enumerate(results.arrays["sizes"]):
        axes.plot(marks, results.arrays["predicted"][i], color=f"C{i}", zorder=1)
        axes.plot(marks, results.arrays["measured"][i], "o", color=f"C{i}", label=f"noise {size:g}", zorder=2)
    axes.axhline(weights, color="0.5", linestyle=":", linewidth=0.9)
    axes.annotate("norm of the weights", (marks[-1], weights), ha="right", va="bottom", fontsize="small")
    axes.set_yscale("log")
    axes.set_ylim(top=10 * weights)
    axes.set_xlabel("steps after growth")
    axes.set_ylabel("norm of the copies' difference")
    axes.set_title("Copies part as predicted")
    axes.legend(loc="lower right")


def _draw_orders(axes: Any, results: Results) -> None:
    h = results.arrays["step_sizes"]
    labels = {"plain": "gradient's flow", "modified": "modified field"}
    for i, name in enumerate(ORDERS):
        errors, slopes = results.arrays[f"{name}_errors"], results.arrays[f"{name}_slopes"]
        for run in errors:
            axes.plot(h, run, "os"[i], color=f"C{i}", alpha=0.35, markersize=3.5, markeredgewidth=0)
        axes.plot(h, np.median(errors, axis=0), color=f"C{i}", label=f"{labels[name]}: slope {spread(slopes)}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("step size $h$ (learning rate)")
    axes.set_ylabel("error of the difference, relative to its start")
    axes.set_title("The modified field is an order better")
    axes.legend(loc="lower right")


def _draw_losses(axes: Any, results: Results) -> None:
    marks, ratio = results.arrays["marks"], ratios(results)
    shown = marks > 0
    for i, name in enumerate(VARIANTS):
        low, middle, high = np.quantile(ratio[:, i][:, shown], (0.25, 0.5, 0.75), axis=0)
        noise, push = VARIANTS[name]
        style: dict[str, Any] = {"color": f"C{i}", "linestyle": "-" if not push else "--" if noise else "-."}
        axes.plot(marks[shown], middle, label=name, **style)
        if push and not noise:
            axes.fill_between(marks[shown], low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("steps after growth")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("loss over that with nothing between")
    axes.set_title("A push is worth much noise, at first")
    axes.legend(loc="lower left", fontsize="x-small")


def predicted(results: Results) -> list[Claim]:
    """Return what the README shows: the order of the error of the predicted difference."""
    slopes = ", ".join(spread(results.arrays[f"{name}_slopes"]) for name in ORDERS)
    return [
        ("how the copies part, by the gradient's flow, the modified field", "error of order 1, 2", f"slopes {slopes}")
    ]


def finding(results: Results) -> str:
    """Return sentences on whether differences, slopes and losses are as the caption predicts."""
    slopes = {name: float(results.arrays[f"{name}_slopes"].mean()) for name in ORDERS}
    worst = worst_in_linear_range(results)
    kept = worst < 0.05 and all(abs(slopes[name] - order) < 0.15 for name, order in ORDERS.items())
    median, names = np.median(ratios(results), axis=0), list(VARIANTS)
    marks = results.arrays["marks"]
    at = lambda mark: ", ".join(f"{name} {median[names.index(name), mark]:.2f}" for name in names if name != "nothing")
    return (
        f"{'As' if kept else 'NOT as'} predicted: small differences are within {worst:.1%} of the flow; slopes "
        f"{slopes['plain']:.2f} and {slopes['modified']:.2f}, expected 1 and 2. Median loss over that with nothing between the "
        f"copies after {marks[1]:.0f} steps: {at(1)}; after {marks[-1]:.0f}: {at(-1)}."
    )
