"""The rule of forecasts, with forecasts that are made up, and the forecasts themselves on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from tests.strategies.problems import quadratic
from toy_models.when_to_grow.forecast_rule import Forecast, ForecastRule
from toy_models.when_to_grow.forecasts import forecast_growth

COSTS = {"run_gradients": 1e6, "forecast_gradients": 400.0, "trial_gradients": 1e3}


def start(last_step=100, **change):
    return ForecastRule.start(last_step, **COSTS | change)


def follow(rule, losses):
    """The rule after forecasts of growing now at steps 0, 10, 20, ..."""
    for i, loss in enumerate(losses):
        rule = rule.decide(10 * i, forecast=Forecast(loss))
        if rule.step is not None:
            break
    return rule


def test_growth_is_where_the_forecast_stops_falling_and_the_sentence_says_the_numbers():
    rule = follow(start(), [5.0, 4.0, 3.0, 3.5, 1.0])
    assert (rule.step, rule.next_decision) == (30, None)
    assert "3.5 now after 3 at step 20 (rise 0.5)" in rule.reason
    assert "within the limit of 5.0% of the run" in rule.reason


def test_a_forecast_that_falls_to_the_end_is_not_within_this_budget():
    rule = follow(start(30), [4.0, 3.0, 2.0, 1.0])
    assert (rule.step, rule.next_decision) == (None, None)
    assert "Not within this budget" in rule.reason


def test_with_forecasts_of_later_growth_a_rise_on_the_way_is_no_reason_to_grow():
    rule = start()
    for step, now in ((0, 2.0), (10, 3.0)):
        rule = rule.decide(step, forecast=Forecast(now, ((50, 1.0), (90, 1.5))))
        assert rule.step is None
        assert "for growing at step 50" in rule.reason
    rule = rule.decide(50, forecast=Forecast(1.0, ((90, 1.5),)))
    assert rule.step == 50
    assert "not lower for any later growth" in rule.reason


def test_the_next_look_is_half_way_to_the_best_later_step_and_no_nearer_than_a_32nd_of_the_run():
    rule = start(320).decide(0, forecast=Forecast(2.0, ((200, 1.0), (320, 1.5))))
    assert (rule.next_decision, rule.looks) == (100, 15)
    assert rule.decide(100, forecast=Forecast(1.1, ((104, 1.0), (320, 1.5)))).next_decision == 110


@pytest.mark.parametrize(("best", "grows"), [(200, 200), (320, None)])
def test_when_no_further_look_can_be_paid_the_last_one_decides(best, grows):
    rule = start(320, run_gradients=8e3)
    assert rule.looks == 1
    rule = rule.decide(0, forecast=Forecast(2.0, ((best, 1.0),)))
    assert (rule.method, rule.next_decision, rule.step) == ("settled", best, None)
    assert rule.decide(best - 1).step is None
    end = rule.decide(best)
    assert (end.step, end.next_decision) == (grows, None)
    assert ("decided before" if grows else "Not within this budget") in end.reason
    assert "no further look can be paid" in end.reason


def test_after_the_last_look_without_later_growth_it_grows_at_the_fixed_share():
    rule = start(run_gradients=8e3).decide(0, forecast=Forecast(2.0))
    assert (rule.method, rule.settled) == ("settled", 30)


@pytest.mark.parametrize(
    ("run", "method", "looks", "first", "words"),
    [
        (1e6, "look_ahead", 16, 0, "one look ahead costs 0.04%, 16 at most"),
        (2e4, "look_ahead", 2, 0, "one look ahead costs 2.00%, 2 at most"),
        (4e3, "trials", 0, 30, "one look ahead would cost 10.0%; a lost trial costs 2.5%, 2 at most"),
        (1e3, "fixed", 0, 30, "one look ahead would cost 40.0%; a lost trial would cost 10.0%, above the limit"),
    ],
)
def test_the_cost_limit_chooses_the_method(run, method, looks, first, words):
    rule = start(run_gradients=run, trial_gradients=100.0)
    assert (rule.method, rule.looks, rule.next_decision) == (method, looks, first)
    assert rule.why.startswith(words)


def test_where_no_look_can_be_paid_it_decides_as_beas_rule_does():
    rule = start(run_gradients=4e3, trial_gradients=100.0)
    rates = ([1.0, 1.1], [2.0, 2.1])
    _, decision = bea.online_growth_step(rule.trials, 30, rates=rates)
    assert rule.decide(30, rates=rates).reason == decision.reason
    assert rule.decide(30, rates=rates).step == decision.step == 30


def test_a_forecast_that_is_not_finite_leaves_the_decision_to_trials_or_the_fixed_share():
    broken = Forecast(1.0, ((50, float("nan")),))
    rule = start().decide(40, forecast=broken)
    assert (rule.method, rule.step, rule.next_decision) == ("trials", None, 40)
    assert "the forecast at step 40 is not finite; a trial at step 40 decides" in rule.reason
    assert rule.decide(40, rates=([1.0], [2.0])).step == 40
    assert start().decide(0, forecast=broken).next_decision == 30
    assert start().decide(0, forecast=broken, rates=([1.0], [2.0])).step == 0
    assert start(trial_gradients=1e6).decide(40, forecast=broken).step == 40


def test_a_forecast_outside_of_its_domain_plans_nothing_and_names_the_law():
    outside = bea.domain_of(2.1, 0.0, 0.02)
    assert not outside.holds
    planned = start().decide(40, forecast=Forecast(1.0, ((50, 2.0),)))
    assert planned.step == 40
    rule = start().decide(40, forecast=Forecast(1.0, ((50, 2.0),), outside=outside.reason))
    assert (rule.method, rule.step, rule.next_decision) == ("trials", None, 40)
    assert "2.10, at the edge of stability" in rule.reason
    assert "Ask a law of growth" in rule.reason


def test_a_missing_forecast_is_named():
    with pytest.raises(ValueError, match="pass forecast="):
        start().decide(0)


H1, H2 = 0.3, 0.2  # step sizes of the two phases


def loss_of(params):
    """A small network has 3 parameters and the grown one 6, each with a quadratic of its own."""
    hessian, _ = quadratic(params.size)
    return 0.5 * params @ hessian @ params


def descend(params, step_size, steps):
    for _ in range(steps):
        params = params - step_size * jax.grad(loss_of)(params)
    return params


def forecast(sources, factors=H2 / H1, small_steps=(4, 3), grown_steps=(9, 7, 0), **settings):
    return forecast_growth(
        loss_of,
        jnp.concatenate,
        sources,
        step_size=H1,
        factors=jnp.full(6, factors),
        small_steps=jnp.asarray(small_steps),
        grown_steps=jnp.asarray(grown_steps),
        **settings,
    )


def test_on_quadratics_the_forecasts_are_the_final_losses_of_growing_now_and_later(x64):
    _, start = quadratic(6)
    sources = start[:3], start[3:]
    found = forecast(sources, krylov=6, relinearisations=3, ratio=1.5)
    wanted, small = [], sources
    for stretch, left in ((0, 9), (4, 7), (3, 0)):
        small = tuple(descend(params, H1, stretch) for params in small)
        wanted.append(float(loss_of(descend(jnp.concatenate(small), H2, left))))
    np.testing.assert_allclose(found.losses, wanted, rtol=1e-10)
    assert wanted[0] != pytest.approx(wanted[1], rel=1e-3)
    # three grown phases; two stretches of two sources, each of a third as many re-linearisations
    assert found.grown_gradients == 3 * (3 * (2 + 2 * 6) + 1)
    assert found.small_gradients == 2 * 2 * (1 * (2 + 2 * 3) + 1)
