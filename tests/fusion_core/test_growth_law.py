"""Laws of growth from the curves of runs: lengths and sources are counted right, and a law is asked of its own facts alone."""

import dataclasses
import json
import math

import numpy as np
import pytest

from fusion_core.errors import InputError
from fusion_core.schedule import LawFacts, Plateaus, SavedLaw, fit_law, run_curves

LARGE, SMALL = 3e9, 1e9  # FLOPs of a step
TRAINING = {"optimizer": {"name": "adafactor", "rate": 0.02}, "schedule": {"kind": "constant", "warmup": 0}}
FACTS = LawFacts(
    text="abc",
    batch=16,
    length=128,
    small={"d_model": 32},
    large={"d_model": 64},
    training={"small": TRAINING, "scratch": TRAINING, "grown": TRAINING},
    growth={"noise": 0.3, "rates": "keep"},
)


def changed(role, **settings):
    return {**FACTS.training, role: {**TRAINING, **settings}}


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
ALL = {"scratch": ["scratch"], "small": ["small"], "grown": GROWN}


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
    n1, n2, loss, run = curves.points(longest=300.0, skip=0.2, below=Plateaus(3.5, 3.45))
    assert (n1 + n2).max() == pytest.approx(300)
    assert (n1 + n2).min() >= 60
    assert loss[n2 > 0].max() < 3.5
    assert loss[n2 == 0].max() < 3.45
    assert (n1 == 0).any()
    assert (n2 == 0).any()
    assert len(np.unique(run)) == 10
    assert len(curves.points()[0]) > len(n1)


def flat_first(curve, until):
    """Return a curve that stands still before a length."""
    at = np.interp(until, *curve.T)
    return np.column_stack(
        [curve[:, 0], np.where(curve[:, 0] < until, at + 0.0001 * (until - curve[:, 0]), curve[:, 1])]
    )


def test_a_law_is_fitted_from_where_the_curves_have_left_their_plateaus():
    curves = run_curves(seeds(), scratch=["scratch"], small=["small"])
    assert curves.plateaus() == Plateaus(math.inf, math.inf)
    flat = dataclasses.replace(curves, scratch=tuple(flat_first(curve, 300) for curve in curves.scratch))
    found = flat.plateaus()
    assert found.small == math.inf
    assert law(0, 420) < found.large < law(0, 280)
    fitted = fit_law("curves", flat, FACTS, draws=2)
    assert fitted.points["large"] == found.large
    assert fitted.points["small"] is None
    wrong = fit_law("curves", flat, FACTS, draws=2, plateau=True)
    error = lambda one: abs(one.law.predict(0.0, 2000.0).value / law(0, 2000) - 1)
    assert error(fitted) < 0.01 < error(wrong)
    with pytest.raises(
        InputError, match=r"the large network from scratch is still on its plateau: it leaves its plateau at [23]"
    ):
        fit_law("curves", flat, FACTS, longest=320.0)


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
    assert loaded.points == {"longest": None, "skip": 0.1, "large": None, "small": None}
    again = saved.forecast(2000 * LARGE, 100 * LARGE, facts=FACTS)
    assert again.grow_best == pytest.approx(said.grow_best, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"text": "xyz"},
            r"fitted on another text or tokenizer \(abc, here xyz\); train short runs with these settings",
        ),
        (
            {"training": changed("small", optimizer={"name": "adamw", "rate": 0.02})},
            r"another optimizer of the small network \(name adafactor, here name adamw\)",
        ),
        (
            {"training": changed("grown", schedule={"kind": "rsqrt", "warmup": 0})},
            r"another schedule of the grown network \(kind constant, here kind rsqrt\)",
        ),
        ({"batch": 32}, r"another batch \(16, here 32\)"),
        ({"large": {"d_model": 128}}, r"another large network \(d_model 64, here d_model 128\)"),
        ({"growth": {"noise": 0.5, "rates": "keep"}}, r"another recipe of growth \(noise 0.3, here noise 0.5\)"),
        ({"growth": {}}, r"another recipe of growth \(noise 0.3, rates keep, here noise none, rates none\)"),
    ],
)
def test_a_law_of_other_facts_is_refused_in_one_line(saved, change, words):
    with pytest.raises(InputError, match=words) as error:
        saved.forecast(2000 * LARGE, facts=dataclasses.replace(FACTS, **change))
    assert "\n" not in str(error.value)


