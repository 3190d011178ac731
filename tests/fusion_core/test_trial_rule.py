"""The rule of trials for a run, with losses that are made up: what it needs, decides, charges and keeps on disk."""

import json
import math

import numpy as np
import pytest

import fusion_core as fc
from fusion_core.schedule import GrowthDecision, TrialRule, follow_rule, stops_of

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
    return TrialRule.start(**settings | changed)


def losses(small_fall, grown_fall, batches=8, seed=0):
    """Losses of two sources and the grown network, whose logarithms fall by this much over the trial's second half."""
    rng = np.random.default_rng(seed)
    before = np.exp(rng.normal(1.0, 0.1, (3, batches)))
    falls = np.asarray([small_fall, small_fall, grown_fall])[:, None] + rng.normal(0, 1e-3, (3, batches))
    both = np.stack([before, before * np.exp(-falls)])
    return {"small": both[:, :2], "grown": both[:, 2]}


WINS, LOSES = losses(0.01, 0.05), losses(0.05, 0.01)


def follow(rule, given):
    """Every state until it is decided, with the same losses at each trial."""
    states = [rule]
    while (step := rule.next_decision) is not None:
        rule = rule.decide(step, **({} if rule.trial is None else given))
        states.append(rule)
    return states


def test_a_trial_is_the_stated_share_of_the_budget_and_as_many_flops_for_the_sources():
    growth = begin()
    assert growth.state.method == "trials"
    assert growth.next_decision == 1500  # 30 % of 5,000 small steps
    trial = growth.trial
    assert trial.grown_end - trial.step == growth.trial_steps == 160
    assert trial.grown_half - trial.step == 80
    assert trial.small_half - trial.step == trial.small_end - trial.small_half == 100
    assert 2 * 100 * SMALL == 80 * GROWN
    # 2 times 8 batches, the grown network and two sources, a third of a gradient each
    assert growth.state.trial_cost * BUDGET == pytest.approx(160 + 16 * (1 + 0.8) / 3)


def test_what_it_needs_lies_on_the_dispatch_grid():
    growth = begin(small_flops=0.37e9, dispatch=30)
    for step in growth.trial:
        assert step % 30 == 0
    assert growth.next_decision % 30 == 0
    assert 0 <= growth.next_decision - 0.3 * growth.state.last_step < 30


def test_a_trial_that_wins_is_grown_from_and_costs_nothing():
    growth = begin().decide(1500, **WINS)
    assert growth.step == 1500
    assert growth.next_decision is None
    assert growth.kept == begin().trial
    assert growth.lost_trials == ()
    assert growth.lost_flops == 0
    decision = growth.decision(0.02, FACTORS)
    assert decision == GrowthDecision(1500, 0.02, {"q": 0.5}, decision.reason, "online")
    assert decision.reason.startswith(
        "Grow at step 1500: after the transient the grown network's loss falls faster per FLOP"
    )
    assert decision.reason.endswith("0.02 as before, times 0.5 in q, with which the function goes on at its velocity.")


def test_a_trial_that_loses_is_charged_and_growth_follows_at_twice_the_step():
    lost = begin().decide(1500, **LOSES)
    assert lost.step is None
    assert lost.lost_flops == pytest.approx(lost.state.trial_cost * BUDGET * GROWN)
    assert (lost.next_decision, lost.trial, lost.kept) == (3000, None, None)
    decision = lost.decision(0.02, FACTORS)
    assert decision == GrowthDecision(None, None, {}, lost.decisions[-1].reason, "online")
    # what the limit pays for is said whatever comes of it
    assert decision.reason.endswith(f"no further trial can be paid; {begin().state.why}.")
    grown = lost.decide(3000)
    assert grown.step == 3000
    assert grown.kept is None
    assert grown.lost_trials == (1500,)
    assert grown.lost_flops == lost.lost_flops
    assert "the small networks' loss falls faster per FLOP" in grown.decision(0.02, FACTORS).reason
    assert "at step 1500 and no further trial can be paid" in grown.decision(0.02, FACTORS).reason


def test_where_every_trial_loses_it_never_grows_and_says_so():
    states = follow(begin(cost_limit=0.5), LOSES)
    end = states[-1]
    assert end.trials == end.lost_trials == (1500, 3000)
    assert [s.next_decision for s in states] == [1500, 3000, 5000, None]
    assert end.step is None
    assert end.lost_flops == pytest.approx(2 * end.state.trial_cost * BUDGET * GROWN)
    reason = end.decision(0.02, FACTORS).reason
    assert reason.startswith("Not within this budget")
    assert "no later trial fits" in reason


def test_where_no_trial_can_be_paid_it_grows_at_the_fixed_fraction():
    growth = begin(cost_limit=0.03)
    assert (growth.state.method, growth.trial, growth.next_decision) == ("fixed", None, 1500)
    assert growth.decide(1500).step == 1500
    assert "a lost trial would cost 4.2%, above the limit of 3.0% of the run" in growth.decide(1500).reason


