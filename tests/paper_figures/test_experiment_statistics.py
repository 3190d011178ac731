"""Losses at a budget and savings, on curves made by hand."""

import math

import numpy as np
import pytest

from fusion_core.errors import InputError
from paper_figures.experiments import statistics
from paper_figures.experiments.statistics import estimate, paths_of, saving, tuned
from tests.strategies.nodes import GROWTH, trained


def run(shift=0.0):
    """Two sources of 10 steps at 1 FLOP, of 10 and 30 seconds, fused; against 10 steps of 10 FLOPs from scratch."""
    return {
        "a": trained([], 0, [5.0, 4.0]),
        "b": trained([], 0, [5.0, 4.0], pace=3.0),
        "fused": GROWTH | {"inputs": ["a", "b"]},
        "grown": trained(["fused"], 10, [4.0, 3.0, 2.0 + shift], step_flops=2.0, pace=2.0),
        "scratch_0.02": trained([], 0, [5.0, 3.0, 3.2, 2.5], step_flops=4.0),
        "scratch_0.04": trained([], 0, [5.0, 2.9, 3.0, 2.6], step_flops=4.0),
        "never": trained([], 0, [5.0, 4.0], step_flops=12.0),
    }


def test_a_loss_at_a_budget_is_the_lowest_so_far_and_linear_between_evaluations():
    scratch = paths_of(run())["scratch_0.02"]
    assert scratch.loss_at(0) == 5.0
    assert scratch.loss_at(20) == 4.0
    assert scratch.loss_at(60) == 3.0  # the curve rises from 3 to 3.2
    assert scratch.loss_at(120) == 2.5
    assert scratch.loss_at(121) == 2.5  # a budget is a whole number of dispatches
    assert scratch.loss_at(140) is None
    assert paths_of(run())["grown"].loss_at(19) is None  # before it is grown, with both sources paid


def test_a_saving_counts_sources_as_it_says():
    paths = paths_of(run())
    found = saving(
        paths["grown"], paths["scratch_0.02"], 40.0
    )  # scratch has 3.0 there; grown reaches it at 20 + 20 FLOPs
    assert found.reached
    assert found.paid == pytest.approx(0.0)
    assert found.given == pytest.approx(0.5)
    assert found.side_by_side == pytest.approx(1 - 30 / 40)
    assert found.wall == pytest.approx(1 - (10 + 30 + 20) / 10)  # scratch takes 10 seconds to 40 FLOPs
    assert found.wall_side_by_side == pytest.approx(1 - (30 + 20) / 10)


def test_a_saving_does_not_reward_a_curve_that_rose_again():
    paths = paths_of(run())
    late = saving(paths["grown"], paths["scratch_0.02"], 80.0)  # scratch: 3.2 at 80, but 3.0 before
    assert late.paid == pytest.approx(1 - 40 / 80)


def test_a_loss_that_is_not_reached_gives_an_upper_bound_and_one_after_the_budget_a_negative_saving():
    paths = paths_of(run())
    bound = saving(paths["never"], paths["scratch_0.02"], 120.0)
    assert not bound.reached
    assert bound.paid == pytest.approx(1 - 120 / 120)
    after = saving(paths["grown"], paths["scratch_0.04"], 36.0)  # 3.11 is reached at 37.8
    assert after.reached
    assert after.paid == pytest.approx(1 - 37.8 / 36)
    assert saving(paths["grown"], paths["scratch_0.02"], 18.0) is None  # it is grown at 20
    assert saving(paths["a"] if "a" in paths else paths["never"], paths["scratch_0.02"], 119.0).paid <= 0


def test_an_arm_that_ends_before_the_budget_without_reaching_has_no_saving():
    nodes = run()
    nodes["never"] = trained([], 0, [5.0, 4.0], step_flops=5.0)
    paths = paths_of(nodes)
    assert saving(paths["never"], paths["scratch_0.02"], 120.0) is None
    with pytest.raises(InputError, match=r"from scratch trains to 50 FLOPs, less than 120"):
        saving(paths["grown"], paths["never"], 120.0)


def test_the_tuned_scratch_network_is_another_at_another_budget():
    arms = statistics.arms_over_seeds({"0": run(), "1": run()})
    assert tuned(arms, 40.0) == "scratch_0.04"
    assert tuned(arms, 120.0) == "scratch_0.02"
    del arms["scratch_0.02"]["1"]  # one seed does not beat two by luck
    assert tuned(arms, 120.0) == "scratch_0.04"
    with pytest.raises(InputError, match="begins with 'scratch' trains to 1e\\+03 FLOPs; there are"):
        tuned(arms, 1000.0)


def test_an_interval_is_students_and_is_missing_where_a_value_is_a_bound():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.standard_error) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert found.interval[1] - 2.0 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert estimate([1.0, 2.0, 3.0], reached=2).interval is None
    assert not estimate([1.0, 2.0, 3.0], reached=2).complete
    assert estimate([1.0]).interval is None
    assert estimate([]) is None
    assert estimate([1.0, np.nan]) is None


def test_the_head_start_rule_grows_where_the_lead_is_largest():
    nodes = {
        "small": trained([], 0, [5.0, 4.0, 3.4, 3.1]),
        "scratch": trained([], 0, [5.0, 4.5, 4.0, 3.5, 3.0]),
    }
    paths = paths_of(nodes)
    leads = statistics.lead(paths["small"], paths["scratch"])
    assert leads == [(0, 0.0), (10, 10.0), (20, pytest.approx(12.0)), (30, pytest.approx(8.0))]
    assert statistics.head_start(paths["small"], paths["scratch"]) == 20
    assert statistics.head_start(paths["scratch"], paths["small"]) == 0.0


def test_the_saving_of_mean_curves_is_that_of_the_averaged_losses_with_the_jackknifes_interval():
    scratch = [paths_of({"s": trained([], 0, [5.0, last], step_flops=4.0)})["s"] for last in (2.0, 3.0, 4.0)]
    fast = [paths_of({"s": trained([], 0, [5.0, last], step_flops=4.0)})["s"] for last in (1.0, 1.0, 1.0)]
    assert [loss for _, _, loss in statistics.mean_path(scratch).arm.points] == [5.0, 3.0]
    value, reached, (low, high) = statistics.saving_of_means(fast, scratch, 40.0)
    assert reached
    assert value == pytest.approx(0.5)  # from 5 to 3 of 5 to 1
    left = np.array([1 - 1.5 / 4, 1 - 2.0 / 4, 1 - 2.5 / 4])  # without a seed the mean scratch loss is 3.5, 3 or 2.5
    half = 4.3027 * math.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
    assert (low, high) == pytest.approx((value - half, value + half), rel=1e-4)
    slow, not_reached, interval = statistics.saving_of_means(scratch, fast, 40.0)
    assert (slow, not_reached, interval) == (pytest.approx(0.0), False, None)
    assert statistics.saving_of_means(fast[:1], scratch[:1], 40.0)[2] is None
