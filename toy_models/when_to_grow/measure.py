"""What is measured on one problem: the truth over growth steps, forecasts, slopes, and the arms of equal FLOPs.

Rules only read these records (``toy_models.when_to_grow.rules``), so that a rule can be judged again without training again.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bea
from toy_models.when_to_grow import derivative
from toy_models.when_to_grow.follower import Follower
from toy_models.when_to_grow.problems import SHARES, Params, PreparedProblem, Problem

# shares of the budget, after a growth step, at which trial runs and the small networks are looked at
WINDOW = (0.0, 0.01, 0.02, 0.04)
# Learning rates of the arms of equal FLOPs, as shares of the small networks' best, and growth steps of the grown one.
ARM_RATES = (0.5, 2**-0.5, 1.0, 2**0.5, 2.0)
SCRATCH_RATES = (2**-0.5, 1.0, 2**0.5, 2.0, 2**1.5)
ARM_SHARES = (0.05, 0.2, 0.5)

FORECASTS: dict[str, dict[str, Any]] = {
    "look_ahead": {"relinearisations": 12, "ratio": 1.5, "krylov": 16},
    "gauss_newton": {"relinearisations": 12, "ratio": 1.5, "krylov": 16},
    "frozen": {"relinearisations": 1, "krylov": 32},
}
# Problems of as many steps or more charge the forecast rule's cost to its budget.
CHARGED = 20_000
# of looks at growth now and at every later step
LOOKS: dict[str, dict[str, Any]] = {
    "full": FORECASTS["look_ahead"],
    "short": {"relinearisations": 6, "ratio": 2.0, "krylov": 8},
}


def measure_problem(
    problem: Problem, runs: int, truth_runs: int, costate_runs: int, report: Callable[[str], None] = lambda what: None
) -> dict:
    """Measure a problem; return the records as plain lists, run first, growth step second.

    Rules are measured on the first ``runs`` initialisations, the truth (``final``) on ``truth_runs`` with these among them.
    """
    began = time.perf_counter()
    prepared = PreparedProblem(problem)
    report("rate")
    rate = prepared.tuned_rate()
    record: dict[str, Any] = {"problem": dataclasses.asdict(problem), "rate": rate, "shares": list(SHARES)}
    record |= {"costs": list(prepared.costs), "small_steps": [prepared.small_steps(s) for s in SHARES]}
    record["steps_left"] = [prepared.grown_steps(s) for s in SHARES]
    per_run: dict[str, list[Any]] = {}
    forecasters = _forecasters(prepared, rate)
    greedy = jax.jit(functools.partial(_greedy, prepared, rate))
    followers = {name: Follower(prepared, rate, how) for name, how in LOOKS.items()}
    for run in range(runs):
        report(f"run {run + 1} of {runs}")
        for name, value in _one_run(prepared, rate, run, forecasters, greedy).items():
            per_run.setdefault(name, []).append(value)
        for name, follower in followers.items():
            per_run.setdefault(f"followed_{name}", []).append(follower.run(run))
            if problem.steps >= CHARGED:
                per_run.setdefault(f"charged_{name}", []).append(follower.run(run, charge=True))
    for run in range(runs, truth_runs):
        report(f"truth, run {run + 1} of {truth_runs}")
        states = _small_run(prepared, rate, run, SHARES)
        per_run["final"].append(
            _finals(prepared, rate, [prepared.grow(states[prepared.small_steps(s)]) for s in SHARES])
        )
    for run in range(costate_runs):
        report(f"costate, run {run + 1} of {costate_runs}")
        per_run.setdefault("costate", []).append(_costate(prepared, rate, run))
    report("arms of equal FLOPs")
    record |= per_run | _arms(prepared, rate / problem.rate, runs)
    record["seconds"] = time.perf_counter() - began
    return record


def _small_run(
    prepared: PreparedProblem, rate: float, run: int, shares: Sequence[float]
) -> dict[int, tuple[Params, ...]]:
    """Return the sources of a run at these shares of the budget, by their steps."""
    sources, done, states = prepared.start(run), 0, {}
    for step in sorted({prepared.small_steps(share) for share in shares}):
        sources = tuple(prepared.advance(p, step - done, rate, prepared.ones) for p in sources)
        states[step], done = sources, step
    return states


def _finals(prepared: PreparedProblem, rate: float, grown: list[Params]) -> list[float]:
    """Return the final losses of what was grown at ``SHARES``."""
    steps = jnp.asarray([prepared.grown_steps(s) for s in SHARES])
    return prepared.losses(prepared.advance_grown(stack(grown), steps, rate, prepared.factors)).tolist()


def stack(trees: Sequence[Params]) -> Params:
    """Return one tree of stacked leaves."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _forecasters(prepared: PreparedProblem, rate: float) -> dict[str, Callable[..., bea.LookAhead]]:
    made: dict[str, Callable[..., bea.LookAhead]] = {}
    for name, settings in FORECASTS.items():
        curvature = None if name == "look_ahead" else bea.gauss_newton(prepared.predict, prepared.output_loss)
        made[name] = jax.jit(
            lambda params, steps, settings=settings, curvature=curvature: bea.look_ahead(
                prepared.loss,
                params,
                step_size=rate,
                steps=steps,
                metric=prepared.factors,
                curvature=curvature,
                **settings,
            )
        )
    return made


