"""The meter's terms against differences of losses and gradients, on perceptrons in float64: the demo's tests have T5s."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.growth import fused_config
from fusion_core.models.t5 import init
from fusion_core.schedule import GrowthDecision, GrowthMeter, TrainedNetwork, factors_by_name, greedy_decision
from fusion_core.schedule.greedy import TRUST, WINDOW
from fusion_core.train import TrainState, adafactor, displacement, grow_states, init_state, preconditioner
from tests.strategies.networks import random_mlp
from toy_models import mlp

SMALL = fc.MLPConfig((3, 12, 9, 2))
LARGE = fused_config([SMALL, SMALL])
OPTIMIZER = adafactor()
RATE = 1e-3
FLOPS = {"small": 1e3, "large": 3e3}
MAPPING = fc.fusion_map([SMALL, SMALL])


def loss(params, batch):
    return jnp.mean((mlp.forward(params, batch["x"]) - batch["y"]) ** 2)


value, gradient = jax.jit(loss), jax.jit(jax.grad(loss))


def draw(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, 3))
    return {"x": x, "y": np.stack([np.sin(2 * x[:, 0]), x[:, 1] * x[:, 2]], axis=1)}


# not all 1, so that leaving them out anywhere is seen
FACTORS = fc.rate_factors(random_mlp(SMALL.sizes, 0, jnp.float32), SMALL, 2, "adafactor")

UPDATES, PROBES = [draw(10), draw(11)], [draw(20), draw(21)]


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def states():
    """Two sources after a few steps, so that the optimizer has statistics."""

    @jax.jit
    def step(state, batch):
        move, opt_state = displacement(OPTIMIZER, jax.grad(loss)(state.params, batch), state)
        return TrainState(optax.apply_updates(state.params, move), opt_state, state.step + 1, state.rates)

    found = []
    for seed in range(2):
        state = init_state(random_mlp(SMALL.sizes, seed, jnp.float64), OPTIMIZER, RATE)
        for i in range(3):
            state = step(state, draw(100 * seed + i))
        found.append(state)
    return found


@pytest.fixture(scope="module")
def meter():
    small, large = (TrainedNetwork(loss, OPTIMIZER, FLOPS[name]) for name in ("small", "large"))
    return GrowthMeter(small, large, MAPPING, FACTORS)


@pytest.fixture(scope="module")
def measured(meter, states):
    return meter.measure(states, UPDATES, PROBES)


@pytest.fixture(scope="module")
def fused(states):
    return grow_states(MAPPING, states, FACTORS)


@jax.jit
def step_of(state, batch):
    """(the update, the preconditioner with the rate) of one network on a batch."""
    grads = jax.grad(loss)(state.params, batch)
    move, _ = displacement(OPTIMIZER, grads, state)
    metric = preconditioner(OPTIMIZER, grads, state.opt_state, state.params)
    return move, jax.tree.map(jnp.multiply, state.rates, metric)


@pytest.fixture(scope="module")
def steps(states, fused):
    """For each pair of batches: (moves and metrics of the sources), (move and metric of the grown network)."""
    return [([step_of(state, batch) for state in states], step_of(fused, batch)) for batch in UPDATES]


def add(params, move, factor=1.0):
    return jax.tree.map(lambda p, m: jnp.asarray(p + factor * m), params, move)


def inner(a, b):
    return sum(float(np.vdot(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def mean(values):
    return float(np.mean([float(v) for v in values]))


def test_losses_and_gradient_norms_are_means_over_the_probes(measured, states, fused):
    for name, params in (("source_0", states[0].params), ("source_1", states[1].params), ("fused", fused.params)):
        assert measured[f"loss_{name}"] == pytest.approx(mean(value(params, p) for p in PROBES), rel=1e-12)
        norms = [inner(g, g) ** 0.5 for g in (gradient(params, p) for p in PROBES)]
        assert measured[f"gradient_norm_{name}"] == pytest.approx(np.mean(norms), rel=1e-12)
        assert measured[f"gradient_norm_{name}_se"] == pytest.approx(np.std(norms, ddof=1) / 2**0.5, rel=1e-9)


def test_the_predicted_decrease_is_the_change_of_the_loss_up_to_third_order(measured, states, fused, steps):
    """On batches that the update has not seen. At half the step an eighth of the error is left."""
    cases = {
        "source_0": (states[0].params, [s[0][0][0] for s in steps], FLOPS["small"]),
        "source_1": (states[1].params, [s[0][1][0] for s in steps], FLOPS["small"]),
        "fused": (fused.params, [s[1][0] for s in steps], FLOPS["large"]),
    }
    for name, (params, moves, flops) in cases.items():
        change = mean(value(params, p) - value(add(params, m), p) for p, m in zip(PROBES, moves, strict=True))
        first = mean(-inner(gradient(params, p), m) for p, m in zip(PROBES, moves, strict=True))
        predicted = measured[f"decrease_per_flop_{name}"] * flops
        assert predicted == pytest.approx(change, rel=1e-4)
        # the curvature counts: without it the prediction is worse
        assert abs(predicted - change) < 0.1 * abs(first - change)


def test_the_modified_loss_adds_a_quarter_of_the_metric_norm_of_the_gradient(measured, states, fused, steps):
    cases = {"source_0": (states[0], [s[0][0][1] for s in steps]), "fused": (fused, [s[1][1] for s in steps])}
    for name, (state, metrics) in cases.items():
        grads = [gradient(state.params, probe) for probe in PROBES]
        wanted = mean(
            0.25 * inner(jax.tree.map(jnp.multiply, metric, g), g) for metric, g in zip(metrics, grads, strict=True)
        )
        assert measured[f"modified_loss_{name}"] - measured[f"loss_{name}"] == pytest.approx(wanted, rel=1e-9)


def test_best_steps_and_rates_are_those_of_the_mean_quadratic_model(measured, fused, steps):
    """Slope and curvature by differences of the loss along the two moves, in the grown space."""
    for name, moves, flops in (
        ("small", [MAPPING.embed([m for m, _ in s[0]]) for s in steps], 2 * FLOPS["small"]),
        ("grown", [s[1][0] for s in steps], FLOPS["large"]),
    ):
        slopes, curvatures = [], []
        for probe, move in zip(PROBES, moves, strict=True):
            here, up, down = (float(value(add(fused.params, move, k), probe)) for k in (0, 0.1, -0.1))
            slopes.append((up - down) / 0.2)
            curvatures.append((up - 2 * here + down) / 0.01)
        slope, curvature = np.mean(slopes), np.mean(curvatures)
        assert slope < 0
        best = min(-slope / curvature if curvature > 0 else math.inf, TRUST)
        assert measured[f"step_factor_{name}"] == pytest.approx(best, rel=1e-3)
        decrease = -(best * slope + 0.5 * best**2 * curvature)
        assert measured[f"{name}_rate"] * flops == pytest.approx(decrease, rel=1e-3)


def test_the_conflict_is_half_the_bracket_of_the_two_phases_along_the_gradient(measured, fused, steps):
    """``½ ⟨∇L, f_2' f_1 − f_1' f_2⟩``, the derivatives by central differences of the frozen fields."""

    def descent(metric, params, probe):
        return jax.tree.map(lambda m, g: -m * g, metric, gradient(params, probe))

    conflicts = []
    for probe, (sources, (_, grown_metric)) in zip(PROBES, steps, strict=True):

        def f1(params, probe=probe, sources=sources):
            parts = zip(MAPPING.pinv(params), sources, strict=True)
            return MAPPING.embed([descent(metric, part, probe) for part, (_, metric) in parts])

        def f2(params, probe=probe, metric=grown_metric):
            return descent(metric, params, probe)

        def along(field, params, direction, h=0.01):
            up, down = field(add(params, direction, h)), field(add(params, direction, -h))
            return add(up, down, -1.0), 2 * h

        theta = fused.params
        (first, width), (second, _) = along(f2, theta, f1(theta)), along(f1, theta, f2(theta))
        conflicts.append(0.5 * inner(gradient(theta, probe), add(first, second, -1.0)) / width)
    assert abs(np.mean(conflicts)) > 1e-9
    assert measured["conflict"] == pytest.approx(np.mean(conflicts), rel=1e-3)


def test_every_term_has_a_finite_standard_error(measured):
    terms = [name for name in measured if not name.endswith("_se")]
    assert {"conflict", "small_rate", "grown_rate", "step_factor_small", "step_factor_grown"} <= set(terms)
    assert len(terms) == 4 * 3 + 5
    for name in terms:
        assert math.isfinite(measured[name]), name
        assert measured[f"{name}_se"] >= 0, name


def test_the_schedule_multiplies_the_rates(states, measured):
    """Half the schedule of twice the rates is the same training."""
    halved = [
        TrainedNetwork(loss, OPTIMIZER, FLOPS[name], lambda step: 1 / (2 + step * 0)) for name in ("small", "large")
    ]
    doubled = [state._replace(rates=jax.tree.map(lambda rate: 2 * rate, state.rates)) for state in states]
    found = GrowthMeter(*halved, MAPPING, FACTORS).measure(doubled, UPDATES, PROBES)
    assert found == pytest.approx(measured, rel=1e-9)


def test_a_network_that_grows_alone_has_the_terms_of_two_equal_sources(states):
    """By the operator's map, of one network; but one source costs half of two."""
    optimizer = optax.sgd(1.0)
    state = init_state(states[0].params, optimizer, RATE)
    networks = [TrainedNetwork(loss, optimizer, FLOPS[name]) for name in ("small", "large")]
    alone = fc.growth_map(SMALL, "deep_fusion", factor=2)
    found = GrowthMeter(*networks, alone, FACTORS).measure([state], UPDATES, PROBES)
    wanted = GrowthMeter(*networks, MAPPING, FACTORS).measure([state, state], UPDATES, PROBES)
    assert abs(found["conflict"]) > 1e-9
    for name, term in found.items():
        times = 2 if name.startswith("small_rate") else 1
        assert term == pytest.approx(times * wanted[name], rel=1e-6, abs=1e-15), name


