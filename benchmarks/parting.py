"""How the copies of a trained T5 part after a self-fusion, and how much noise between them a training step takes.

``python -m benchmarks.parting PLAN RUN NODE`` takes a finished node that trains, from the folder of a run, and prints

* the rate λ at which copies part in a step, by Lanczos, with the optimizer frozen at the event, and the steps that it predicts
  noise of 0.3 and of 0.5 to gain on 0.1;
* the norm of the copies' difference while they train on, from equal copies and from noise of a few sizes;
* along the step that training would take, for sizes of noise: curvature, the length of the step that lowers the quadratic model
  most in units of that step, and the loss after the step.

Rates are kept as they are. Prints Markdown; ``--json FILE`` (``-`` for the terminal) writes the numbers.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bea
from bea.pytrees import norm
from benchmarks.output import hand_over
from fusion_core.growth import fuse, fusion_map
from fusion_core.runs import read_plan
from fusion_core.runs.context import RunContext
from fusion_core.runs.data import RunData
from fusion_core.runs.graph import resolve
from fusion_core.runs.separating import mean_loss
from fusion_core.schedule.separation import frozen_metric, mean_over, separation_of
from fusion_core.train import TrainState, grow_states
from fusion_core.train.step import displacement

START, NOISES = (0.0, 1e-6, 1e-4, 1e-2), (0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 2.0)


class _Copies:
    """A trained network as two copies of itself, with its text, loss and optimizer."""

    def __init__(self, plan_file: pathlib.Path, run: pathlib.Path, node: str) -> None:
        plan = read_plan(plan_file)
        resolved = {one.name: one for one in resolve(plan)}[node]
        silent = lambda *_: None
        self.data = RunData(plan.data, plan.seed, run / "data", silent)
        seed = plan.seeds[0] if plan.seeds else plan.seed
        folder = run / f"seed-{seed}" if plan.seeds else run
        source = RunContext(plan, seed, folder, self.data, None, silent, silent, silent).result(resolved)
        self.node, self.config, self.source = resolved.node, resolved.config, source
        self.mapping = fusion_map([resolved.config] * 2)
        self.loss, self.optimizer = mean_loss(self.mapping.config), resolved.node.optimizer.build()
        kept = jax.tree.map(lambda _: 1.0, source.params)
        self.state: TrainState = jax.jit(lambda s: grow_states(self.mapping, s, kept, copies=True))((source, source))

    def noisy(self, size: float) -> Any:
        """Return the grown parameters with antisymmetric noise."""
        pair = [(self.source.params, self.config)] * 2
        return fuse(pair, off_diagonal="antisymmetric", noise=size)[0] if size else self.state.params

    def batches(self, number: int, count: int) -> list[Any]:
        """Return fresh batches, other ones for every number."""
        return self.data.fresh(self.node.length, self.node.batch, int(self.state.step) + number, count)

    def metric(self, total: Any, state: TrainState) -> Any:
        """Return the optimizer's M at a state, learning rates included."""
        return frozen_metric(self.optimizer, lambda p, _: total(p), state, None)


def rate(copies: _Copies, batches: int, lanczos: int) -> dict[str, Any]:
    """Return λ of a step, its residual, the leading rates and the predicted gains."""
    drawn = copies.batches(0, batches)
    metric = jax.jit(lambda state: copies.metric(mean_over(copies.loss, drawn), state))(copies.state)
    options: dict[str, Any] = {"steps": lanczos, "directions": min(8, lanczos), "drift": False}
    found = separation_of(copies.loss, copies.mapping, copies.state.params, drawn, metric, **options)
    gained = {str(more): found.steps_gained(more, 0.1, 1.0) for more in (0.3, 0.5)}
    rates = np.asarray(found.rates).tolist()
    return {"rate": rates[0], "residual": float(found.uncertainty), "rates": rates, "gained": gained}


def growth(copies: _Copies, steps: int) -> dict[str, Any]:
    """Return the norm of the difference after each step of training, for every size of noise at the start."""
    drawn = [jax.tree.map(jnp.asarray, batch) for batch in copies.batches(1, steps)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *drawn)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        move, moments = displacement(copies.optimizer, jax.grad(copies.loss)(state.params, batch), state)
        params = jax.tree.map(jnp.add, state.params, move)
        apart = norm(bea.antisymmetric_part(copies.mapping.exchanges, params))
        return state._replace(params=params, opt_state=moments, step=state.step + 1), apart

    train = jax.jit(lambda state: jax.lax.scan(step, state, stacked)[1])
    found = {str(size): train(copies.state._replace(params=copies.noisy(size))).tolist() for size in START}
    return {"weights": float(norm(copies.state.params)), "norms": found}


def curvatures(copies: _Copies, batches: int) -> list[dict[str, float]]:
    """Return curvature, best length and loss of the step that training would take, for every size of noise."""
    total = mean_over(copies.loss, copies.batches(2, batches))

    @jax.jit
    def along(params: Any) -> tuple[jax.Array, ...]:
        metric, slope = copies.metric(total, copies.state._replace(params=params)), jax.grad(total)(params)
        move = jax.tree.map(lambda m, g: -m * g, metric, slope)
        model = bea.quadratic_model(total, params, move)
        after = total(jax.tree.map(jnp.add, params, move))
        return model.curvature, -model.slope / model.curvature, total(params), after

    names = ("curvature", "best", "before", "after")
    return [{"noise": s, **dict(zip(names, map(float, along(copies.noisy(s))), strict=True))} for s in NOISES]


def report(found: dict[str, Any]) -> str:
    """Return the three tables."""
    rate_, growth_ = found["rate"], found["growth"]
    gains = " and ".join(f"{steps:.1f} steps for {more}" for more, steps in rate_["gained"].items())
    steps = len(next(iter(growth_["norms"].values())))
    marks = sorted({2**k for k in range(12) if 2**k < steps} | {steps})
    lines = [
        f"λ = {rate_['rate']:.3g} ± {rate_['residual']:.1g} a step; predicted gain on noise 0.1: {gains}.",
        "",
        f"Norm of the difference (parameters: {growth_['weights']:.4g}) after steps",
        f"| noise | {' | '.join(map(str, marks))} |",
        f"|---|{'---|' * len(marks)}",
        *(
            f"| {size} | {' | '.join(f'{norms[mark - 1]:.3g}' for mark in marks)} |"
            for size, norms in growth_["norms"].items()
        ),
        "",
        "| noise | curvature | best step / step | loss | after a step |",
        "|---|---|---|---|---|",
    ]
    keys = ("noise", "curvature", "best", "before", "after")
    return "\n".join(lines + [f"| {' | '.join(f'{row[key]:.4g}' for key in keys)} |" for row in found["noise"]])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=pathlib.Path, help="plan file of the run")
    parser.add_argument("run", type=pathlib.Path, help="its folder")
    parser.add_argument("node", help="a finished node that trains")
    parser.add_argument("--batches", type=int, default=8, help="of λ; a quarter of them for the curvatures")
    parser.add_argument("--lanczos", type=int, default=16, help="steps of Lanczos")
    parser.add_argument("--steps", type=int, default=64, help="of training")
    parser.add_argument("--json", help="file of the numbers")
    options = parser.parse_args(arguments)
    copies = _Copies(options.plan, options.run, options.node)
    found = {
        "rate": rate(copies, options.batches, options.lanczos),
        "growth": growth(copies, options.steps),
        "noise": curvatures(copies, max(1, options.batches // 4)),
    }
    hand_over(found, report(found), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
