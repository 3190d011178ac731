"""The greedy rule and its meter: theory's terms, at a point of a run, of training the sources against growing now."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import bea
from fusion_core.errors import InputError
from fusion_core.growth import GrowthMap
from fusion_core.schedule.decision import GrowthDecision, Params, rate_sentence
from fusion_core.train.optimizer import grow_states, preconditioner
from fusion_core.train.step import Batch, TrainState, displacement, rates_at

# (params, batch) -> mean loss
MeanLoss = Callable[[Params, Batch], Array]

# Steps and rates come from a quadratic model of the loss; further than this from where it was measured, it is not to
# be trusted.
TRUST = 4.0
WINDOW = 3  # records in the medians that decide
OWN_TERMS = ("loss", "gradient_norm", "modified_loss", "decrease_per_flop")


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network with what trains it.

    Attributes:
      loss: mean loss of params on a batch.
      optimizer: the optimizer of its updates.
      step_flops: FLOPs of one training step.
      schedule: factor on the state's rates at a step.
    """

    loss: MeanLoss
    optimizer: optax.GradientTransformation
    step_flops: float
    schedule: Callable[[Array], Any] = lambda step: 1.0


class GrowthMeter:
    r"""Theory's terms for sources that may be fused now, estimated over pairs of batches.

    The optimizer is frozen at the event: a source's field is ``fᵢ = −Mᵢ ∇Lᵢ``, the grown network's ``f_2 = −M_2 ∇L``,
    each with its own preconditioner (learning rate included), the grown one from the fused optimizer state and the
    sources' rates times ``factors``. A pair's first batch gives the updates, the second the losses, gradients and curvatures.

    A pair costs 3 gradients and 2 Hessian-vector products of every source, and 4 and 3 of the grown network.
    Source: theory.md, sections 1, 3 and 4.

    Args:
      small: any of the sources, which are of one shape.
      grown: the grown network.
      mapping: J, Jᵀ and J⁺ of the growth, from the sources' params to the grown ones.
      factors: factors on the sources' rates after the growth, a tree like the grown params.
    """

    def __init__(self, small: TrainedNetwork, grown: TrainedNetwork, mapping: GrowthMap, factors: Params) -> None:
        self._flops = small.step_flops, grown.step_flops
        self._small_terms, self._grown_terms = jax.jit(_own_terms(small)), jax.jit(_own_terms(grown))
        self._joint_terms = jax.jit(_joint_terms(small, grown, mapping))
        self._fuse = jax.jit(lambda states: grow_states(mapping, states, factors))

    def measure(
        self, states: Sequence[TrainState], updates: Sequence[Batch], probes: Sequence[Batch]
    ) -> dict[str, float]:
        r"""Return the terms at the sources' present states, means over the pairs, each with its standard error ``<name>_se``.

        Args:
          states: training states of the sources.
          updates, probes: equally many batches, at least 2.

        Raises:
          InputError: there are fewer, or not equally many.

        Returns:
          * for ``source_0``, ``source_1``, ... and ``fused``: ``loss_*``; ``gradient_norm_*``; ``modified_loss_*``, that is
            ``L + ¼ ⟨∇L, M ∇L⟩``; ``decrease_per_flop_*``, that is ``−(⟨g, Δ⟩ + ½ ΔᵀHΔ)`` of a step at the present learning
            rate, over its FLOPs;
          * ``step_factor_small``, ``step_factor_grown``: h*/h, by which a step of all sources, ``J(Δ_0, Δ_1, ...)``, and
            one of the grown network should be longer to lower the quadratic model of the grown loss most;
          * ``small_rate``, ``grown_rate``: decrease of the grown loss per FLOP by these two steps at their best length;
          * ``conflict``: ``½ ⟨∇L, [f_1, f_2]⟩`` with f_1 the small phase pushed into the grown space: the change of the
            grown loss by the bracket term of one small and one grown step.

        Factors, and the rates at them, come from the mean slope and curvature: a ratio of means, not a mean of ratios.
        """
        _check_pairs(updates, probes)
        samples: dict[str, list[float]] = {}
        models: dict[str, list[tuple[float, float]]] = {"small": [], "grown": []}
        fused = self._fuse(tuple(states))
        names = [*(f"source_{i}" for i in range(len(states))), "fused"]
        for update, probe in zip(updates, probes, strict=True):
            terms = [self._small_terms(state, update, probe) for state in states]
            terms.append(self._grown_terms(fused, update, probe))
            moves, metrics = zip(*((move, metric) for _, move, metric in terms), strict=True)
            joint = self._joint_terms(fused.params, moves[:-1], metrics[:-1], metrics[-1], probe)
            for name, (values, _, _) in zip(names, terms, strict=True):
                for term in OWN_TERMS:
                    samples.setdefault(f"{term}_{name}", []).append(float(values[term]))
            samples.setdefault("conflict", []).append(float(joint["conflict"]))
            for name, values in (("small", joint), ("grown", terms[-1][0])):
                models[name].append((float(values["slope"]), float(values["curvature"])))
        result = _means(samples)
        small, grown = self._flops
        return result | _best("small", models["small"], len(states) * small) | _best("grown", models["grown"], grown)


class NetworkMeter:
    """Theory's terms for one network alone: those that ``GrowthMeter`` has for each source.

    A pair of batches costs 3 gradients and 2 Hessian-vector products.

    Args:
      network: to be measured.
    """

    def __init__(self, network: TrainedNetwork) -> None:
        self._terms = jax.jit(_own_terms(network))

    def measure(self, state: TrainState, updates: Sequence[Batch], probes: Sequence[Batch]) -> dict[str, float]:
        """Return ``loss``, ``gradient_norm``, ``modified_loss`` and ``decrease_per_flop`` at a state, as ``GrowthMeter``.

        Args:
          state: training state of the network.
          updates, probes: equally many batches, at least 2.

        Raises:
          InputError: there are fewer, or not equally many.
        """
        _check_pairs(updates, probes)
        measured = [self._terms(state, update, probe)[0] for update, probe in zip(updates, probes, strict=True)]
        return _means({term: [float(values[term]) for values in measured] for term in OWN_TERMS})


