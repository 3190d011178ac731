import re

import numpy as np
import pytest

import bea

COSTS = {"run_gradients": 1e6, "forecast_gradients": 400.0, "trial_gradients": 1e3}


def follow(state, losses):
    """Steps 0, 10, 20, ... with these forecasts; the last state and decision."""
    for i, loss in enumerate(losses):
        fresh = tuple(np.atleast_1d(loss).tolist())
        state, decision = bea.online_growth_step(state, 10 * i, forecast=bea.Forecast(10 * i, fresh))
        if decision.step is not None:
            break
    return state, decision


def test_growth_is_where_the_forecast_stops_falling_and_the_sentence_says_the_numbers():
    _, decision = follow(bea.start_online(100, **COSTS), [5.0, 4.0, 3.0, 3.5, 1.0])
    assert decision.step == 30
    assert decision.value == pytest.approx(0.5)
    assert np.isnan(decision.standard_error)
    assert "3.5 now after 3 at step 20" in decision.reason
    assert "within the limit of 5.0% of the run" in decision.reason


def test_with_batches_a_rise_has_to_stand_out_from_its_standard_error():
    quiet = [[5.0, 6.0], [4.0, 5.0], [4.1, 5.1]]
    noisy = [[5.0, 6.0], [4.0, 5.0], [4.9, 4.3]]
    _, decision = follow(bea.start_online(100, **COSTS), quiet)
    assert decision.step == 20
    _, decision = follow(bea.start_online(100, **COSTS), noisy)
    assert decision.step is None
    assert decision.standard_error == pytest.approx(np.std([0.9, -0.7], ddof=1) / 2**0.5)


def test_a_forecast_that_falls_to_the_end_is_not_within_this_budget():
    _, decision = follow(bea.start_online(30, **COSTS), [4.0, 3.0, 2.0, 1.0])
    assert decision.step is None
    assert "Not within this budget" in decision.reason


def test_with_forecasts_of_later_growth_a_rise_on_the_way_is_no_reason_to_grow():
    state = bea.start_online(100, **COSTS)
    for step, now, later in ((0, 2.0, 1.0), (10, 3.0, 1.0)):
        forecast = bea.Forecast(step, (now,), later=((50, (later,)), (90, (1.5,))))
        state, decision = bea.online_growth_step(state, step, forecast=forecast)
        assert decision.step is None
        assert "for growing at step 50" in decision.reason
    forecast = bea.Forecast(50, (1.0,), later=((90, (1.5,)),))
    _, decision = bea.online_growth_step(state, 50, forecast=forecast)
    assert decision.step == 50
    assert "not lower for any later growth" in decision.reason


def plan(step, now, later):
    return bea.Forecast(step, (now,), later=tuple((at, (loss,)) for at, loss in later))


def test_the_next_look_is_half_way_to_the_best_later_step_and_no_nearer_than_a_32nd_of_the_run():
    state = bea.start_online(320, **COSTS)
    state, _ = bea.online_growth_step(state, 0, forecast=plan(0, 2.0, [(200, 1.0), (320, 1.5)]))
    assert (state.next_look, state.looks) == (100, 15)
    state, _ = bea.online_growth_step(state, 100, forecast=plan(100, 1.1, [(104, 1.0), (320, 1.5)]))
    assert state.next_look == 110


@pytest.mark.parametrize(("best", "grows"), [(200, 200), (320, None)])
def test_when_no_further_look_can_be_paid_the_last_plan_stands(best, grows):
    state = bea.start_online(320, **COSTS | {"run_gradients": 8e3})
    assert state.looks == 1
    state, decision = bea.online_growth_step(state, 0, forecast=plan(0, 2.0, [(best, 1.0)]))
    assert (state.method, state.next_look, decision.step) == ("fixed", best, None)
    assert bea.online_growth_step(state, best - 1)[1].step is None
    _, decision = bea.online_growth_step(state, best)
    assert decision.step == grows
    assert ("decided before" if grows else "Not within this budget") in decision.reason
    assert "no further look can be paid" in decision.reason


