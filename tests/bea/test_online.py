"""The rule of trials: when the trials are, what they decide, and what is decided without one."""

import dataclasses
import re

import numpy as np
import pytest

import bea

COSTS = {"run_gradients": 4e3, "trial_gradients": 100.0}
WINS, LOSES = ([1.0], [2.0]), ([2.0], [1.0])


@pytest.mark.parametrize(
    ("change", "method", "trials", "words"),
    [
        ({}, "trials", 2, "a lost trial costs 2.5%, 2 at most, within the limit of 5.0% of the run"),
        ({"cost_limit": 0.025}, "trials", 1, "1 at most"),  # met exactly
        ({"run_gradients": 1e3}, "fixed", 0, "a lost trial would cost 10.0%, above the limit of 5.0% of the run"),
        ({"trial_steps": 71}, "fixed", 2, "no trial at step 30 fits into what is left"),
        ({"trial_gradients": 2900.0, "cost_limit": 1.0}, "fixed", 1, "no trial at step 30 fits into what is left"),
    ],
)
def test_trials_decide_if_the_limit_pays_for_one_and_it_fits(change, method, trials, words):
    state = bea.start_online(100, **COSTS | change)
    assert (state.method, state.trials_left, state.next_decision, state.fixed_step) == (method, trials, 30, 30)
    assert words in state.why


def test_a_trial_that_wins_ends_the_rule_and_the_sentence_says_the_numbers():
    state, decision = bea.online_growth_step(bea.start_online(100, **COSTS), 30, rates=([1.0, 1.2], [2.0, 2.0]))
    assert decision.step == 30
    assert state.next_decision is None
    assert decision.value == pytest.approx(0.9)
    assert decision.standard_error == pytest.approx(0.1)
    assert "faster per FLOP (2 against 1.1, ahead by 0.9 ± 0.1); a lost trial costs 2.5%" in decision.reason


def test_a_lost_trial_is_followed_by_one_at_twice_the_step():
    state, decision = bea.online_growth_step(bea.start_online(200, **COSTS), 60, rates=LOSES)
    assert decision.step is None
    assert np.isnan(decision.standard_error)
    assert (state.method, state.next_decision, state.trials_left, state.trials_lost) == ("trials", 120, 1, 1)
    assert "the next trial is at step 120; a lost trial costs 2.5%, 2 at most" in decision.reason


def test_the_next_trial_begins_where_the_sources_stand_after_a_long_one():
    state = bea.start_online(1000, **COSTS, trial_steps=70, fixed_share=0.05)
    assert bea.online_growth_step(state, 50, rates=LOSES)[0].next_decision == 120


def test_when_no_further_trial_can_be_paid_it_grows_at_twice_the_step_without_one():
    state, decision = bea.online_growth_step(bea.start_online(100, **COSTS, cost_limit=0.03), 30, rates=LOSES)
    assert (state.method, state.next_decision, decision.step) == ("fixed", 60, None)
    assert "no further trial can be paid" in decision.reason
    assert bea.online_growth_step(state, 59)[1].step is None
    state, decision = bea.online_growth_step(state, 60)
    assert (state.next_decision, decision.step) == (None, 60)
    assert "decided before, since the small networks' loss falls faster per FLOP" in decision.reason
    assert "at step 30 and no further trial can be paid; a lost trial costs 2.5%, 1 at most" in decision.reason


@pytest.mark.parametrize(
    "change",
    [
        {"fixed_share": 0.6},  # twice 60 is past the end
        {"trial_steps": 45},  # from 60 it would end past the end
        {"trial_gradients": 840.0, "cost_limit": 1.0},  # 40 % are left, 21 % are lost, and another 21 % would be
    ],
)
def test_when_no_later_trial_fits_it_does_not_grow(change):
    state = bea.start_online(100, **COSTS | change)
    state, decision = bea.online_growth_step(state, state.next_decision, rates=LOSES)
    assert (state.method, state.next_decision, decision.step) == ("fixed", 100, None)
    assert "no later trial fits into what is left" in decision.reason
    assert bea.online_growth_step(state, 99)[1].step is None
    state, decision = bea.online_growth_step(state, 100)
    assert (state.next_decision, decision.step) == (None, None)
    assert decision.reason.startswith("Not within this budget: no growth is planned")


def test_decisions_lie_on_the_grid_or_at_the_end():
    state = bea.start_online(100, **COSTS, grid=7)
    assert state.next_decision == 35
    assert bea.online_growth_step(state, 35, rates=LOSES)[0].next_decision == 70
    assert bea.start_online(100, **COSTS, grid=7, fixed_share=0.99).next_decision == 100


@pytest.mark.parametrize(
    ("small", "grown", "why"),
    [
        ([2.0], [1.0], r"the small networks' loss falls faster per FLOP \(2 against 1\)"),
        ([1.0, 3.0], [2.5, 2.0], r"by no more than the noise \(2.25 against 2, ahead by 0.25"),
        ([-2.0], [-1.0], r"the grown network's loss does not fall \(-1 per FLOP\)"),
    ],
)
def test_it_waits_while_the_small_networks_are_faster_and_while_it_is_not_resolved(small, grown, why):
    _, decision = bea.online_growth_step(bea.start_online(100, **COSTS), 10, rates=(small, grown))
    assert decision.step is None
    assert re.search(why, decision.reason), decision.reason


@pytest.mark.parametrize(
    ("step", "rates", "message"),
    [
        (30, None, "the method is trials: pass rates="),
        (101, WINS, "outside of the run of 100"),
        (30, ([1.0], [1.0, 2.0]), "two equally long rows"),
        (30, ([1.0], [float("nan")]), "of finite numbers"),
    ],
)
def test_what_is_missing_or_wrong_is_named(step, rates, message):
    with pytest.raises(ValueError, match=message):
        bea.online_growth_step(bea.start_online(100, **COSTS), step, rates=rates)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_gradients": 0.0}, "run_gradients is 0.0"),
        ({"trial_steps": 0}, "trial_steps is 0"),
        ({"grid": 0}, "grid is 0"),
        ({"cost_limit": 1.5}, "cost_limit is 1.5"),
    ],
)
def test_start_online_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        bea.start_online(100, **COSTS | change)


def test_the_state_is_a_value_that_is_not_changed():
    state = bea.start_online(100, **COSTS)
    before = dataclasses.asdict(state)
    bea.online_growth_step(state, 30, rates=LOSES)
    assert dataclasses.asdict(state) == before
