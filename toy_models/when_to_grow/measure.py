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
from toy_models.when_to_grow.problems import SHARES, Params, Problem, Workshop

# shares of the budget, after a growth step, at which trial runs and the small networks are looked at
WINDOW = (0.0, 0.01, 0.02, 0.04)
# Learning rates of the arms of equal FLOPs, as shares of the small networks' best, and growth steps of the grown one.
ARM_RATES = (0.5, 2**-0.5, 1.0, 2**0.5, 2.0)
SCRATCH_RATES = (2**-0.5, 1.0, 2**0.5, 2.0, 2**1.5)
ARM_SHARES = (0.05, 0.2, 0.5)

# Later growth that is looked at from a growth step, as shares of the budget that is left; 1 is never.
LATER = (0.1, 0.25, 0.5, 0.75, 1.0)

FORECASTS: dict[str, dict[str, Any]] = {
    "look_ahead": {"relinearisations": 12, "ratio": 1.5, "krylov": 16},
    "gauss_newton": {"relinearisations": 12, "ratio": 1.5, "krylov": 16},
    "frozen": {"relinearisations": 1, "krylov": 32},
}
# Problems of as many steps or more charge an online rule's cost to its budget.
CHARGED = 20_000
# of plans: growth now and at every later step, from one look
PLANS: dict[str, dict[str, Any]] = {
    "plan": FORECASTS["look_ahead"],
    "short_plan": {"relinearisations": 6, "ratio": 2.0, "krylov": 8},
}


def measure(
    problem: Problem, runs: int, truth_runs: int, costate_runs: int, report: Callable[[str], None] = lambda what: None
) -> dict:
    """All records of a problem as plain lists, run first, growth step second.

    Rules are measured on the first ``runs`` initialisations, the truth (``final``) on ``truth_runs`` with these among them.
    """
    began = time.perf_counter()
    shop = Workshop(problem)
    report("rate")
    rate = shop.tuned_rate()
    record: dict[str, Any] = {"problem": dataclasses.asdict(problem), "rate": rate, "shares": list(SHARES)}
    record |= {"costs": list(shop.costs), "small_steps": [shop.small_steps(s) for s in SHARES]}
    record["steps_left"] = [shop.grown_steps(s) for s in SHARES]
    per_run: dict[str, list[Any]] = {}
    forecasters = _forecasters(shop, rate)
    greedy = jax.jit(functools.partial(_greedy, shop, rate))
    followers = {name: Follower(shop, rate, how) for name, how in PLANS.items()}
    for run in range(runs):
        report(f"run {run + 1} of {runs}")
        for name, value in _one_run(shop, rate, run, forecasters, greedy).items():
            per_run.setdefault(name, []).append(value)
        for name, follower in followers.items():
            per_run.setdefault(f"online_{name}", []).append(follower.run(run))
            if problem.steps >= CHARGED:
                per_run.setdefault(f"charged_{name}", []).append(follower.run(run, charge=True))
    for run in range(runs, truth_runs):
        report(f"truth, run {run + 1} of {truth_runs}")
        states = _small_run(shop, rate, run, SHARES)
        per_run["final"].append(_finals(shop, rate, [shop.grow(states[shop.small_steps(s)]) for s in SHARES]))
    for run in range(costate_runs):
        report(f"costate, run {run + 1} of {costate_runs}")
        per_run.setdefault("costate", []).append(_costate(shop, rate, run))
    report("arms of equal FLOPs")
    record |= per_run | _arms(shop, rate / problem.rate, runs)
    record["seconds"] = time.perf_counter() - began
    return record


def _small_run(shop: Workshop, rate: float, run: int, shares: Sequence[float]) -> dict[int, tuple[Params, ...]]:
    """The sources of a run at these shares of the budget, by their steps."""
    sources, done, states = shop.start(run), 0, {}
    for step in sorted({shop.small_steps(share) for share in shares}):
        sources = tuple(shop.advance(p, step - done, rate, shop.ones) for p in sources)
        states[step], done = sources, step
    return states


def _finals(shop: Workshop, rate: float, grown: list[Params]) -> list[float]:
    """The final losses of what was grown at ``SHARES``."""
    steps = jnp.asarray([shop.grown_steps(s) for s in SHARES])
    return shop.losses(shop.advance_grown(stack(grown), steps, rate, shop.factors)).tolist()