def _check_pairs(updates: Sequence[Batch], probes: Sequence[Batch]) -> None:
    if len(updates) != len(probes) or len(updates) < 2:
        raise InputError(
            f"{len(updates)} update and {len(probes)} probe batches; standard errors need equally many, at least 2"
        )


def _means(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the means, and the standard errors under ``<name>_se``."""
    found = {}
    for name, drawn in samples.items():
        found[name] = statistics.fmean(drawn)
        found[f"{name}_se"] = statistics.stdev(drawn) / math.sqrt(len(drawn))
    return found


def _own_terms(network: TrainedNetwork) -> Callable[..., tuple[dict[str, Array], Params, Params]]:
    """One network's own terms, its update and its preconditioner."""

    def terms(state: TrainState, update: Batch, probe: Batch) -> tuple[Any, Params, Params]:
        on_probe = lambda p: network.loss(p, probe)
        params, factor = state.params, network.schedule(state.step)
        scaled = lambda tree: jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)
        grads = jax.grad(lambda p: network.loss(p, update))(params)
        move = displacement(network.optimizer, grads, state, factor)[0]
        metric = preconditioner(network.optimizer, grads, state.opt_state, params)
        metric = scaled(jax.tree.map(jnp.multiply, rates_at(state), metric))
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

    return terms


def _joint_terms(small: TrainedNetwork, grown: TrainedNetwork, mapping: GrowthMap) -> Callable[..., dict[str, Array]]:
    """The terms in which the small phase is seen from the grown space."""
    event = bea.GrowthEvent.of(mapping)

    def preconditioned(loss: Callable[[Params], Array], metric: Params) -> bea.Field:
        descent = bea.gradient_field(loss)
        return lambda params: jax.tree.map(jnp.multiply, metric, descent(params))

    def terms(
        fused: Params, moves: tuple[Params, ...], metrics: tuple[Params, ...], grown_metric: Params, probe: Batch
    ) -> dict[str, Array]:
        fields = [preconditioned(lambda p: small.loss(p, probe), metric) for metric in metrics]
        together = lambda sources: tuple(f(p) for f, p in zip(fields, sources, strict=True))
        sources_field = together if mapping.several else fields[0]
        grown_loss = lambda p: grown.loss(p, probe)
        move = moves if mapping.several else moves[0]
        model = bea.quadratic_model(grown_loss, fused, mapping.embed(move))
        # the step sizes are inside the preconditioners
        conflict = event.loss_conflict(
            sources_field, preconditioned(grown_loss, grown_metric), grown_loss, 1.0, 1.0, fused
        )
        return {"conflict": conflict, "slope": model.slope, "curvature": model.curvature}

    return terms


def _best(name: str, models: Sequence[tuple[float, float]], flops: float) -> dict[str, float]:
    """Best step and rate of the mean quadratic model, with jackknife standard errors."""
    n = len(models)
    without = [_best_step([*models[:i], *models[i + 1 :]]) for i in range(n)]
    result = {}
    for key, index, unit in ((f"step_factor_{name}", 0, 1.0), (f"{name}_rate", 1, flops)):
        values = [best[index] / unit for best in without]
        centre = statistics.fmean(values)
        result[key] = _best_step(models)[index] / unit
        result[f"{key}_se"] = math.sqrt((n - 1) / n * sum((value - centre) ** 2 for value in values))
    return result


def _best_step(models: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(h*, decrease at h*) of the mean of quadratic models (slope, curvature), h* at most ``TRUST``."""
    slope, curvature = (statistics.fmean(column) for column in zip(*models, strict=True))
    model = bea.QuadraticModel(jnp.asarray(slope), jnp.asarray(curvature))
    step = min(float(model.best_step_size()), TRUST)
    return step, float(model.decrease(step))


def greedy_decision(records: Sequence[Mapping[str, Any]], learning_rate: float, factors: Params) -> GrowthDecision:
    """Return the greedy rule's decision: grow once the grown network's decrease per FLOP is above the small ones'.

    Both rates are taken at their best step, since at the rate that suits a long run a single step of a minibatch
    hardly lowers the loss, or raises it. The learning rate after the event is the sources' times the factors with which
    the function goes on at its velocity (``fusion_core.rate_factors``; theory.md, section 5). The greedy best step h* is
    reported beside it and not followed: it looks one step ahead (docs/demo.md has the measurements).

    Args:
      records: records of ``GrowthMeter``, in order, each with its ``step``.
      learning_rate: the sources' rate, at which the records were measured.
      factors: factors on it after the event, with which the records were measured.
    """
    decision = bea.greedy_growth_step(
        [int(r["step"]) for r in records],
        [r["small_rate"] for r in records],
        [r["grown_rate"] for r in records],
        window=WINDOW,
    )
    reason = decision.reason
    if decision.step is not None:
        last = [r for r in records if r["step"] <= decision.step][-WINDOW:]
        small, grown = (statistics.median(r[f"step_factor_{name}"] for r in last) for name in ("small", "grown"))
        reason = (
            f"{reason} {rate_sentence(learning_rate, factors)} The step that lowers the grown loss most at once is "
            f"{grown:.3g} times that ({small:.3g} before the event; medians over {len(last)} records)."
        )
    return GrowthDecision.of("greedy", decision.step, reason, learning_rate, factors)
