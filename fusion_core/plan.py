"""Planning a growth: what theory says, at a point of a run, of training on small against growing now.

The one module of ``fusion_core`` that uses ``bea``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import bea
from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.fusion.linear import FusionMap, Params
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
    named = factors_by_name(factors)
    grouped = {value: ", ".join(n for n, v in named.items() if v == value) for value in named.values()}
    shown = " and ".join(f"{factor:.3g} in {names}" for factor, names in grouped.items())
    reason = (
        f"{decision.reason} Learning rate after it: {learning_rate:.3g} as before{', times ' if shown else ''}{shown}, with "
        f"which the function goes on at its velocity. The step that lowers the grown loss most at once is {grown:.3g} times "
        f"that ({small:.3g} before the event; medians over {len(last)} records)."
    )
    return GrowthPlan(decision.step, learning_rate, named, reason, "greedy")