def test_equally_many_updates_and_probes_are_needed_and_two_at_least(meter, states):
    with pytest.raises(
        fc.InputError, match="1 update and 1 probe batches; standard errors need equally many, at least 2"
    ):
        meter.measure(states, UPDATES[:1], PROBES[:1])
    with pytest.raises(fc.InputError, match="2 update and 1 probe batches"):
        meter.measure(states, UPDATES, PROBES[:1])


# The decision, from records that are made up


def record(step, small_rate, grown_rate, small_factor=0.2, grown_factor=0.3):
    return {
        "step": step,
        "small_rate": small_rate,
        "grown_rate": grown_rate,
        "step_factor_small": small_factor,
        "step_factor_grown": grown_factor,
    }


def test_growth_is_decided_where_the_grown_rate_passes_first():
    records = [record(10 * i, 2.0, 1.0 if i < 5 else 3.0) for i in range(1, 12)]
    decision = greedy_decision(records, 0.02, FACTORS)
    # two of the three records in the window have passed
    assert decision.step == 60
    assert decision.rule == "greedy"
    assert "Grow at step 60" in decision.reason
    assert decision.learning_rate == 0.02
    assert "at once is 0.3 times that (0.2 before the event; medians over 3 records)" in decision.reason


def test_the_decision_looks_at_nothing_after_the_event():
    records = [record(10 * i, 2.0, 1.0 if i < 5 else 3.0) for i in range(1, 7)]
    later = [record(70, 2.0, 9.0, 0.1, 9.0), record(80, 2.0, 9.0, 0.1, 9.0)]
    assert greedy_decision(records + later, 0.02, FACTORS) == greedy_decision(records, 0.02, FACTORS)


