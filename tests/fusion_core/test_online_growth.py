"""The online rule for a run, told of trials that are made up: what it asks for, decides, charges and keeps on disk."""

import json
import math

import numpy as np
import pytest

import fusion_core as fc
from fusion_core.schedule.trials import GrowthPlan, OnlineGrowth, look_gradients

SMALL, GROWN, BUDGET = 0.4e9, 1e9, 4000
FACTORS = {"q": {"w": 0.5}, "norm": {"w": 1.0}}


def begin(**changed):
    settings = {
        "sources": 2,
        "small_flops": SMALL,
        "grown_flops": GROWN,
        "total_flops": BUDGET * GROWN,
        "batches": 8,
        "dispatch": 10,
    }
    return OnlineGrowth.start(**settings | changed)


def losses(small_fall, grown_fall, batches=8, seed=0):
    """Losses of two sources and the grown network, whose logarithms fall by this much over the trial's second half."""
    rng = np.random.default_rng(seed)
    before = np.exp(rng.normal(1.0, 0.1, (3, batches)))
    falls = np.asarray([small_fall, small_fall, grown_fall])[:, None] + rng.normal(0, 1e-3, (3, batches))
    both = np.stack([before, before * np.exp(-falls)])
    return {"small": both[:, :2], "grown": both[:, 2]}


WINS, LOSES = losses(0.01, 0.05), losses(0.05, 0.01)


def follow(growth, told):
    """Asks until it is decided; returns every state."""
    states = [growth]
    while (look := growth.next_look) is not None:
        growth = growth.ask(look, **({} if growth.trial is None else told))
        states.append(growth)
    return states


def test_a_look_ahead_is_priced_as_bea_counts_it():
    """12 re-linearisations of 2 + 2·16 gradients and one more for each of 6 grown phases, 6 for each of 5 stretches of
    each source, and 6 forecasts evaluated on 9 batches at a third of a gradient."""
    assert look_gradients(2, 0.4, 9) == pytest.approx(6 * 409 + 2 * 5 * 205 * 0.4 + 18)
    assert look_gradients(3, 0.4, 9) == pytest.approx(6 * 409 + 3 * 5 * 205 * 0.4 + 18)


def test_a_trial_is_the_stated_share_of_the_budget_and_as_many_flops_for_the_sources():
    growth = begin()
    assert growth.state.method == "slopes"
    assert growth.next_look == 1500  # 30 % of 5,000 small steps
    trial = growth.trial
    assert trial.grown_end - trial.step == growth.trial_steps == 160
    assert trial.grown_half - trial.step == 80
    assert trial.small_half - trial.step == trial.small_end - trial.small_half == 100
    assert 2 * 100 * SMALL == 80 * GROWN
    # 2 times 8 batches, the grown network and two sources, a third of a gradient each
    assert growth.trial_gradients == pytest.approx(160 + 16 * (1 + 0.8) / 3)


def test_what_it_asks_for_lies_on_the_dispatch_grid():
    growth = begin(small_flops=0.37e9, dispatch=30)
    for step in growth.trial:
        assert step % 30 == 0
    assert growth.next_look % 30 == 0
    assert growth.next_look >= growth.state.next_look > growth.next_look - 30


def test_the_reason_says_that_a_look_ahead_cannot_be_paid_and_what_a_trial_costs():
    growth = begin()
    ahead = look_gradients(2, 0.4, 8) / BUDGET
    assert growth.state.why.startswith(f"one look ahead would cost {ahead:.1%}; a lost trial costs 4.2%, 1 at most")


def test_a_trial_that_wins_is_grown_from_and_costs_nothing():
    growth = begin().ask(1500, **WINS)
    assert growth.step == 1500
    assert growth.next_look is None
    assert growth.kept == begin().trial
    assert growth.lost_trials == ()
    assert growth.lost_flops == 0
    plan = growth.plan(0.02, FACTORS)
    assert plan == GrowthPlan(1500, 0.02, {"q": 0.5}, plan.reason, "online")
    assert plan.reason.startswith(
        "Grow at step 1500: after the transient the grown network's loss falls faster per FLOP"
    )
    assert plan.reason.endswith("0.02 as before, times 0.5 in q, with which the function goes on at its velocity.")


def test_a_trial_that_loses_is_charged_and_growth_follows_at_twice_the_step():
    lost = begin().ask(1500, **LOSES)
    assert lost.step is None
    assert lost.lost_flops == pytest.approx(lost.trial_gradients * GROWN)
    assert (lost.next_look, lost.trial, lost.kept) == (3000, None, None)
    plan = lost.plan(0.02, FACTORS)
    assert plan == GrowthPlan(None, None, {}, plan.reason, "online")
    # the price that decided between the methods is said whatever came of it
    assert plan.reason.startswith(lost.decisions[-1].reason)
    assert plan.reason.endswith(f"What could be paid: {begin().state.why}.")
    grown = lost.ask(3000)
    assert grown.step == 3000
    assert grown.kept is None
    assert grown.lost_trials == (1500,)
    assert grown.lost_flops == lost.lost_flops
    assert "the small networks' loss falls faster per FLOP" in grown.plan(0.02, FACTORS).reason
    assert "at step 1500 and no further trial can be paid" in grown.plan(0.02, FACTORS).reason


