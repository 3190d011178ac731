"""Planning a growth: what theory says, at a point of a run, of training on small against growing now.

``OnlineGrowth`` decides while a run trains, by trials of growth; ``GrowthMeter`` and ``plan_growth`` have the terms along
the run and what the greedy rule makes of them. The one module of ``fusion_core`` that uses ``bea``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import bea
from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.growth.linear import FusionMap, Params
from fusion_core.train.optimizer import fuse_states, preconditioner
from fusion_core.train.step import Batch, TrainState, displacement

# (params, batch) -> mean loss
MeanLoss = Callable[[Params, Batch], Array]

# Steps and rates come from a quadratic model of the loss; further than this from where it was measured, it is not to
# be trusted.
TRUST = 4.0
WINDOW = 3  # records in the medians that decide


@dataclasses.dataclass(frozen=True)
class Network:
    """What theory needs to know of a network: its loss, its optimizer, and what a training step costs.

    Attributes:
      loss: mean loss of params on a batch.
      optimizer: the one that trains it.
      step_flops: FLOPs of one training step.
    """

    loss: MeanLoss
    optimizer: optax.GradientTransformation
    step_flops: float


class GrowthMeter:
    r"""Theory's terms for sources that may be fused now, estimated over pairs of batches.

    The optimizer is frozen at the event: a source's field is ``fᵢ = −Mᵢ ∇Lᵢ``, the grown network's ``f_2 = −M_2 ∇L``,
    each with its own preconditioner (learning rate included), the grown one from the fused optimizer state and the
    sources' rates times ``factors``. A pair's first batch gives the updates, the second the losses, gradients and curvatures.

    A pair costs 3 gradients and 2 Hessian-vector products of every source, and 4 and 3 of the grown network.
    Source: theory.md, sections 1, 3 and 4.
    """

    def __init__(self, small: Network, grown: Network, mapping: FusionMap, factors: Params) -> None:
        self._small, self._grown, self._mapping = small, grown, mapping
        event = bea.GrowthEvent(embed=mapping.embed, transpose=mapping.transpose, pinv=mapping.pinv)

        def alone(network: Network) -> Callable[..., tuple[dict[str, Array], Params, Params]]:
            """One network's own terms, its update and its preconditioner."""

            def terms(state: TrainState, update: Batch, probe: Batch) -> tuple[Any, Params, Params]:
                on_probe = lambda p: network.loss(p, probe)
                params = state.params
                grads = jax.grad(lambda p: network.loss(p, update))(params)
                move, _ = displacement(network.optimizer, grads, state)
                metric = preconditioner(network.optimizer, grads, state.opt_state, params)
                metric = jax.tree.map(jnp.multiply, state.rates, metric)
                loss, slope = jax.value_and_grad(on_probe)(params)
                model = bea.quadratic_model(on_probe, params, move)
                values = {
                    "loss": loss,
                    "gradient_norm": optax.tree.norm(slope),
                    "modified_loss": bea.modified_loss(on_probe, 1.0, metric=metric)(params),
                    "decrease_per_flop": model.decrease() / network.step_flops,
                    "slope": model.slope,
                    "curvature": model.curvature,
                }
                return values, move, metric

            return jax.jit(terms)

        def preconditioned(loss: Callable[[Params], Array], metric: Params) -> bea.Field:
            descent = bea.gradient_field(loss)
            return lambda params: jax.tree.map(jnp.multiply, metric, descent(params))

        def together(
            fused: Params, moves: tuple[Params, ...], metrics: tuple[Params, ...], grown_metric: Params, probe: Batch
        ) -> dict[str, Array]:
            """The terms in which the small phase is seen from the grown space."""
            fields = [preconditioned(lambda p: small.loss(p, probe), metric) for metric in metrics]
            sources_field = lambda sources: tuple(f(p) for f, p in zip(fields, sources, strict=True))
            grown_loss = lambda p: grown.loss(p, probe)
            grown_field = preconditioned(grown_loss, grown_metric)
            model = bea.quadratic_model(grown_loss, fused, mapping.embed(moves))
            return {
                # the step sizes are inside the preconditioners
                "conflict": event.loss_conflict(sources_field, grown_field, grown_loss, 1.0, 1.0, fused),
                "slope": model.slope,
                "curvature": model.curvature,
            }

        self._small_terms, self._grown_terms, self._together = alone(small), alone(grown), jax.jit(together)
        self._fuse = jax.jit(lambda states: fuse_states(mapping, states, factors))

    def measure(
        self, states: Sequence[TrainState], updates: Sequence[Batch], probes: Sequence[Batch]
    ) -> dict[str, float]:
        r"""The terms at the sources' present states, means over the pairs, each with its standard error ``<name>_se``.

        Args:
          states: of the sources.
          updates, probes: equally many batches, at least 2.

        Raises:
          InputError: there are fewer, or not equally many.

        Returns:
          * for ``a``, ``b``, ... (the sources) and ``fused``: ``loss_*``; ``gradient_norm_*``; ``modified_loss_*``,
            that is ``L + ¼ ⟨∇L, M ∇L⟩``; ``decrease_per_flop_*``, that is ``−(⟨g, Δ⟩ + ½ ΔᵀHΔ)`` of a step at the
            present learning rate, over its FLOPs;
          * ``step_factor_small``, ``step_factor_grown``: h*/h, by which a step of all sources, ``J(Δ_a, Δ_b, ...)``, and
            one of the grown network should be longer to lower the quadratic model of the grown loss most;
          * ``small_rate``, ``grown_rate``: decrease of the grown loss per FLOP by these two steps at their best length;
          * ``conflict``: ``½ ⟨∇L, [f_1, f_2]⟩`` with f_1 the small phase pushed into the grown space: the change of the
            grown loss by the bracket term of one small and one grown step.

        Factors, and the rates at them, come from the mean slope and curvature: a ratio of means, not a mean of ratios.
        """
        if len(updates) != len(probes) or len(updates) < 2:
            raise InputError(
                f"{len(updates)} update and {len(probes)} probe batches; standard errors need equally many, at least 2"
            )
        samples: dict[str, list[float]] = {}
        models: dict[str, list[tuple[float, float]]] = {"small": [], "grown": []}
        fused = self._fuse(tuple(states))
        for update, probe in zip(updates, probes, strict=True):
            measured = [self._small_terms(state, update, probe) for state in states]
            measured.append(self._grown_terms(fused, update, probe))
            names = ["abcdefgh"[i] for i in range(len(states))] + ["fused"]
            *_, grown_metric = measured[-1]
            joint = self._together(
                fused.params,
                tuple(m[1] for m in measured[:-1]),
                tuple(m[2] for m in measured[:-1]),
                grown_metric,
                probe,
            )
            for name, (values, _, _) in zip(names, measured, strict=True):
                for term in ("loss", "gradient_norm", "modified_loss", "decrease_per_flop"):
                    samples.setdefault(f"{term}_{name}", []).append(float(values[term]))
            samples.setdefault("conflict", []).append(float(joint["conflict"]))
            models["small"].append((float(joint["slope"]), float(joint["curvature"])))
            models["grown"].append((float(measured[-1][0]["slope"]), float(measured[-1][0]["curvature"])))

        n = len(samples["conflict"])
        result = {}
        for name, drawn in samples.items():
            result[name] = statistics.fmean(drawn)
            result[f"{name}_se"] = statistics.stdev(drawn) / math.sqrt(n)
        flops = {"small": len(states) * self._small.step_flops, "grown": self._grown.step_flops}
        for name, pairs in models.items():
            best = [_best_step(pairs[:i] + pairs[i + 1 :]) for i in range(n)]  # jackknife
            factor, decrease = _best_step(pairs)
            result[f"step_factor_{name}"], result[f"{name}_rate"] = factor, decrease / flops[name]
            for key, index, unit in (("step_factor_" + name, 0, 1.0), (name + "_rate", 1, flops[name])):
                centre = statistics.fmean(b[index] for b in best)
                spread = sum((b[index] - centre) ** 2 for b in best)
                result[f"{key}_se"] = math.sqrt((n - 1) / n * spread) / unit
        return result


