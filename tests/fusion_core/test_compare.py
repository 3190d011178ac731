"""Arms, their costs and their savings, on runs made by hand."""

import pytest

from fusion_core.runs import compare_arms
from fusion_core.runs.compare import arm_of, arms_of
from tests.strategies.nodes import GROWTH, trained


def run(shift=0.0):
    """A source of 20 steps at 1 FLOP, fused with itself; then 10 steps at 4 FLOPs; against 20 such steps from scratch."""
    return {
        "small": trained([], 0, [5.0, 4.0, 3.0], step_flops=1.0),
        "fused": GROWTH | {"inputs": ["small"]},
        "grown": trained(["fused"], 20, [3.0, 1.0], step_flops=4.0, pace=2.0, arm="ours"),
        "scratch": trained([], 0, [5.0, 3.0, 2.0 + shift], step_flops=4.0, pace=2.0),
        "alone": trained(["small"], 20, [3.0, 2.9], step_flops=1.0),
    }


def test_arms_are_the_named_nodes_and_those_without_successors():
    assert arms_of(run()) == {"ours": "grown", "scratch": "scratch", "alone": "alone"}


def test_a_curve_goes_back_to_the_last_growth_or_the_random_start():
    nodes = run()
    grown, alone = arm_of(nodes, "grown"), arm_of(nodes, "alone")
    assert (grown.chain, grown.sources, grown.before) == (("grown",), ("small", "fused"), (20.0, 20.0))
    assert grown.points == ((20.0, 20.0, 3.0), (60.0, 40.0, 1.0))
    assert (alone.chain, alone.sources, alone.before) == (("small", "alone"), (), (0.0, 0.0))
    assert alone.points[-1] == (30.0, 30.0, 2.9)
    assert len(alone.points) == 5


def test_savings_are_at_the_other_arms_final_loss_with_sources_paid_and_given():
    """Loss 2 is half-way between 20 and 60 FLOPs (40 of scratch's 80), and 20 of the 40 are the source's."""
    found = compare_arms([run()], 80.0)
    saving = next(s for s in found["savings"] if (s["arm"], s["other"]) == ("ours", "scratch"))
    assert saving["flops_paid"]["mean"] == pytest.approx(1 - 40 / 80)
    assert saving["flops_given"]["mean"] == pytest.approx(1 - 20 / 80)
    assert saving["wall_paid"]["mean"] == pytest.approx(1 - 30 / 40)
    assert saving["wall_given"]["mean"] == pytest.approx(1 - 10 / 40)
    assert saving["difference"]["mean"] == pytest.approx(-1.0)
    never = next(s for s in found["savings"] if (s["arm"], s["other"]) == ("alone", "scratch"))
    assert never["flops_paid"] == {"mean": None, "standard_error": None, "values": [None]}
    ours = next(arm for arm in found["arms"] if arm["name"] == "ours")
    assert (ours["grown_at"]["mean"], ours["share"]["mean"]) == (20.0, pytest.approx(60 / 80))
    assert next(arm for arm in found["arms"] if arm["name"] == "alone")["grown_at"] is None


def test_seeds_give_means_standard_errors_and_paired_differences():
    found = compare_arms([run(), run(shift=0.5)], None)
    scratch = next(arm for arm in found["arms"] if arm["name"] == "scratch")
    assert scratch["loss"] == {"mean": 2.25, "standard_error": pytest.approx(0.25), "values": [2.0, 2.5]}
    assert scratch["share"] is None
    saving = next(s for s in found["savings"] if (s["arm"], s["other"]) == ("ours", "scratch"))
    assert saving["difference"]["values"] == pytest.approx([-1.0, -1.5])
    assert saving["flops_paid"]["values"] == pytest.approx([1 - 40 / 80, 1 - 30 / 80])


def test_lost_trials_are_paid_by_the_arm_that_grew():
    nodes = run()
    nodes["grown"] |= {"lost_flops": 8.0, "flops": 48.0}
    grown = arm_of(nodes, "grown")
    assert [flops for flops, _, _ in grown.points] == [28.0, 68.0]
