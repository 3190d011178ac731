"""Why forecasts by flows fail in long runs: what of their error goes with the noise, the large steps or the moving features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bea
from bea.krylov import metric_root
from toy_models import mlp
from toy_models.when_to_grow.long_runs import FAMILY, SMOKE_FAMILY, TUNING_SEED, LongRuns, Params, stacked
from toy_models.when_to_grow.measure import FORECASTS

PROBLEMS = (0, 1)
SHARE = 0.1  # of the budget, after which the networks are grown and forecast
SAMPLES, KERNEL = 512, 96
RUNS = 3
MARKS = 6  # times at which curvature is measured along a run
FINE: dict[str, Any] = {"relinearisations": 48, "ratio": 1.12, "krylov": 48}
CASES = {
    "fresh": "as it is: minibatches of samples seen once",
    "minibatch": "minibatches of the samples that the flow follows",
    "minibatch_half": "the same at half the step size, twice the steps",
    "full": "full batches of them",
    "full_half": "full batches at half the step size, twice the steps",
    "frozen": "full batches, features frozen at the growth",
}


class Failure:
    """The interventions on one problem."""

    def __init__(self, seed: int, smoke: bool) -> None:
        family = SMOKE_FAMILY if smoke else FAMILY
        self.long = LongRuns(family, seed, points=100 if smoke else 200)
        self.count = 2 if smoke else RUNS
        self.rate = self.long.tuned_rate()
        self.samples = jax.tree.map(lambda a: a[: min(SAMPLES, len(a))], self.long.train)
        self.loss: Callable[[Params], jax.Array] = lambda params: self.long.loss(params, self.samples)
        self.steps = round((1 - SHARE) * self.long.problem.steps)
        sources = self._sources()
        self.starts = self.long.grow(sources)
        self.run = jax.jit(self._run, static_argnames=("batch",))
        factors = self.long.factors
        self.sharpness = jax.jit(jax.vmap(lambda p: bea.largest_eigenvalue(self.loss, p, metric=factors).value))
        self.kernels = jax.jit(jax.vmap(self.kernel))
        self.looks: dict[str, Any] = {}  # compiled forecasts

    def _sources(self) -> Params:
        long, done = self.long, round(SHARE * self.long.points)
        counts, which = long.small_counts(), jnp.arange(self.count)
        ones = tuple(long.prepared.ones for _ in range(long.problem.sources))
        start = stacked([long.prepared.start(run) for run in range(self.count)])
        rates = jnp.full(self.count, self.rate, long.prepared.dtype)
        return long._small(start, which, 0, counts, done, rates, ones)[0]

    def _run(self, starts: Params, samples: Any, first: Any, until: Any, rate: Any, batch: int | None) -> Params:
        """Train all runs from a step to another: on minibatches of a number of samples, or on all."""
        size = len(samples[0])

        def one_step(step: Any, params: Params, run: Any) -> Params:
            seen = samples
            if batch is not None:
                begin = ((step + 977 * run) % (size // batch)) * batch
                seen = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, begin, batch), samples)
            slopes = jax.grad(lambda p: self.long.loss(p, seen))(params)
            return jax.tree.map(lambda a, g, f: a - rate * f * g, params, slopes, self.long.factors)

        runs = jnp.arange(self.count)
        body = lambda step, params: jax.vmap(one_step, (None, 0, 0))(step, params, runs)
        return jax.lax.fori_loop(first, until, body, starts)

    def trained(self, case: str) -> dict[str, Any]:
        """Return the losses that the runs of a case end with, the curvature along them, and how far their kernels moved."""
        fresh, half = case == "fresh", case.endswith("half")
        samples = self.long.train if fresh else self.samples
        batch = None if case.startswith("full") else self.long.batch
        rate, steps = (self.rate / 2, 2 * self.steps) if half else (self.rate, self.steps)
        marks = np.round(np.linspace(0, steps, MARKS + 1)).astype(int)
        params, curvature = self.starts, [self.sharpness(self.starts)]
        for first, until in itertools.pairwise(marks):
            params = self.run(params, samples, int(first), int(until), rate, batch=batch)
            curvature.append(self.sharpness(params))
        ends = jax.vmap(lambda p: self.long.loss(p, self.long.test if fresh else self.samples))(params)
        kernels = [np.asarray(self.kernels(p), float).reshape(self.count, -1) for p in (self.starts, params)]
        moved = np.linalg.norm(kernels[1] - kernels[0], axis=1) / np.linalg.norm(kernels[0], axis=1)
        angle = (kernels[0] * kernels[1]).sum(axis=1) / np.prod([np.linalg.norm(k, axis=1) for k in kernels], axis=0)
        return {
            "ends": np.asarray(ends, float).tolist(), "h_sharpness": (np.array(curvature).mean(axis=1) * rate).tolist(),
            "kernel_moved": float(moved.mean()), "kernel_cosine": float(angle.mean()),
            "noise": [self.noise(p, rate) for p in (self.starts, params)] if batch is not None else None,
        }  # fmt: skip

    def kernel(self, params: Params) -> jax.Array:
        """Return the tangent kernel J M Jᵀ of the first samples."""
        inputs = self.samples[0][:KERNEL]
        flat, unravel = ravel_pytree(params)
        root = metric_root(self.long.factors, params)
        jacobian = root * jax.jacrev(lambda p: mlp.forward(unravel(p), inputs, self.long.activation).ravel())(flat)
        return jacobian @ jacobian.T

    def noise(self, starts: Params, rate: float) -> float:
        """Return ``bea.noise_share`` of the minibatches, in the mean of the runs."""
        batches = jax.tree.map(lambda a: a.reshape(-1, self.long.batch, a.shape[-1]), self.samples)
        share = lambda params: bea.noise_share(self.long.loss, batches, params, rate, metric=self.long.factors)
        return float(jnp.mean(jax.lax.map(share, starts)))

    def frozen(self) -> list[float]:
        """Return the losses of the networks linearised at the growth, after full-batch steps, exactly (in float64)."""
        ends = []
        for run in range(self.count):
            params = jax.tree.map(lambda a, run=run: a[run], self.starts)
            flat, unravel = ravel_pytree(params)
            predict = lambda p, unravel=unravel: mlp.forward(unravel(p), self.samples[0], self.long.activation).ravel()
            jacobian = np.asarray(metric_root(self.long.factors, params) * jax.jacrev(predict)(flat), float)
            residual = np.asarray(predict(flat) - self.samples[1].ravel(), float)
            left, singular, _ = np.linalg.svd(jacobian, full_matrices=False)
            parts = left.T @ residual
            rest = residual - left @ parts
            decay = (1 - 2 * self.rate / len(residual) * singular**2) ** self.steps
            ends.append(float(np.mean((rest + left @ (decay * parts)) ** 2)))
        return ends

    def forecasts(self, case: str, settings: Mapping[str, Any]) -> dict[str, list[float]]:
        """Return the forecasts of a case, their stated uncertainties, and the largest h λ that they met."""
        half, frozen = case.endswith("half"), case == "frozen"
        rate, steps = (self.rate / 2, 2.0 * self.steps) if half else (self.rate, 1.0 * self.steps)

        def one(params: Params, rate: jax.Array, steps: jax.Array) -> tuple[jax.Array, ...]:
            ahead = bea.look_ahead(
                self.linearised(params) if frozen else self.loss,
                params, step_size=rate, steps=steps, metric=self.long.factors, **settings,
            )  # fmt: skip
            test = self.long.loss(ahead.params, self.long.test)
            return ahead.loss, test, ahead.uncertainty / ahead.loss, ahead.sharpness

        key = f"{settings} {frozen}"
        if key not in self.looks:
            self.looks[key] = jax.jit(lambda starts, *given: jax.lax.map(lambda p: one(p, *given), starts))
        own, test, errors, sharpness = (
            np.asarray(v, float).tolist() for v in self.looks[key](self.starts, rate, steps)
        )
        losses = test if case == "fresh" else own
        return {"losses": losses, "uncertainties": errors, "sharpness": sharpness}

    def linearised(self, start: Params) -> Callable[[Params], jax.Array]:
        """Return the loss of the network that is linear in its parameters from here on."""
        predict = lambda p: mlp.forward(p, self.samples[0], self.long.activation)
        outputs, forward = jax.linearize(predict, start)
        return lambda p: jnp.mean((outputs + forward(jax.tree.map(jnp.subtract, p, start)) - self.samples[1]) ** 2)


def measure(report: Callable[[str], None], smoke: bool = False) -> list[dict[str, Any]]:
    """Return for each problem and case the losses that were reached and forecast, and what moved on the way."""
    rows = []
    for index in PROBLEMS[: 1 if smoke else None]:
        failure = Failure(TUNING_SEED + index, smoke)
        for case in ("full", "frozen") if smoke else CASES:
            report(f"flows: problem {index}, {case}")
            found: dict[str, Any] = {"ends": failure.frozen()} if case == "frozen" else failure.trained(case)
            found["forecast"] = failure.forecasts(case, FORECASTS["look_ahead"])
            found["fine"] = found["forecast"] if smoke else failure.forecasts(case, FINE)
            rows.append({"problem": TUNING_SEED + index, "rate": failure.rate, "case": case} | found)
    return rows


def off(row: Mapping[str, Any], name: str) -> float:
    """Return the median error of a row's forecasts, as log ratios."""
    return float(np.median(np.abs(np.log(np.array(row[name]["losses"]) / np.array(row["ends"])))))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    fine = f"with {FINE['relinearisations']} linearisations"
    heads: tuple[str, ...] = ("problem", "runs", "final loss", "forecast off by", fine, "stated")
    heads += ("h λ, first, largest, last", "kernel moved by", "its cosine", "share of the noise, first, last")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        ends, stated = np.array(row["ends"]), np.array(row["forecast"]["uncertainties"])
        cells: list[str] = [
            f"{row['problem']}", CASES[row["case"]], f"{np.exp(np.log(ends).mean()):.3g}", f"{off(row, 'forecast'):.1%}",
            f"{off(row, 'fine'):.1%}", f"{np.median(stated):.0%}",
        ]  # fmt: skip
        if "h_sharpness" in row:
            sharp = row["h_sharpness"]
            cells += [f"{sharp[0]:.2f}, {max(sharp):.2f}, {sharp[-1]:.2f}"]
            cells += [f"{row['kernel_moved']:.0%}", f"{row['kernel_cosine']:.2f}"]
            cells += ["{:.1%}, {:.0%}".format(*row["noise"]) if row["noise"] else ""]
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