def _best_step(models: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(h*, decrease at h*) of the mean of quadratic models (slope, curvature), h* at most ``TRUST``."""
    slope, curvature = (statistics.fmean(column) for column in zip(*models, strict=True))
    model = bea.QuadraticModel(jnp.asarray(slope), jnp.asarray(curvature))
    step = min(float(model.best_step_size()), TRUST)
    return step, float(model.decrease(step))


@dataclasses.dataclass(frozen=True)
class GrowthPlan:
    """When to grow and how to go on.

    Attributes:
      step: small steps before the growth; None: not within this budget.
      learning_rate: of the grown network, in the optimizer's unit, where its factor is 1; None where step is None.
      factors: on that rate, by the name of the array; those of 1 are left out.
      reason: sentences that say how these were obtained, with the numbers.
      rule: the rule's name.
    """

    step: int | None
    learning_rate: float | None
    factors: dict[str, float]
    reason: str
    rule: str

    def save(self, path: pathlib.Path) -> None:
        """Writes the plan as JSON."""
        atomic.write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: pathlib.Path) -> GrowthPlan:
        """Reads a plan. Raises InputError where the file is missing or not a plan."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{path} is no growth plan ({error}); let the run write it again") from None


def factors_by_name(factors: Params) -> dict[str, float]:
    """The factors that are not 1, by the name of the array: ``q``, ``wi``, ``lm_head``, ...; in a list its whole path."""
    named = {}
    for path, factor in jax.tree_util.tree_flatten_with_path(factors)[0]:
        if abs(factor - 1) > 1e-9:
            parent = getattr(path[-2], "key", None) or jax.tree_util.keystr(path, simple=True, separator=".")
            named[parent] = round(factor, 6)
    return named