@pytest.mark.parametrize(
    "records",
    [
        [record(10 * i, 2.0, 1.0) for i in range(1, 8)],
        [record(10 * i, -2.0, -1.0) for i in range(1, 8)],  # passes, but grows nothing
        [record(10 * i, 1.0, 2.0) for i in range(1, WINDOW)],  # too few records to decide
    ],
)
def test_no_growth_is_decided_where_the_grown_rate_does_not_pass(records):
    decision = greedy_decision(records, 0.02, FACTORS)
    assert decision.step is None
    assert decision.learning_rate is None
    assert decision.reason.startswith("Not within this record")


def test_the_decision_names_the_rate_factors_that_are_not_one():
    config = fc.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
    factors = fc.rate_factors(init(config, 0), config, 2, "adafactor")
    decision = greedy_decision([record(10 * i, 1.0, 2.0) for i in range(1, 5)], 0.02, factors)
    assert decision.factors == factors_by_name(factors) == dict.fromkeys(("q", "k", "v", "o", "wi", "wo"), 0.707107)
    assert "Learning rate after it: 0.02 as before, times 0.707 in k, o, q, v, wi, wo, with which" in decision.reason


def test_a_decision_is_read_back(tmp_path):
    for decision in (
        GrowthDecision(60, 0.03, {"q": 0.7}, "because", "greedy"),
        GrowthDecision(None, None, {}, "no", "greedy"),
    ):
        decision.save(tmp_path / "decision.json")
        assert GrowthDecision.load(tmp_path / "decision.json") == decision
    assert json.loads((tmp_path / "decision.json").read_text()) == dataclasses.asdict(decision)


@pytest.mark.parametrize("content", [None, "", "{", '{"step": 1}', "[]"])
def test_a_file_that_is_no_decision_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "decision.json").write_text(content)
    with pytest.raises(fc.InputError, match=r"decision\.json is no growth decision"):
        GrowthDecision.load(tmp_path / "decision.json")
