"""Laws of growth from the curves of runs: lengths and sources are counted right, and a law is asked of its own facts alone."""

import dataclasses
import json

import numpy as np
import pytest

from fusion_core.errors import InputError
from fusion_core.schedule import LawFacts, SavedLaw, fit_law, run_curves

LARGE, SMALL = 3e9, 1e9  # FLOPs of a step
FACTS = LawFacts(
    text="abc",
    optimizer={"name": "adafactor", "rate": 0.02},
    schedule={"kind": "constant", "warmup": 0},
    batch=16,
    length=128,
    small={"d_model": 32},
    large={"d_model": 64},
    growth={"noise": 0.3},
)


def law(n1, n2):
    return 2.0 + 8.0 * (n2 + 20.0 * n1**0.6) ** -0.3


def trained(inputs, start, steps, cost, loss_at, every=20, **more):
    """Return a node that trains and is evaluated every few steps, its first and last one included."""
    losses = [(start + step, float(loss_at(step))) for step in range(0, steps + 1, every)]
    return {
        "kind": "train", "inputs": inputs, "start": start, "step": start + steps, "step_flops": cost,
        "flops": steps * cost, "validation_loss": losses, **more,
    }  # fmt: skip


def nodes_of(factor=1.0):
    """Return the nodes of a seed: scratch, a small network in two pieces, and one grown after each of some numbers of steps."""
    small = lambda step: factor * law(step * SMALL / LARGE, 0) if step else 7.0
    nodes = {
        "scratch": trained([], 0, 600, LARGE, lambda step: factor * law(0, step) if step else 7.0),
        "first": trained([], 0, 300, SMALL, small),
        "small": trained(["first"], 300, 900, SMALL, lambda step: small(300 + step)),
    }
    for steps in (60, 300, 600):
        n1 = steps * SMALL / LARGE
        nodes |= {
            f"source_{steps}": trained([], 0, steps, SMALL, small),
            f"fuse_{steps}": {
                "kind": "fuse", "inputs": [f"source_{steps}"], "start": steps, "step": steps, "step_flops": 0.0,
                "flops": 0.0, "validation_loss": [],
            },
            f"grown_{steps}": trained([f"fuse_{steps}"], steps, 400, LARGE, lambda step, n1=n1: factor * law(n1, step)),
        }  # fmt: skip
    return nodes


GROWN = ("grown_60", "grown_300", "grown_600")
ALL = {"scratch": "scratch", "small": "small", "grown": GROWN}


def seeds():
    return {str(seed): nodes_of(1 + 0.002 * seed) for seed in range(2)}


@pytest.fixture(scope="module")
def saved():
    return fit_law("head_start", run_curves(seeds(), **ALL), FACTS, draws=5)


def test_lengths_are_flops_in_large_steps_and_pieces_of_a_run_are_one_curve():
    curves = run_curves(seeds(), **ALL)
    assert curves.unit == LARGE
    assert [len(curve) for curve in curves.small] == [61, 61]
    np.testing.assert_allclose(curves.small[0][[0, 15, -1], 0], [0, 100, 400])
    np.testing.assert_allclose([n1 for n1, _ in curves.grown], [20, 20, 100, 100, 200, 200])
    np.testing.assert_allclose(curves.grown[2][1][[0, -1]], [[0, law(100, 0)], [400, law(100, 400)]])


def test_sources_that_two_branches_share_are_paid_once_and_lost_trials_are_paid():
    nodes = nodes_of()
    nodes["other"] = trained(["source_60"], 60, 60, SMALL, lambda step: 3.0)
    nodes["fuse_60"]["inputs"] = ["source_60", "other"]
    nodes["grown_60"]["lost_flops"] = 5 * LARGE
    assert run_curves({"0": nodes}, grown=("grown_60",)).grown[0][0] == pytest.approx(20 + 20 + 5)


def test_points_of_long_runs_of_the_first_fall_and_of_a_plateau_are_left_out():
    curves = run_curves(seeds(), **ALL)
    n1, n2, loss, run = curves.points(longest=300.0, skip=0.2, below=3.5)
    assert (n1 + n2).max() == pytest.approx(300)
    assert (n1 + n2).min() >= 60
    assert loss.max() < 3.5
    assert (n1 == 0).any()
    assert (n2 == 0).any()
    kept = {number: n1[run == number][0] for number in np.unique(run)}
    assert len(kept) == 10
    assert len(curves.points()[0]) > len(n1)


