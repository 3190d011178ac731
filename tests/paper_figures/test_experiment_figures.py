"""The figures of the experiments, from one run of a toy's size."""

import dataclasses
import json
import re

import numpy as np
import pytest

import paper_figures
from fusion_core.errors import InputError
from paper_figures import after_growth, arms, cache, finetune, growth_operators, growth_saves, growth_step, t5_medium
from paper_figures.experiments import comparison, record
from paper_figures.experiments.comparison import SMALL, TUNED, Comparison
from paper_figures.style import style

TABLES = ("t5_medium", "t5_large", "growth_operators")
FIGURES = (*TABLES, "after_growth", "growth_step", "growth_saves")


@pytest.fixture(scope="module")
def computed():
    return {name: paper_figures.FIGURES[name].compute("smoke") for name in FIGURES}


def with_losses(results, **losses):
    """The results with other losses of some arms at the whole budget, a value a seed."""
    loss = results.arrays["loss"].copy()
    for arm, values in losses.items():
        loss[results.config["arms"].index(arm), -1] = values
    return dataclasses.replace(results, arrays=results.arrays | {"loss": loss})


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("name", FIGURES)
def test_results_are_plain_and_the_figure_is_drawn_from_them_alone(computed, name, tmp_path):
    results = computed[name]
    results.save(tmp_path / "r.json")
    loaded = paper_figures.Results.load(tmp_path / "r.json")
    module = paper_figures.FIGURES[name]
    with style():
        figure = module.draw(loaded)
    assert figure.axes
    assert module.finding(loaded) == module.finding(results)
    assert results.config["measured"][0]["versions"]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_draws_every_seed_and_prints_every_number(computed, name):
    results = computed[name]
    found = Comparison(results)
    with style():
        figure = paper_figures.FIGURES[name].draw(results)
    drawn = {tuple(line.get_xdata()) for line in figure.axes[0].lines}
    said = texts(figure)
    for arm in found.others:
        estimate = found.loss(arm)
        assert estimate.values in drawn
        assert any(text.startswith(f"{estimate.mean:.3f} ±") for text in said)


def test_the_finding_says_who_ends_lowest_and_whether_it_is_clear(computed):
    results = with_losses(computed["t5_medium"], two_zero=[1.0, 1.01], **{TUNED: [2.0, 2.02]})
    found = t5_medium.finding(results)
    assert "two sources, zero blocks ends lowest, at 1.005 ±" in found
    assert "1.005 (0.941 to 1.069) below the network from scratch" in found
    unclear = with_losses(computed["t5_medium"], two_zero=[1.0, 1.3], **{TUNED: [1.2, 1.2]})
    assert "0.050 (-1.856 to 1.956), an interval that includes zero, below the network from" in t5_medium.finding(
        unclear
    )


def test_the_finding_says_whether_deep_fusion_is_ahead(computed):
    results = computed["growth_operators"]
    names = {"two_zero": "deep_fusion", "keep_fuse": "aki"}
    config = results.config | {"arms": [names.get(arm, arm) for arm in results.config["arms"]]}
    results = dataclasses.replace(results, config=config)
    ahead = growth_operators.finding(with_losses(results, deep_fusion=[1.0, 1.0], aki=[1.2, 1.3]))
    assert "Deep Fusion's best (Deep Fusion) is ahead of every other operator" in ahead
    behind = growth_operators.finding(with_losses(results, deep_fusion=[1.4, 1.4], aki=[1.2, 1.3]))
    assert "is NOT ahead of every other operator; it ends 0.150 (-0.485 to 0.785)" in behind


def test_a_saving_that_is_a_bound_is_said_to_be_one(computed):
    results = computed["t5_medium"]
    i = results.config["arms"].index("two_zero")
    arrays = {key: results.arrays[key].copy() for key in ("paid", "reached")}
    arrays["paid"][i, -1], arrays["reached"][i, -1] = [0.3, 0.1], [1, 0]
    changed = dataclasses.replace(results, arrays=results.arrays | arrays)
    assert "two sources, zero blocks at most 20 % (reached in 1 of 2) /" in t5_medium.finding(changed)
    arrays["reached"][i, -1] = 1
    assert "two sources, zero blocks 20 % (-107 to 147) /" in t5_medium.finding(changed)