def test_a_lost_trial_is_followed_by_one_at_twice_the_step_and_when_none_can_be_paid_by_growth_there():
    state = bea.start_online(100, **COSTS | {"run_gradients": 4e3, "trial_gradients": 100.0})
    assert (state.method, state.looks, state.next_look) == ("slopes", 2, 30)
    state, decision = bea.online_growth_step(state, 30, rates=([2.0], [1.0]))
    assert (decision.step, state.next_look, state.looks) == (None, 60, 1)
    state, decision = bea.online_growth_step(state, 60, rates=([2.0], [1.0]))
    # twice 60 is past the end: never
    assert (decision.step, state.method, state.fixed_step) == (None, "fixed", 100)
    assert "Not within this budget" in bea.online_growth_step(state, 100)[1].reason


@pytest.mark.parametrize(
    ("run", "method", "looks", "words"),
    [
        (1e6, "look_ahead", 16, "one look ahead costs 0.04%, 16 at most"),
        (2e4, "look_ahead", 2, "one look ahead costs 2.00%, 2 at most"),
        (4e3, "slopes", 2, "a lost trial costs 2.5%, 2 at most"),
        (1e3, "fixed", 0, "neither within the limit"),
    ],
)
def test_the_cost_limit_chooses_the_rule_and_how_often_it_is_asked(run, method, looks, words):
    costs = COSTS | {"run_gradients": run, "trial_gradients": 100.0}
    state = bea.start_online(100, **costs)
    assert (state.method, state.looks) == (method, looks)
    assert words in state.why
    assert state.next_look == (0 if method == "look_ahead" else 30)


def test_a_forecast_that_does_not_hold_on_fresh_batches_falls_back_to_slopes_and_then_to_the_fixed_fraction():
    forecast = bea.Forecast(0, (2.0, 2.1), followed=1.0)
    state, decision = bea.online_growth_step(bea.start_online(100, **COSTS), 0, forecast=forecast)
    assert state.method == "slopes"
    assert decision.step is None
    assert "does not hold on fresh batches" in decision.reason
    _, decision = bea.online_growth_step(state, 10, rates=([1.0, 1.1], [2.0, 2.1]))
    assert decision.step == 10
    assert "after the transient" in decision.reason
    state = bea.start_online(100, **COSTS | {"trial_gradients": 1e6})
    state, decision = bea.online_growth_step(state, 0, forecast=forecast)
    assert (state.method, decision.step) == ("fixed", None)
    assert bea.online_growth_step(state, 29)[1].step is None
    _, decision = bea.online_growth_step(state, 30)
    assert decision.step == 30
    assert "decided before, since the forecast at step 0 does not hold" in decision.reason


def test_slopes_wait_while_the_small_networks_are_faster_and_while_it_is_not_resolved():
    state = bea.start_online(100, **COSTS | {"run_gradients": 4e5, "trial_gradients": 10.0, "forecast_gradients": 4e4})
    assert state.method == "slopes"
    for small, grown, why in (
        ([2.0], [1.0], r"the small networks' loss falls faster per FLOP \(2 against 1\)"),
        ([1.0, 3.0], [2.5, 2.0], r"by no more than the noise \(2.25 against 2, ahead by 0.25"),
        ([-2.0], [-1.0], r"the grown network's loss does not fall \(-1 per FLOP\)"),
    ):
        decision = bea.online_growth_step(state, 10, rates=(small, grown))[1]
        assert decision.step is None
        assert re.search(why, decision.reason), decision.reason


def test_what_the_rule_wants_and_does_not_get_is_named():
    state = bea.start_online(100, **COSTS)
    with pytest.raises(ValueError, match="pass forecast="):
        bea.online_growth_step(state, 0)
    with pytest.raises(ValueError, match="outside of the run of 100"):
        bea.online_growth_step(state, 101, forecast=bea.Forecast(101, (1.0,)))
    with pytest.raises(ValueError, match="of step 5, but now is step 6"):
        bea.online_growth_step(state, 6, forecast=bea.Forecast(5, (1.0,)))
    state, _ = bea.online_growth_step(state, 6, forecast=bea.Forecast(6, (1.0,)))
    with pytest.raises(ValueError, match="has 2 losses"):
        bea.online_growth_step(state, 7, forecast=bea.Forecast(7, (1.0, 2.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_gradients": 0.0}, "run_gradients is 0.0"),
        ({"looks": 0}, "looks is 0"),
        ({"cost_limit": 1.5}, "cost_limit is 1.5"),
    ],
)
def test_start_online_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        bea.start_online(100, **COSTS | change)
