"""What is measured on one problem: the truth over growth steps, forecasts, slopes, and the arms of equal FLOPs.

Rules only read these records (``benchmarks.growth.rules``), so that a rule can be judged again without training again.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bea
from benchmarks.growth.problems import SHARES, Params, Problem, Workshop

# shares of the budget, after a growth step, at which trial runs and the small networks are looked at
WINDOW = (0.0, 0.01, 0.02, 0.04)
# of the best rate of the small networks; beside them the problem's own
SCRATCH_RATES = (0.5, 2**-0.5, 1.0, 2**0.5)

# Later growth that is looked at from a growth step, as shares of the budget that is left.
LATER = (0.1, 0.25, 0.5, 0.75)

FORECASTS: dict[str, dict[str, Any]] = {
    "look_ahead": {"relinearisations": 12, "ratio": 1.5, "krylov": 16},
    "gauss_newton": {"relinearisations": 12, "ratio": 1.5, "krylov": 16},
    "frozen": {"relinearisations": 1, "krylov": 32},
}


def measure(problem: Problem, runs: int, costate_runs: int, report: Callable[[str], None] = lambda what: None) -> dict:
    """All records of a problem as plain lists, run first, growth step second."""
    began = time.perf_counter()
    shop = Workshop(problem)
    report("rate")
    rate = shop.tuned_rate()
    record: dict[str, Any] = {"problem": dataclasses.asdict(problem), "rate": rate, "shares": list(SHARES)}
    record |= {"costs": list(shop.costs), "small_steps": [shop.small_steps(s) for s in SHARES]}
    per_run: dict[str, list[Any]] = {}
    forecasters = _forecasters(shop, rate)
    greedy = jax.jit(functools.partial(_greedy, shop, rate))
    planned = jax.jit(functools.partial(_planned, shop, rate))
    for run in range(runs):
        report(f"run {run + 1} of {runs}")
        for name, value in _one_run(shop, rate, run, forecasters, greedy, planned).items():
            per_run.setdefault(name, []).append(value)
    report("costate")
    for run in range(costate_runs):
        per_run.setdefault("costate", []).append(_costate(shop, rate, run))
    report("scratch")
    record |= per_run | _scratch(shop, rate, runs)
    record["seconds"] = time.perf_counter() - began
    return record


def _forecasters(shop: Workshop, rate: float) -> dict[str, Callable[..., bea.LookAhead]]:
    made = {}
    for name, settings in FORECASTS.items():
        curvature = None if name == "look_ahead" else bea.gauss_newton(shop.predict, shop.output_loss)
        made[name] = jax.jit(
            lambda params, steps, settings=settings, curvature=curvature: bea.look_ahead(
                shop.loss, params, step_size=rate, steps=steps, metric=shop.factors, curvature=curvature, **settings
            )
        )
    return made


def _one_run(
    shop: Workshop, rate: float, run: int, forecasters: dict[str, Any], greedy: Any, planned: Any
) -> dict[str, Any]:
    times = sorted({shop.small_steps(min(s + w, 1.0)) for s in SHARES for w in WINDOW})
    sources, done, states = shop.start(run), 0, {}
    loss = jax.jit(shop.loss)
    for step in times:
        sources = tuple(shop.advance(p, step - done, rate, shop.ones) for p in sources)
        states[step], done = sources, step
    small_log = lambda share: float(np.mean([np.log(float(loss(p))) for p in states[shop.small_steps(share)]]))
    grown = [shop.grow(states[shop.small_steps(s)]) for s in SHARES]
    steps = np.asarray([shop.grown_steps(s) for s in SHARES])
    found: dict[str, Any] = {"small_log": [[small_log(min(s + w, 1.0)) for w in WINDOW] for s in SHARES]}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grown)
    losses = jax.jit(jax.vmap(shop.loss))
    found["final"] = losses(shop.advance_grown(stacked, jnp.asarray(steps), rate, shop.factors)).tolist()
    trial, trials, done = stacked, [losses(stacked)], 0
    for share in WINDOW[1:]:
        step = max(1, round(share * shop.problem.steps))
        trial = shop.advance_grown(trial, jnp.full(len(SHARES), step - done), rate, shop.factors)
        trials.append(losses(trial))
        done = step
    found["trial_log"] = np.log(np.asarray(trials).T).tolist()
    for name, forecast in forecasters.items():
        results = [forecast(p, float(n)) for p, n in zip(grown, steps, strict=True)]
        found[name] = [float(r.loss) for r in results]
        found[f"{name}_uncertainty"] = [float(r.uncertainty) for r in results]
    found["planned"] = []
    for share in SHARES[:-1]:
        sources, here = states[shop.small_steps(share)], shop.small_steps(share)
        row = []
        for part in LATER:
            then = share + part * (1 - share)
            steps = shop.small_steps(then)
            row.append([steps, float(planned(sources, float(steps - here), float(shop.grown_steps(then))))])
        found["planned"].append(row)
    found["greedy"] = [[float(v) for v in greedy(states[shop.small_steps(s)])] for s in SHARES]
    return found


def _planned(shop: Workshop, rate: float, sources: tuple[Params, ...], small: Any, grown: Any) -> jax.Array:
    """Forecast of the final loss of growing later: the sources are followed ahead, fused, and followed ahead."""
    settings = {"relinearisations": 8, "ratio": 1.7, "krylov": 12}
    then = tuple(bea.look_ahead(shop.loss, p, step_size=rate, steps=small, **settings).params for p in sources)
    return bea.look_ahead(
        shop.loss, shop.grow(then), step_size=rate, steps=grown, metric=shop.factors, **FORECASTS["look_ahead"]
    ).loss


def _greedy(shop: Workshop, rate: float, sources: tuple[Params, ...]) -> tuple[jax.Array, jax.Array]:
    """Predicted decrease of the grown loss per FLOP: a step of all sources, and one of the grown network."""
    grown, descent = shop.grow(sources), bea.gradient_field(shop.loss)
    small = shop.embed(tuple(jax.tree.map(lambda v: rate * v, descent(p)) for p in sources))
    step = jax.tree.map(lambda f, v: rate * f * v, shop.factors, descent(grown))
    decrease = functools.partial(bea.predicted_decrease, shop.loss, grown)
    return decrease(small) / shop.costs[0], decrease(step) / shop.costs[1]


def _costate(shop: Workshop, rate: float, run: int) -> dict[str, Any]:
    """The growth step by the switching function, and the loss that the run which follows it ends with."""
    last = shop.small_steps(1.0)
    evaluate = jax.jit(functools.partial(switching, shop, rate))
    states, final = {0: shop.start(run)}, {}

    def at(step: int) -> tuple[Params, ...]:
        before = max(s for s in states if s <= step)
        states[step] = tuple(shop.advance(p, step - before, rate, shop.ones) for p in states[before])
        return states[step]

    def one(step: int) -> bea.Switching:
        steps = shop.grown_steps(step / last)
        found = evaluate(at(step), float(steps))
        final[step] = float(found.final_loss)
        return found

    best = bea.optimal_growth_step(one, last, evaluations=7)
    step = last if best.step is None else best.step
    if step not in final:
        one(step)
    return {
        "step": step,
        "share": step / last,
        "final": final[step],
        "gradients": len(best.evaluated) * 4 * shop.problem.steps,
        "answered": best.step is not None,
    }


def switching(shop: Workshop, rate: float, sources: tuple[Params, ...], steps: Any) -> bea.Switching:
    """The switching function with a traced number of steps: a clock in the params stops the field."""
    descent = bea.gradient_field(shop.loss)

    def stopped(state: Params) -> Params:
        alive = jnp.where(state["clock"] * 1.0 < steps - 0.5, 1.0, 0.0)
        velocity = jax.tree.map(lambda f, v: alive * f * v, shop.factors, descent(state["net"]))
        return {"net": velocity, "clock": jnp.full_like(state["clock"], 1 / rate)}

    clock: Callable[[Params], Params] = lambda net: {"net": net, "clock": jnp.zeros(())}
    event = bea.GrowthEvent(
        embed=lambda small: clock(shop.event.embed(small)),
        transpose=lambda state: shop.event.transpose(state["net"]),
        pinv=lambda state: shop.event.pinv(state["net"]),
    )
    small = bea.Phase(lambda sources: tuple(descent(p) for p in sources), rate)
    grown = bea.Phase(stopped, rate, shop.problem.steps)
    offset = None if shop.offset is None else clock(shop.offset)
    return bea.switching_function(
        event, small, grown, lambda state: shop.loss(state["net"]), sources, costs=shop.costs, offset=offset
    )


def _scratch(shop: Workshop, rate: float, runs: int) -> dict[str, Any]:
    """Equal FLOPs: the large network from scratch, its rate tuned on two runs, and one small network."""
    steps, final = shop.problem.steps, lambda p: float(shop.loss(p))
    best, tuned = rate / shop.problem.rate, {}
    for kind, factors in (("factors", shop.factors), ("plain", shop.ones)):
        for share in (shop.problem.rate, *SCRATCH_RATES):
            ends = [final(shop.advance(shop.start_large(r), steps, share * best, factors)) for r in range(min(2, runs))]
            tuned[kind, share] = float(np.mean(ends)) if np.isfinite(ends).all() else float("inf")
    kind, share = min(tuned, key=lambda k: tuned[k])
    factors = shop.factors if kind == "factors" else shop.ones
    large = [final(shop.advance(shop.start_large(r), steps, share * best, factors)) for r in range(runs)]
    alone = round(steps * shop.costs[1] * shop.problem.sources / shop.costs[0])
    small = [final(shop.advance(shop.start(r)[0], alone, rate, shop.ones)) for r in range(runs)]
    return {
        "scratch_tuning": [[kind, share, loss] for (kind, share), loss in tuned.items()],
        "scratch_best": [kind, share],
        "scratch": large,
        "one_small": small,
    }