def _one_run(
    prepared: PreparedProblem, rate: float, run: int, forecasters: dict[str, Any], greedy: Any
) -> dict[str, Any]:
    states = _small_run(prepared, rate, run, [min(s + w, 1.0) for s in SHARES for w in WINDOW])
    loss = jax.jit(prepared.loss)
    small_log = lambda share: float(np.mean([np.log(float(loss(p))) for p in states[prepared.small_steps(share)]]))
    grown = [prepared.grow(states[prepared.small_steps(s)]) for s in SHARES]
    steps, stacked, losses = [prepared.grown_steps(s) for s in SHARES], stack(grown), prepared.losses
    found: dict[str, Any] = {"small_log": [[small_log(min(s + w, 1.0)) for w in WINDOW] for s in SHARES]}
    found["final"] = _finals(prepared, rate, grown)
    trial, trials, done = stacked, [losses(stacked)], 0
    for share in WINDOW[1:]:
        step = max(1, round(share * prepared.problem.steps))
        trial = prepared.advance_grown(trial, jnp.full(len(SHARES), step - done), rate, prepared.factors)
        trials.append(losses(trial))
        done = step
    found["trial_log"] = np.log(np.asarray(trials).T).tolist()
    for name, forecast in forecasters.items():
        results = [forecast(p, float(n)) for p, n in zip(grown, steps, strict=True)]
        found[name] = [float(r.loss) for r in results]
        found[f"{name}_uncertainty"] = [float(r.uncertainty) for r in results]
    found["greedy"] = [[float(v) for v in greedy(states[prepared.small_steps(s)])] for s in SHARES]
    return found


def _greedy(prepared: PreparedProblem, rate: float, sources: tuple[Params, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the predicted decrease of the grown loss per FLOP: a step of all sources, and one of the grown network."""
    grown, descent = prepared.grow(sources), bea.gradient_field(prepared.loss)
    small = prepared.embed(tuple(jax.tree.map(lambda v: rate * v, descent(p)) for p in sources))
    step = jax.tree.map(lambda f, v: rate * f * v, prepared.factors, descent(grown))
    decrease = functools.partial(bea.predicted_decrease, prepared.loss, grown)
    return decrease(small) / prepared.costs[0], decrease(step) / prepared.costs[1]


def _costate(prepared: PreparedProblem, rate: float, run: int) -> dict[str, Any]:
    """Return the growth step by the switching function, and the loss that the run which follows it ends with."""
    last = prepared.small_steps(1.0)
    evaluate = jax.jit(functools.partial(switching, prepared, rate))
    states, final = {0: prepared.start(run)}, {}

    def at(step: int) -> tuple[Params, ...]:
        before = max(s for s in states if s <= step)
        states[step] = tuple(prepared.advance(p, step - before, rate, prepared.ones) for p in states[before])
        return states[step]

    def one(step: int) -> bea.Switching:
        steps = prepared.grown_steps(step / last)
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
        "gradients": len(best.evaluated) * 4 * prepared.problem.steps,
        "answered": best.step is not None,
    }


def switching(prepared: PreparedProblem, rate: float, sources: tuple[Params, ...], steps: Any) -> bea.Switching:
    """Return the switching function of a problem with a traced number of grown steps."""
    descent = bea.gradient_field(prepared.loss)
    return derivative.switching(
        prepared.event,
        lambda sources: tuple(descent(p) for p in sources),
        lambda params: jax.tree.map(lambda f, v: f * v, prepared.factors, descent(params)),
        prepared.loss,
        sources,
        step_size=rate,
        steps=steps,
        most=prepared.problem.steps,
        costs=prepared.costs,
        offset=prepared.offset,
    )


def _arms(prepared: PreparedProblem, best: float, runs: int) -> dict[str, Any]:
    """Return final losses at equal FLOPs, each arm at the best of five rates (two runs decide): the large network from
    scratch, with and without width factors; grown at one of ``ARM_SHARES``; never grown; one small network."""
    steps, last = prepared.problem.steps, prepared.small_steps(1.0)
    alone = round(steps * prepared.costs[1] * prepared.problem.sources / prepared.costs[0])
    final = lambda params: float(prepared.loss(params))

    def scratch(run: int, kind: str, share: float) -> float:
        factors = prepared.factors if kind == "factors" else prepared.ones
        return final(prepared.advance(prepared.start_large(run), steps, share * best, factors))

    def grown(run: int, at: float, share: float) -> float:
        sources = tuple(
            prepared.advance(p, prepared.small_steps(at), share * best, prepared.ones) for p in prepared.start(run)
        )
        return final(prepared.advance(prepared.grow(sources), prepared.grown_steps(at), share * best, prepared.factors))

    def one_small(run: int, _: Any, share: float) -> float:
        return final(prepared.advance(prepared.start(run)[0], alone, share * best, prepared.ones))

    arms: dict[str, tuple[Callable[..., float], tuple[Any, ...]]] = {
        "scratch": (scratch, ("factors", "plain")),
        "grown": (grown, ARM_SHARES),
        "never": (grown, (1.0,)),
        "one_small": (one_small, (last,)),
    }
    found: dict[str, Any] = {}
    for arm, (train, kinds) in arms.items():
        tuned = []
        for kind in kinds:
            for share in SCRATCH_RATES if arm == "scratch" else ARM_RATES:
                ends = [train(run, kind, share) for run in range(min(2, runs))]
                tuned.append((float(np.mean(ends)) if np.isfinite(ends).all() else float("inf"), kind, share))
        _, kind, share = min(tuned, key=lambda one: one[0])
        found[f"{arm}_arm"] = [train(run, kind, share) for run in range(runs)]
        found[f"{arm}_arm_tuning"] = [[kind, share, loss] for loss, kind, share in tuned]
        found[f"{arm}_arm_best"] = [kind, share]
    return found