def plan_growth(records: Sequence[Mapping[str, Any]], learning_rate: float, factors: Params) -> GrowthPlan:
    """The greedy rule on the records so far: grow where the grown network's decrease per FLOP passes the small ones'.

    Both rates are taken at their best step, since at the rate that suits a long run a single step of a minibatch
    hardly lowers the loss, or raises it. The learning rate after the event is the sources' times the factors with which
    the function goes on at its velocity (``fusion_core.rate_factors``; theory.md, section 5). The greedy best step h* is
    reported beside it and not followed: it looks one step ahead (docs/demo.md has the measurements).

    Args:
      records: of ``GrowthMeter``, in order, each with its ``step``.
      learning_rate: of the sources, which the records were measured at.
      factors: on it after the event, which the records were measured with.
    """
    decision = bea.greedy_growth_step(
        [int(r["step"]) for r in records],
        [r["small_rate"] for r in records],
        [r["grown_rate"] for r in records],
        window=WINDOW,
    )
    if decision.step is None:
        return GrowthPlan(None, None, {}, decision.reason, "greedy")
    last = [r for r in records if r["step"] <= decision.step][-WINDOW:]
    small, grown = (statistics.median(r[f"step_factor_{name}"] for r in last) for name in ("small", "grown"))
    reason = (
        f"{decision.reason} {_rate_sentence(learning_rate, factors)} The step that lowers the grown loss most at once is "
        f"{grown:.3g} times that ({small:.3g} before the event; medians over {len(last)} records)."
    )
    return GrowthPlan(decision.step, learning_rate, factors_by_name(factors), reason, "greedy")


def _rate_sentence(learning_rate: float, factors: Params) -> str:
    named = factors_by_name(factors)
    grouped = {value: ", ".join(n for n, v in named.items() if v == value) for value in named.values()}
    shown = " and ".join(f"{factor:.3g} in {names}" for factor, names in grouped.items())
    return (
        f"Learning rate after it: {learning_rate:.3g} as before{', times ' if shown else ''}{shown}, with which the function "
        "goes on at its velocity."
    )


# The rule that decides while the run trains


class Trial(NamedTuple):
    """What a trial of growing at a step trains, as steps to train to; both are measured at ``*_half`` and ``*_end``.

    The sources train on for the trial's FLOPs, as they would anyway; the grown network starts at ``step``, fused from them.
    """

    step: int
    small_half: int
    small_end: int
    grown_half: int
    grown_end: int