def test_where_every_trial_loses_it_never_grows_and_says_so():
    states = follow(begin(cost_limit=0.5), LOSES)
    end = states[-1]
    assert end.trials == end.lost_trials == (1500, 3000)
    assert [s.next_look for s in states] == [1500, 3000, 5000, None]
    assert end.step is None
    assert end.lost_flops == pytest.approx(2 * end.trial_gradients * GROWN)
    reason = end.plan(0.02, FACTORS).reason
    assert reason.startswith("Not within this budget")
    assert "no later trial fits" in reason


def test_where_no_trial_can_be_paid_it_grows_at_the_fixed_fraction():
    growth = begin(cost_limit=0.03)
    assert (growth.state.method, growth.trial, growth.next_look) == ("fixed", None, 1500)
    assert growth.ask(1500).step == 1500
    assert "one trial 4.2%, neither within the limit of 3.0% of the run" in growth.ask(1500).plan(0.02, FACTORS).reason


def test_a_trial_that_does_not_fit_into_what_is_left_is_not_asked_for():
    growth = begin(trial_share=0.75, cost_limit=1.0)
    assert growth.trial is None
    assert "none fits into what is left" in growth.state.why
    assert growth.ask(1500).step == 1500


def test_forecasts_are_never_asked_for_however_large_the_budget():
    growth = begin(total_flops=1e6 * GROWN)
    assert growth.state.method == "slopes"
    assert growth.trial is not None
    assert growth.state.why.startswith(
        "forecasts from a minibatch do not hold over such a run; a lost trial costs 4.0%, 1 "
    )


def test_the_next_question_comes_after_the_end_of_a_trial_that_lost():
    growth = begin(trial_share=0.4, cost_limit=0.41)
    lost = growth.ask(growth.next_look, **LOSES)
    assert lost.state.fixed_step == 3000
    assert lost.next_look == growth.trial.small_end == 3500


def test_rates_are_falls_of_the_log_loss_per_flop_averaged_over_sources_and_paired_over_batches():
    told = losses(0.02, 0.021, seed=3)
    decision = begin().ask(1500, **told).decisions[-1]
    fall = {name: np.log(told[name][0]) - np.log(told[name][1]) for name in told}
    ahead = fall["grown"] / (80 * GROWN) - fall["small"].mean(axis=0) / (100 * 2 * SMALL)
    # rates per FLOP are far below the absolute tolerance that approx has by default
    assert decision.value == pytest.approx(ahead.mean(), rel=1e-9, abs=0)
    assert decision.standard_error == pytest.approx(ahead.std(ddof=1) / math.sqrt(8), rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("step", "told", "words"),
    [
        (1400, WINS, "asked at step 1500, not at 1400"),
        (1500, {}, "wants the losses of a trial"),
        (1500, {"small": WINS["small"]}, "wants the losses of a trial"),
        (1500, WINS | {"small": WINS["small"][:, :1]}, r"should have \(2, 2, batches\)"),
        (1500, WINS | {"small": WINS["small"] * np.nan}, "not positive and finite"),
        (1500, WINS | {"grown": WINS["grown"] * 0}, "not positive and finite"),
    ],
)
def test_what_it_did_not_ask_for_is_refused(step, told, words):
    with pytest.raises(fc.InputError, match=words):
        begin().ask(step, **told)


def test_losses_are_refused_where_it_wants_none():
    with pytest.raises(fc.InputError, match="wants no losses"):
        begin(cost_limit=0.03).ask(1500, **WINS)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batches": 1}, "batches is 1; it must be at least 2"),
        ({"sources": 0}, "sources is 0"),
        ({"dispatch": 0}, "dispatch is 0"),
        ({"trial_share": 1.0}, "share of the budget is 1.0"),
        ({"small_flops": 0.0}, "small_flops is 0.0; FLOPs are positive"),
        ({"total_flops": 1e9}, "pays for no dispatch of 10 small steps"),
    ],
)
def test_settings_that_make_no_run_are_refused(changed, words):
    with pytest.raises(fc.InputError, match=words):
        begin(**changed)


@pytest.mark.parametrize("told", [WINS, LOSES])
@pytest.mark.parametrize("limit", [0.03, 0.05, 0.5])
def test_a_run_that_is_interrupted_anywhere_goes_on_from_the_file(tmp_path, told, limit):
    states = follow(begin(cost_limit=limit), told)
    for state in states:
        state.save(tmp_path / "online.json")
        assert "NaN" not in (tmp_path / "online.json").read_text()
        read = OnlineGrowth.load(tmp_path / "online.json")
        # nan is not itself, so by what is written
        read.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_text() == (tmp_path / "online.json").read_text()
        assert (read.next_look, read.trial, read.step, read.kept) == (
            state.next_look,
            state.trial,
            state.step,
            state.kept,
        )
        assert read.plan(0.02, FACTORS) == state.plan(0.02, FACTORS)
        assert follow(read, told)[-1].plan(0.02, FACTORS) == states[-1].plan(0.02, FACTORS)


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "{}", '{"state": {}}', json.dumps({"state": {"method": "slopes"}})]
)
def test_a_file_that_is_no_state_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "online.json").write_text(content)
    with pytest.raises(fc.InputError, match=r"online\.json is no state of the online rule"):
        OnlineGrowth.load(tmp_path / "online.json")