def test_there_is_no_trial_that_does_not_fit_into_what_is_left():
    growth = begin(trial_share=0.75, cost_limit=1.0)
    assert growth.trial is None
    assert "no trial at step 1500 fits into what is left" in growth.reason
    assert growth.decide(1500).step == 1500


def test_the_next_decision_comes_after_the_end_of_a_trial_that_lost():
    growth = begin(trial_share=0.4, cost_limit=0.41)
    lost = growth.decide(growth.next_decision, **LOSES)
    assert lost.next_decision == growth.trial.small_end == 3500


def test_rates_are_falls_of_the_log_loss_per_flop_averaged_over_sources_and_paired_over_batches():
    given = losses(0.02, 0.021, seed=3)
    decision = begin().decide(1500, **given).decisions[-1]
    fall = {name: np.log(given[name][0]) - np.log(given[name][1]) for name in given}
    ahead = fall["grown"] / (80 * GROWN) - fall["small"].mean(axis=0) / (100 * 2 * SMALL)
    # rates per FLOP are far below the absolute tolerance that approx has by default
    assert decision.value == pytest.approx(ahead.mean(), rel=1e-9, abs=0)
    assert decision.standard_error == pytest.approx(ahead.std(ddof=1) / math.sqrt(8), rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("step", "given", "words"),
    [
        (1400, WINS, "decides at step 1500 next, not at 1400"),
        (1500, {}, "needs the losses of a trial"),
        (1500, {"small": WINS["small"]}, "needs the losses of a trial"),
        (1500, WINS | {"small": WINS["small"][:, :1]}, r"should have \(2, 2, batches\)"),
        (1500, WINS | {"small": WINS["small"] * np.nan}, "not positive and finite"),
        (1500, WINS | {"grown": WINS["grown"] * 0}, "not positive and finite"),
    ],
)
def test_what_it_does_not_need_is_refused(step, given, words):
    with pytest.raises(fc.InputError, match=words):
        begin().decide(step, **given)


def test_losses_are_refused_where_it_needs_none():
    with pytest.raises(fc.InputError, match="needs no losses"):
        begin(cost_limit=0.03).decide(1500, **WINS)


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


@pytest.mark.parametrize("given", [WINS, LOSES])
@pytest.mark.parametrize("limit", [0.03, 0.05, 0.5])
def test_a_run_that_is_interrupted_anywhere_goes_on_from_the_file(tmp_path, given, limit):
    states = follow(begin(cost_limit=limit), given)
    for state in states:
        state.save(tmp_path / "rule.json")
        assert "NaN" not in (tmp_path / "rule.json").read_text()
        read = TrialRule.load(tmp_path / "rule.json")
        # nan is not itself, so by what is written
        read.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_text() == (tmp_path / "rule.json").read_text()
        assert (read.next_decision, read.trial, read.step, read.kept) == (
            state.next_decision,
            state.trial,
            state.step,
            state.kept,
        )
        assert read.decision(0.02, FACTORS) == state.decision(0.02, FACTORS)
        assert follow(read, given)[-1].decision(0.02, FACTORS) == states[-1].decision(0.02, FACTORS)


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "{}", '{"state": {}}', json.dumps({"state": {"method": "trials"}})]
)
def test_a_file_that_is_no_state_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "rule.json").write_text(content)
    with pytest.raises(fc.InputError, match=r"rule\.json is no state of the rule of trials"):
        TrialRule.load(tmp_path / "rule.json")


@pytest.mark.parametrize("given", [WINS, LOSES])
@pytest.mark.parametrize("limit", [0.03, 0.05, 0.5])
def test_following_the_rule_trains_what_it_needs_and_saves_every_state(given, limit):
    """Interrupted and called again after every save, it does the same."""
    done, saved = [], []

    def save(rule):
        saved.append(rule)
        raise KeyboardInterrupt

    rule = begin(cost_limit=limit)
    work = {
        "train_sources": lambda step: done.append(step),
        "source_losses": lambda trial, step: given["small"][[trial.small_half, trial.small_end].index(step)],
        "grown_losses": lambda trial: given["grown"],
    }
    while rule.next_decision is not None:
        assert stops_of(rule) >= {rule.next_decision, *(rule.trial or ())[:3]}
        with pytest.raises(KeyboardInterrupt):
            follow_rule(rule, **work, save=save)
        rule = saved[-1]
    wanted = follow(begin(cost_limit=limit), given)
    assert [r.reason for r in saved] == [r.reason for r in wanted[1:]]
    assert done == [r.next_decision if r.trial is None else r.trial.small_end for r in wanted[:-1]]
    assert rule.step is None or rule.step in stops_of(rule)
    assert follow_rule(rule, **work, save=save) == rule