def test_the_best_growth_step_is_said_with_both_ends_and_the_rules_answers(computed):
    results = computed["growth_step"]
    best = with_losses(results, early_600=[1.0, 1.1], **{TUNED: [1.5, 1.5], SMALL: [1.6, 1.6]})
    best.arrays["greedy"] = np.full((3, 2), np.nan)
    best.arrays["greedy"][-1] = [0.25, 0.35]
    said = growth_step.finding(best)
    at = results.arrays["grown_at"][results.config["arms"].index("early_600")] / results.arrays["budgets"][-1]
    assert (
        f"the best growth step is {at:.0%} (recipe early): loss 1.050 ± 0.635, 0.450 (-0.185 to 1.085), an interval"
        in said
    )
    assert "below scratch, below both ends" in said
    assert "greedy rule 30%" in said
    assert "NOT below both ends" in growth_step.finding(with_losses(best, **{TUNED: [0.9, 0.9]}))
    with style():
        figure = growth_step.draw(best)
    assert any(np.array_equal(line.get_xdata(), [0.25, 0.35]) for line in figure.axes[-1].lines)


def test_what_the_online_rule_answered_is_read_from_its_record(computed, monkeypatch):
    results = computed["growth_step"]
    shared, unit = comparison.records_of("growth_step", "smoke")[0], results.config["step_flops"]
    nodes = {}
    for seed, found in shared.seeds.items():
        arm = found["two_zero"] | {"arm": "auto_60", "rule": {"step": 24 if seed == "0" else None}}
        nodes[seed] = {"two_zero": arm, **{n: found[n] for n in ("s15", "b", "f_two_zero")}}
    auto = dataclasses.replace(shared, name="growth_auto", seeds=nodes)
    answers = {key: np.full((3, 2), np.nan) for key in ("online", "online_loss")}
    growth_step._online(auto, unit, results.arrays["budgets"], results.config["seeds"], answers)
    at = shared.seeds["0"]["two_zero"]["before_flops"] / unit / results.arrays["budgets"][-1]
    assert answers["online"][-1] == pytest.approx([at, 1.0], rel=1e-3)
    assert np.isnan(answers["online"][:-1]).all()
    assert answers["online_loss"][-1, 0] == min(loss for _, loss in nodes["0"]["two_zero"]["validation_loss"])


def test_variants_are_judged_against_the_recipe_by_paired_intervals(computed):
    results = computed["after_growth"]
    i = results.config["variants"].index("keep_fuse")
    difference = results.arrays["difference"].copy()
    difference[0, i], difference[1, i] = [-0.2, -0.21], [0.2, 0.21]
    said = after_growth.finding(dataclasses.replace(results, arrays=results.arrays | {"difference": difference}))
    assert "Better than the recipe, the interval below zero: rates kept + state fused -0.205;" in said
    assert re.search(r"worse, above zero: .*rates kept \+ state fused \+0\.205", said)
    reference = results.config["variants"].index(after_growth.REFERENCE)
    assert (results.arrays["difference"][:, reference] == 0).all()


@pytest.mark.parametrize(
    ("name", "is_one", "words"),
    [
        ("rewarm_new_fresh_new", True, "new half re-warmed + new half fresh"),
        ("velocity_fresh", True, "velocity factors + fresh state"),
        ("noise_0.1", True, "noise 0.1"),
        ("two", True, "two sources"),
        ("early_600", False, "early 600"),
        ("keep_calm", False, "keep calm"),
    ],
)
def test_variants_are_known_by_their_names(name, is_one, words):
    assert after_growth.known(name) is is_one
    assert after_growth.words(name) == words