def test_the_law_of_runs_says_the_losses_at_a_longer_budget(saved, tmp_path):
    saved.save(tmp_path / "law.json")
    loaded = SavedLaw.load(tmp_path / "law.json")
    said = loaded.forecast(2000 * LARGE, 100 * LARGE, facts=FACTS)
    assert said.scratch.value == pytest.approx(law(0, 2000), rel=0.005)
    assert said.never.value == pytest.approx(law(2000, 0), rel=0.005)
    assert said.grow_now.value == pytest.approx(law(100, 1900), rel=0.005)
    assert said.grow_best.value == pytest.approx(law(499, 1501), rel=0.005)
    assert said.share.low <= 499 / 2000 + 0.01
    assert said.share.high >= 499 / 2000 - 0.01
    assert loaded.points == {"longest": None, "skip": 0.1, "below": None}
    again = saved.forecast(2000 * LARGE, 100 * LARGE, facts=FACTS)
    assert again.grow_best == pytest.approx(said.grow_best, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"text": "xyz"},
            r"fitted on another text or tokenizer \(abc, here xyz\); fit a law to short runs of this plan",
        ),
        ({"optimizer": {"name": "adamw"}}, r"another optimizer \(name adafactor, rate 0.02, here name adamw\)"),
        ({"schedule": {"kind": "rsqrt", "warmup": 0}}, "another schedule"),
        ({"batch": 32}, r"another batch \(16, here 32\)"),
        ({"large": {"d_model": 128}}, "another large"),
        ({"growth": {}}, r"another growth \(noise 0.3, here none\)"),
    ],
)
def test_a_law_of_other_facts_is_refused_in_one_line(saved, change, words):
    with pytest.raises(InputError, match=words) as error:
        saved.forecast(2000 * LARGE, facts=dataclasses.replace(FACTS, **change))
    assert "\n" not in str(error.value)


def test_a_text_that_is_not_known_and_a_growth_that_was_not_fitted_are_not_compared(saved):
    saved.check(dataclasses.replace(FACTS, text=None))
    facts = dataclasses.replace(FACTS, growth={})
    alone = fit_law("curves", run_curves(seeds(), scratch="scratch", small="small"), facts, draws=2)
    alone.check(FACTS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "there is no large network among the nodes"),
        ({"scratch": "absent"}, "seed 0 has no node absent; name one of scratch"),
        ({"scratch": "grown_60"}, "the node grown_60 has a growth before it: it is grown"),
        ({"grown": ("scratch",)}, "the node scratch has no growth before it: it is from a random start"),
        ({"scratch": "first", "grown": ("grown_60",)}, "take networks of one size and batch"),
    ],
)
def test_nodes_that_are_not_what_they_are_named_as_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        run_curves(seeds(), **arguments)


def test_runs_that_tell_no_law_are_refused():
    curves = run_curves(seeds(), **ALL)
    few = run_curves(seeds(), scratch="scratch", grown=GROWN[:2])
    with pytest.raises(
        InputError, match="no law can be fitted: the law head_start needs runs grown at 3 steps or more"
    ):
        fit_law("head_start", few, FACTS)
    with pytest.raises(InputError, match="there are 4 points of scratch, but a fit needs 6; evaluate more often"):
        fit_law("curves", run_curves(seeds(), scratch="scratch", small="small"), FACTS, longest=40.0)
    with pytest.raises(InputError, match="the schedule cosine ends with its budget"):
        fit_law("head_start", curves, dataclasses.replace(FACTS, schedule={"kind": "cosine"}))


def test_files_that_hold_no_law_are_refused(saved, tmp_path):
    file = tmp_path / "law.json"
    with pytest.raises(InputError, match=r"there is no law .*law\.json; fit a law to short runs"):
        SavedLaw.load(file)
    saved.save(file)
    values = json.loads(file.read_text())
    for change, words in (({"format": 9}, "its format is 9"), ({"law": {}}, "is no law"), ({"facts": {}}, "is no law")):
        file.write_text(json.dumps(values | change))
        with pytest.raises(InputError, match=words):
            SavedLaw.load(file)