def stack(trees: Sequence[Params]) -> Params:
    """One tree of stacked leaves."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _forecasters(shop: Workshop, rate: float) -> dict[str, Callable[..., bea.LookAhead]]:
    made: dict[str, Callable[..., bea.LookAhead]] = {}
    for name, settings in FORECASTS.items():
        curvature = None if name == "look_ahead" else bea.gauss_newton(shop.predict, shop.output_loss)
        made[name] = jax.jit(
            lambda params, steps, settings=settings, curvature=curvature: bea.look_ahead(
                shop.loss, params, step_size=rate, steps=steps, metric=shop.factors, curvature=curvature, **settings
            )
        )
    return made


def _one_run(shop: Workshop, rate: float, run: int, forecasters: dict[str, Any], greedy: Any) -> dict[str, Any]:
    states = _small_run(shop, rate, run, [min(s + w, 1.0) for s in SHARES for w in WINDOW])
    loss = jax.jit(shop.loss)
    small_log = lambda share: float(np.mean([np.log(float(loss(p))) for p in states[shop.small_steps(share)]]))
    grown = [shop.grow(states[shop.small_steps(s)]) for s in SHARES]
    steps, stacked, losses = [shop.grown_steps(s) for s in SHARES], stack(grown), shop.losses
    found: dict[str, Any] = {"small_log": [[small_log(min(s + w, 1.0)) for w in WINDOW] for s in SHARES]}
    found["final"] = _finals(shop, rate, grown)
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
    found["greedy"] = [[float(v) for v in greedy(states[shop.small_steps(s)])] for s in SHARES]
    return found


class Follower:
    """Runs that follow ``bea.online_growth_step``: not on the grid, but to where the rule says, and from there to the end."""

    def __init__(self, shop: Workshop, rate: float, settings: dict[str, Any]) -> None:
        self.shop, self.rate = shop, rate
        sources, cost = shop.problem.sources, {}

        def look(small: tuple[Params, ...], stretches: Any, left: Any) -> jax.Array:
            found = bea.forecast_growth(
                [shop.loss] * sources,
                shop.loss,
                small,
                shop.grow,
                step_sizes=(rate, rate),
                small_steps=stretches,
                grown_steps=left,
                metrics=(None, shop.factors),
                **settings,
            )
            # the rule's cost in gradients of the grown network
            cost["look"] = found.grown_gradients + found.small_gradients * shop.costs[0] / sources / shop.costs[1]
            return found.losses

        count = len(LATER)
        shapes = jnp.zeros(count), jnp.zeros(count + 1)
        self.look = jax.jit(look).lower(shop.start(0), *shapes).compile()
        self.look_gradients = cost["look"]

    def run(self, run: int, charge: bool = False) -> dict[str, Any]:
        """One run. ``charge``: within the rule's limit of cost, which the rest of the budget pays; else looks are free."""
        shop, rate, last = self.shop, self.rate, self.shop.small_steps(1.0)
        trial = WINDOW[-1] * shop.problem.steps
        budget = float(shop.problem.steps) if charge else 1e9
        state = bea.start_online(
            last, run_gradients=budget, forecast_gradients=self.look_gradients, trial_gradients=trial
        )
        sources, step, looks, trials, spent, decision = shop.start(run), 0, 0, 0, 0.0, None
        while step < last:
            there = min(max(state.next_look, step + (decision is not None)), last)
            sources = tuple(shop.advance(p, there - step, rate, shop.ones) for p in sources)
            step = there
            if step == last:
                break
            told: dict[str, Any] = {}
            if state.method == "look_ahead":
                looks, spent = looks + 1, spent + self.look_gradients
                told["forecast"] = self._forecast(sources, step, last)
            elif state.method == "slopes":
                told["rates"] = self._trial(sources, step)
            state, decision = bea.online_growth_step(state, step, **told)
            if decision.step is not None:
                break
            if "rates" in told:
                trials, spent = trials + 1, spent + trial
        left = max(0, round((1 - step / last) * shop.problem.steps - (spent if charge else 0.0)))
        end = shop.advance(shop.grow(sources), left, rate, shop.factors)
        return {
            "step": step,
            "share": step / last,
            "final": float(shop.loss(end)),
            "method": state.method if decision is None else decision.method,
            "looks": looks,
            "lost_trials": trials,
            "gradients": spent,
            "reason": "" if decision is None else decision.reason,
        }

    def _forecast(self, sources: tuple[Params, ...], step: int, last: int) -> bea.Forecast:
        later = sorted({step + max(1, round(part * (last - step))) for part in LATER})
        later += [last] * (len(LATER) - len(later))
        left = [(1 - at / last) * self.shop.problem.steps for at in (step, *later)]
        stretches = np.diff([step, *later])
        losses = np.asarray(self.look(sources, jnp.asarray(stretches, jnp.float32), jnp.round(jnp.asarray(left))))
        plan = tuple((at, (float(loss),)) for at, loss in zip(later, losses[1:], strict=True))
        return bea.Forecast(step, (float(losses[0]),), later=plan)

    def _trial(self, sources: tuple[Params, ...], step: int) -> tuple[list[float], list[float]]:
        """Decrease of log loss of both over the second half of a trial, at equal FLOPs."""
        shop, grown, logs = self.shop, self.shop.grow(sources), []
        for share in WINDOW[-2:]:
            steps = max(1, round(share * shop.problem.steps))
            end = shop.advance(grown, steps, self.rate, shop.factors)
            small = [shop.advance(p, shop.small_steps(share), self.rate, shop.ones) for p in sources]
            logs.append((np.mean([np.log(float(shop.loss(p))) for p in small]), np.log(float(shop.loss(end)))))
        (small_half, grown_half), (small_end, grown_end) = logs
        return [float(small_half - small_end)], [float(grown_half - grown_end)]


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


def _arms(shop: Workshop, best: float, runs: int) -> dict[str, Any]:
    """Final losses at equal FLOPs, each arm at the best of five rates (two runs decide): the large network from
    scratch, with and without width factors; grown at one of ``ARM_SHARES``; never grown; one small network."""
    steps, last = shop.problem.steps, shop.small_steps(1.0)
    alone = round(steps * shop.costs[1] * shop.problem.sources / shop.costs[0])
    final = lambda params: float(shop.loss(params))

    def scratch(run: int, kind: str, share: float) -> float:
        factors = shop.factors if kind == "factors" else shop.ones
        return final(shop.advance(shop.start_large(run), steps, share * best, factors))

    def grown(run: int, at: float, share: float) -> float:
        sources = tuple(shop.advance(p, shop.small_steps(at), share * best, shop.ones) for p in shop.start(run))
        return final(shop.advance(shop.grow(sources), shop.grown_steps(at), share * best, shop.factors))

    def one_small(run: int, _: Any, share: float) -> float:
        return final(shop.advance(shop.start(run)[0], alone, share * best, shop.ones))

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