@dataclasses.dataclass(frozen=True)
class OnlineGrowth:
    """When to grow, decided while a run trains: the state of ``bea.online_growth_step`` with what a trial is and costs.

    A value: ``ask`` returns the next one. The caller trains, so that it can be interrupted anywhere::

        growth = OnlineGrowth.start(...)
        while growth.next_look is not None:
            look = growth.next_look
            if (trial := growth.trial) is None:
                growth = growth.ask(look)                  # the sources stand at look
            else:                                          # train both to the trial's steps, then
                growth = growth.ask(look, small=small, grown=grown)
            growth.save(path)
        growth.step                                        # None: not within this budget

    A trial that wins is kept, the grown network goes on from it; one that loses costs ``trial_gradients``, and
    ``lost_flops`` is to be taken off what is left after growing. Forecasts (the ``"look_ahead"`` of ``bea``) are priced,
    so that the reason says what one would cost, and never asked for: they follow one minibatch, and do not hold over runs
    that go on seeing other text. Source: theory.md, section 6.

    Attributes:
      state: of the rule.
      sources: how many.
      small_flops, grown_flops: of a training step of one source, and of the grown network.
      total_flops: the budget.
      trial_steps: of the grown network, in a trial.
      trial_gradients: cost of a lost trial, its evaluations included, in gradients of the grown network.
      dispatch: all steps are multiples of it.
      why: what was chosen at the start, within which cost.
      decisions: so far.
      trials: where there were trials.
      done: it is decided: to grow, or that the budget is over.
    """

    state: bea.OnlineState
    sources: int
    small_flops: float
    grown_flops: float
    total_flops: float
    trial_steps: int
    trial_gradients: float
    dispatch: int
    why: str
    decisions: tuple[bea.OnlineDecision, ...] = ()
    trials: tuple[int, ...] = ()
    done: bool = False

    @classmethod
    def start(
        cls,
        *,
        sources: int,
        small_flops: float,
        grown_flops: float,
        total_flops: float,
        batches: int,
        dispatch: int = 1,
        trial_share: float = 0.04,
        cost_limit: float = 0.05,
    ) -> OnlineGrowth:
        """Before the first step.

        Args:
          sources, small_flops, grown_flops, total_flops, dispatch: see the class.
          batches: fresh ones that a look is measured on, at least 2.
          trial_share: of the budget, for the grown network of a trial; rounded to two dispatches, one at least for each half.
          cost_limit: share of the budget that lost trials may cost.

        Raises:
          InputError: a count is too small, FLOPs are not positive and finite, the budget pays for no dispatch, or
            trial_share is not between 0 and 1.
          ValueError: cost_limit is not between 0 and 1.
        """
        for name, count, least in (("sources", sources, 1), ("batches", batches, 2), ("dispatch", dispatch, 1)):
            if count < least:
                raise InputError(f"{name} is {count}; it must be at least {least}")
        for name, flops in (("small", small_flops), ("grown", grown_flops), ("total", total_flops)):
            if not (math.isfinite(flops) and flops > 0):
                raise InputError(f"{name}_flops is {flops}; FLOPs are positive and finite")
        if not 0 < trial_share < 1:
            raise InputError(f"the trial's share of the budget is {trial_share}; it must lie between 0 and 1")
        last_step = int(total_flops / (sources * small_flops)) // dispatch * dispatch
        if last_step < 1:
            raise InputError(f"a budget of {total_flops:.3g} FLOPs pays for no dispatch of {dispatch} small steps")
        run_gradients = total_flops / grown_flops
        trial_steps = max(1, round(trial_share * run_gradients / (2 * dispatch))) * 2 * dispatch
        # both networks at both times, forward only, which is a third of a gradient
        evaluation = 2 * batches * (1 + sources * small_flops / grown_flops) / 3
        state = bea.start_online(
            last_step,
            run_gradients=run_gradients,
            forecast_gradients=look_gradients(sources, small_flops / grown_flops, batches),
            trial_gradients=trial_steps + evaluation,
            cost_limit=cost_limit,
        )
        if state.method == "look_ahead":
            share = (trial_steps + evaluation) / run_gradients
            paid = f"a lost trial costs {share:.1%}, {state.trials} at most, within the limit of {cost_limit:.1%} of the run"
            state = dataclasses.replace(
                state,
                method="slopes" if state.trials else "fixed",
                why=f"forecasts from a minibatch do not hold over such a run; {paid}",
                looks=state.trials,
                next_look=state.fixed_step,
            )
        growth = cls(
            state,
            sources,
            small_flops,
            grown_flops,
            total_flops,
            trial_steps,
            trial_steps + evaluation,
            dispatch,
            state.why,
        )
        if (trial := growth.trial) is not None and not growth._fits(trial):
            state = dataclasses.replace(state, method="fixed", why=f"{state.why}, but none fits into what is left")
            return dataclasses.replace(growth, state=state)
        return growth

    @property
    def next_look(self) -> int | None:
        """The small step at which to ask next; None once it is decided."""
        if self.done:
            return None
        # after a trial the sources stand at its end
        stand = self.trial_at(self.trials[-1]).small_end if self.trials else 0
        return self._grid(max(self.state.fixed_step if self.state.method == "fixed" else self.state.next_look, stand))

    @property
    def trial(self) -> Trial | None:
        """The trial that is wanted at ``next_look``; None: it can be asked without one."""
        look = self.next_look
        return None if look is None or self.state.method == "fixed" else self.trial_at(look)

    def trial_at(self, step: int) -> Trial:
        """A trial of growing at this step."""
        half = self.trial_steps // 2
        per_half = half * self.grown_flops / (self.sources * self.small_flops)
        small = max(1, round(per_half / self.dispatch)) * self.dispatch
        return Trial(step, step + small, step + 2 * small, step + half, step + 2 * half)

    @property
    def step(self) -> int | None:
        """The small step at which to grow; None: not yet, and with ``next_look`` None not within this budget."""
        return self.decisions[-1].step if self.decisions else None

    @property
    def kept(self) -> Trial | None:
        """The trial that won: the grown network goes on from its end."""
        return self.trial_at(self.step) if self.step is not None and self.step in self.trials else None

    @property
    def lost_trials(self) -> tuple[int, ...]:
        """Where there were trials that lost."""
        return tuple(step for step in self.trials if step != self.step)

    @property
    def lost_flops(self) -> float:
        """What the lost trials cost."""
        return len(self.lost_trials) * self.trial_gradients * self.grown_flops

    def ask(
        self,
        step: int,
        *,
        small: Float[np.ndarray, "2 sources batches"] | None = None,
        grown: Float[np.ndarray, "2 batches"] | None = None,
    ) -> OnlineGrowth:
        r"""Tell the rule of the trial at this step, if it wants one; ``decisions[-1]`` is its answer.

        The rates it compares are, for each batch, ``(log L(half) − log L(end)) / FLOPs`` over the second half of the trial,
        the sources' log losses averaged.

        Args:
          step: ``next_look``.
          small, grown: mean losses on fresh batches, first at the trial's half, then at its end; the same batches for all,
            neither those of any update nor of the validation that judges the run. None where ``trial`` is None.

        Raises:
          InputError: it is not the step to ask at, or the losses are missing, not wanted, of other shapes, or not positive
            and finite.
        """
        if step != self.next_look:
            raise InputError(f"the rule wants to be asked at step {self.next_look}, not at {step}")
        trial, rates = self.trial, None
        if (small is None) != (trial is None) or (grown is None) != (trial is None):
            raise InputError(
                f"at step {step} the rule wants {'no losses' if trial is None else 'the losses of a trial'}"
            )
        if trial is not None and small is not None and grown is not None:
            rates = self._rates(trial, small, grown)
        state, decision = bea.online_growth_step(self.state, step, rates=rates)
        trials = self.trials if trial is None else (*self.trials, step)
        done = decision.step is not None or step == state.last_step
        told = dataclasses.replace(self, state=state, decisions=(*self.decisions, decision), trials=trials, done=done)
        if (trial := told.trial) is not None and not told._fits(trial):
            why = f"the trial at step {step} was lost, and no later trial fits into what is left"
            state = dataclasses.replace(state, method="fixed", why=why, fixed_step=state.last_step)
            told = dataclasses.replace(told, state=state)
        return told

    def plan(self, learning_rate: float, factors: Params) -> GrowthPlan:
        """What was decided, with the learning rate after the event: the sources' times the factors of ``rate_factors``."""
        reason = self.decisions[-1].reason if self.decisions else "Nothing is decided yet."
        if self.why not in reason:
            reason = f"{reason} What could be paid: {self.why}."
        if self.step is None:
            return GrowthPlan(None, None, {}, reason, "online")
        reason = f"{reason} {_rate_sentence(learning_rate, factors)}"
        return GrowthPlan(self.step, learning_rate, factors_by_name(factors), reason, "online")

    def save(self, path: pathlib.Path) -> None:
        """Writes it as JSON."""
        fields = dataclasses.asdict(self)
        for decision in fields["decisions"]:  # JSON has no nan
            decision |= {k: None for k, v in decision.items() if isinstance(v, float) and math.isnan(v)}
        atomic.write_text(path, json.dumps(fields, indent=2) + "\n")

    @classmethod
    def load(cls, path: pathlib.Path) -> OnlineGrowth:
        """Reads it. Raises InputError where the file is missing or something else."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            state = bea.OnlineState(**fields.pop("state") | {"forecasts": ()})
            numbers: list[dict[str, Any]] = [
                {k: math.nan if v is None and k != "step" else v for k, v in d.items()} for d in fields.pop("decisions")
            ]
            decisions = tuple(bea.OnlineDecision(**n) for n in numbers)
            return cls(state=state, decisions=decisions, trials=tuple(fields.pop("trials")), **fields)
        except (OSError, json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is no state of the online rule ({error}); start a new run") from None

    def _grid(self, step: int) -> int:
        """The first dispatch that is not before it; the last step is one."""
        return min(-(-step // self.dispatch) * self.dispatch, self.state.last_step)

    def _fits(self, trial: Trial) -> bool:
        left = self.total_flops - self.lost_flops - trial.step * self.sources * self.small_flops
        return trial.small_end <= self.state.last_step and self.trial_steps * self.grown_flops <= left

    def _rates(self, trial: Trial, small: np.ndarray, grown: np.ndarray) -> tuple[list[float], list[float]]:
        if small.shape[1:2] != (self.sources,) or small.shape[::2] != grown.shape or len(grown) != 2:
            raise InputError(
                f"losses have shapes {small.shape} and {grown.shape}, but should have (2, {self.sources}, batches) and "
                "(2, batches)"
            )
        if not all(np.isfinite(a).all() and (a > 0).all() for a in (small, grown)):
            raise InputError(f"a loss of the trial at step {trial.step} is not positive and finite")
        logs = np.log(small).mean(axis=1), np.log(grown)
        flops = (
            (trial.small_end - trial.small_half) * self.sources * self.small_flops,
            (trial.grown_end - trial.grown_half) * self.grown_flops,
        )
        before, after = ([float(v) for v in (log[0] - log[1]) / f] for log, f in zip(logs, flops, strict=True))
        return before, after


def look_gradients(sources: int, cost: float, batches: int, later: int = 5) -> float:
    """What one look of ``bea.forecast_growth`` costs with its default settings, in gradients of the grown network.

    Args:
      sources: how many.
      cost: of a small gradient, in grown ones.
      batches: fresh ones that each forecast is evaluated on, forward only: a third of a gradient each.
      later: steps of later growth that are looked at, besides growing now.
    """
    costs = []

    def look(params: Array) -> Array:
        # the count depends on the settings alone, not on what is trained
        loss = lambda p: jnp.vdot(p, p)
        rests = jnp.ones(later), jnp.ones(later + 1)
        found = bea.forecast_growth(
            [loss] * sources,
            loss,
            [params] * sources,
            lambda small: small[0],
            step_sizes=(1.0, 1.0),
            small_steps=rests[0],
            grown_steps=rests[1],
        )
        costs.append(found.grown_gradients + found.small_gradients * cost)
        return found.losses

    jax.eval_shape(look, jnp.zeros(100))
    return float(costs[0] + (later + 1) * batches / 3)