def test_a_text_that_is_not_known_and_a_growth_that_was_not_fitted_are_not_compared(saved):
    saved.check(dataclasses.replace(FACTS, text=None))
    saved.check(dataclasses.replace(FACTS, training={"small": TRAINING}))
    assert "of one recipe of growth (noise 0.3, rates keep)" in saved.recipe
    facts = dataclasses.replace(FACTS, growth={})
    alone = fit_law("curves", run_curves(seeds(), scratch=["scratch"], small=["small"]), facts, draws=2)
    alone.check(FACTS)
    assert "No grown run was fitted" in alone.recipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "there is no large network among the nodes"),
        ({"scratch": ["absent"]}, "seed 0 has no node absent; name one of scratch"),
        ({"scratch": ["grown_60"]}, "the node grown_60 has a growth before it: it is grown"),
        ({"grown": ("scratch",)}, "the node scratch has no growth before it: it is from a random start"),
        ({"scratch": ["first"], "grown": ("grown_60",)}, "take networks of one size and batch"),
    ],
)
def test_nodes_that_are_not_what_they_are_named_as_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        run_curves(seeds(), **arguments)


def test_runs_that_tell_no_law_are_refused():
    curves = run_curves(seeds(), **ALL)
    few = run_curves(seeds(), scratch=["scratch"], grown=GROWN[:2])
    with pytest.raises(
        InputError, match="no law can be fitted: the law head_start needs runs grown at 3 steps or more"
    ):
        fit_law("head_start", few, FACTS)
    with pytest.raises(InputError, match="there are 4 points of scratch, but a fit needs 6; evaluate more often"):
        fit_law("curves", run_curves(seeds(), scratch=["scratch"], small=["small"]), FACTS, longest=40.0)
    with pytest.raises(InputError, match="the schedule cosine ends with its budget"):
        fit_law(
            "head_start", curves, dataclasses.replace(FACTS, training=changed("grown", schedule={"kind": "cosine"}))
        )


def test_files_that_hold_no_law_are_refused(saved, tmp_path):
    file = tmp_path / "law.json"
    with pytest.raises(InputError, match=r"there is no law .*law\.json; train short runs"):
        SavedLaw.load(file)
    saved.save(file)
    values = json.loads(file.read_text())
    for change, words in (({"format": 9}, "its format is 9"), ({"law": {}}, "is no law"), ({"facts": {}}, "is no law")):
        file.write_text(json.dumps(values | change))
        with pytest.raises(InputError, match=words):
            SavedLaw.load(file)


def test_a_law_plans_only_if_it_is_sure_enough_and_says_why(saved):
    sure = saved.plan(1200 * LARGE, SMALL, 20, facts=FACTS)
    best = sure.forecast.share.value
    assert sure.holds
    assert sure.step == round(best * 3600 / 20) * 20
    assert f"Grow at step {sure.step:,}: the law of head_start puts the best step at {best:.0%}" in sure.reason
    assert "It may plan: it knows the loss of growing at best to" in sure.reason
    assert sure.forecast.pays
    unsure = dataclasses.replace(saved, law=dataclasses.replace(saved.law, drift=0.2)).plan(
        1200 * LARGE, SMALL, 20, facts=FACTS
    )
    assert not unsure.holds
    assert unsure.step is None
    assert unsure.reason.startswith("The law of head_start does not plan: it knows the loss of growing at best to")
    unknown = dataclasses.replace(saved, law=dataclasses.replace(saved.law, drift=math.nan))
    assert "to no bound" in unknown.plan(1200 * LARGE, SMALL, 20, facts=FACTS).reason


def test_where_the_small_network_is_best_the_law_says_never():
    def slow(nodes):
        """Return the nodes of a seed whose large network learns hardly faster than the small one."""
        for name in ("scratch", *GROWN):
            nodes[name]["validation_loss"] = [(at, 3.0 + 0.9 * loss) for at, loss in nodes[name]["validation_loss"]]
        return nodes

    worse = {seed: slow(nodes) for seed, nodes in seeds().items()}
    fitted = fit_law("curves", run_curves(worse, scratch=["scratch"], small=["small"]), FACTS, draws=5)
    said = fitted.plan(600 * LARGE, SMALL, 20, facts=FACTS)
    assert said.forecast.pays is False
    assert said.step is None