def test_the_headline_shows_the_five_arms_and_labels_do_not_overlap(computed):
    results = computed["growth_saves"]
    shown = results.config["shown"]
    assert list(shown.values()) == [results.config["tuned"][-1], "small", "early_600", "late_1400", "two_zero"]
    with style():
        (axes,) = growth_saves.draw(results).axes
    assert len(axes.texts) == 5
    heights = growth_saves.spread([2.0, 1.0, 1.05, 5.0], 0.5)
    assert sorted(heights) == [heights[i] for i in (1, 2, 0, 3)]
    assert np.diff(sorted(heights)).min() >= 0.5 - 1e-12


@pytest.mark.parametrize("name", FIGURES)
def test_without_a_record_the_command_that_makes_it_is_said(name, monkeypatch, tmp_path):
    monkeypatch.setattr(record, "HERE", tmp_path)
    module = paper_figures.FIGURES[name]
    with pytest.raises(InputError, match=rf"no record of {module.RECORDS[0]} .*--out runs/{module.RECORDS[0]} --seeds"):
        module.compute("full")


def test_a_changed_record_makes_the_cache_of_its_figures_stale_and_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "HERE", tmp_path)
    before = cache.source_hash(t5_medium)
    (tmp_path / "t5_large.json").write_text("{}")
    assert cache.source_hash(t5_medium) == before
    (tmp_path / "t5_medium.json").write_text("{}")
    assert cache.source_hash(t5_medium) != before
    smoke = cache.source_hash(t5_medium, "smoke")
    (tmp_path / "t5_medium.json").write_text(json.dumps({"x": 1}))
    assert cache.source_hash(t5_medium, "smoke") == smoke


def test_tables_have_a_row_for_every_variant_and_growth_step(computed):
    variants = after_growth.table(computed["after_growth"])
    assert "| rates kept + state fused | " in variants
    assert "| velocity factors + state fused | 0 (loss " in variants
    steps = growth_step.table(computed["growth_step"])
    assert steps.count("| 0 % (scratch) | ") == 3
    assert steps.count("| 100 % (one small network) | ") == 3
    assert re.search(r"\| 34\.\d% \|  \|  \|  \|  \| \d", steps)  # the recipe early has no such step
    saved = growth_saves.table(with_losses(computed["growth_saves"], early_600=[1.0, 1.0], small=[1.5, 1.5]))
    assert "| grown, best step in hindsight | 14% | 1.000 ± 0.000 | " in saved
    assert "| -0.500 (-0.500 to -0.500) |" in saved
    assert saved.count("| from scratch, best rate (0.04) |") == 3


def test_limits_are_those_of_the_seeds():
    figure = arms.Figure()
    axes = figure.add_subplot()
    arms.limits(axes, [1.0, 2.0, np.nan])
    assert axes.get_xlim() == pytest.approx((0.8, 2.2))


def test_fine_tuned_arms_are_compared_and_judged_against_the_baselines():
    results = finetune.compute("smoke")
    assert results.arrays["scores"].shape == (1, 2, 2)
    assert np.isfinite(results.arrays["scores"]).all()
    assert 0.5 <= results.arrays["majority"][0] < 1
    scores = np.array([[[0.7, 0.71], [0.8, 0.82]]])
    arrays = {"scores": scores, "majority": np.array([0.5]), "bag_of_words": np.array([0.9])}
    changed = dataclasses.replace(results, arrays=results.arrays | arrays)
    said = finetune.finding(changed)
    assert "two zero 81.0 ± 12.7 % (+10.5 ± 6.4 against scratch)" in said
    assert "the best is above the largest class (50.0 %), the best is NOT above a bag of words (90.0 %)" in said
    assert "| two zero | 81.0 ± 12.7 |" in finetune.table(changed)
    with style():
        (axes,) = finetune.draw(changed).axes
    drawn = {tuple(np.round(line.get_xdata(), 6)) for line in axes.lines}
    assert {(70.0, 71.0), (80.0, 82.0)} <= drawn
