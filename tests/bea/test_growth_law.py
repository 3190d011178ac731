"""Laws of the loss after growth: known laws are found again, intervals cover, a wrong law says so, bad curves are refused."""

import dataclasses
import json
import math

import numpy as np
import pytest

import bea

E, A, B, S, P = 2.0, 8.0, 0.3, 20.0, 0.6  # of the head-start law
SMALL = {"E_s": 2.2, "A_s": 5.0, "b_s": 0.25}
BEST = (S * P) ** (1 / (1 - P))  # where a step of the small network adds one step of head start


def head_start(n1, n2):
    return E + A * (n2 + S * n1**P) ** -B


def curves(n1, n2, kept=0.9):
    small = SMALL["E_s"] + SMALL["A_s"] * np.maximum(n1, 1e-9) ** -SMALL["b_s"]
    age = np.where(n1 > 0, ((small - E) / A) ** (-1 / B), 0.0)
    return np.where(n2 == 0, small, E + A * np.maximum(n2 + kept * age, 1e-9) ** -B)


def two_stage(n1, n2):
    n1, n2 = np.asarray(n1, float), np.asarray(n2, float)
    a, b = np.maximum(n1, 1.0), np.maximum(n2, 1.0)
    grown = 1.5 + 60.0 * a**-0.5 * b ** (-0.6 + 0.06 * np.log(a))
    return np.where(n1 == 0, 1.8 + 9.0 * b**-0.3, np.where(n2 == 0, 2.0 + 7.0 * a**-0.3, grown))


def plateau(n1, n2):
    """Return a loss that stays near 3.3 and falls once the network is 1,500 large steps old."""
    return 2.2 + 10.0 * (n2 + 2 * n1 + 20.0) ** -0.5 + 0.9 / (1 + np.exp((n2 + 2 * n1 - 1500.0) / 200.0))


def runs_of(law, *, noise=0.0, luck=0.0, seeds=1, until=1000, steps=(0, 100, 200, 350, 500), seed=0):
    """Return n1, n2, loss, run: scratch, grown runs, and the small network (the step None), each evaluated every 50 steps."""
    random, rows = np.random.default_rng(seed), []
    for run, step in enumerate([*steps, None] * seeds):
        grid = np.arange(50.0, until + 1 - (step or 0), 50.0)
        n1, n2 = (grid, 0 * grid) if step is None else (np.full_like(grid, step), grid)
        error = luck * random.normal() + noise * random.normal(size=len(grid))
        rows.append(np.stack([n1, n2, law(n1, n2) * np.exp(error), np.full_like(grid, run)], axis=1))
    n1, n2, loss, run = np.concatenate(rows).T
    return n1, n2, loss, run.astype(int)


@pytest.mark.parametrize(
    ("kind", "law", "known"),
    [
        ("head_start", head_start, {"E": E, "A": A, "b": B, "s": S, "p": P}),
        ("curves", curves, {"E": E, "A": A, "b": B, **SMALL, "k": 0.9}),
        ("two_stage", two_stage, {"E": 1.5, "A": 60.0, "a": 0.5, "b": 0.6, "c": 0.06}),
    ],
)
def test_a_law_is_found_again_from_its_curves(kind, law, known):
    fitted = bea.fit_growth_law(kind, *runs_of(law), draws=0)
    assert fitted.parameters() == pytest.approx(known, rel=0.02)
    assert fitted.scatter < 1e-4
    for n1, n2 in ((1000.0, 3000.0), (0.0, 4000.0), (4000.0, 0.0)):
        assert float(fitted.loss(n1, n2)) == pytest.approx(float(law(np.array(n1), np.array(n2))), rel=2e-3)


def test_the_law_of_curves_needs_no_grown_run_and_is_the_head_start_law_where_floors_are_equal():
    small = lambda n1: E + 5.0 * n1**-0.2
    data = runs_of(
        lambda n1, n2: np.where(n2 == 0, small(np.maximum(n1, 1)), E + A * np.maximum(n2, 1) ** -B), steps=(0,)
    )
    fitted = bea.fit_growth_law("curves", *data, draws=0)
    p, s = 0.2 / B, (A / 5.0) ** (1 / B)
    assert fitted.parameters()["k"] == pytest.approx(1.0)
    expected = E + A * (3000 + s * 500**p) ** -B
    assert float(fitted.loss(500.0, 3000.0)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("budget", [2000.0, 8000.0])
def test_the_best_step_is_where_a_small_step_adds_one_of_head_start_whatever_the_budget(budget):
    said = bea.fit_growth_law("head_start", *runs_of(head_start), draws=3).forecast(budget)
    assert said.share.value == pytest.approx(BEST / budget, abs=1.5 / 200)
    assert said.grow_best.value == pytest.approx(head_start(BEST, budget - BEST), rel=1e-3)
    assert said.scratch.value == pytest.approx(head_start(0, budget), rel=1e-3)
    assert said.never.value == pytest.approx(head_start(budget, 0), rel=1e-3)
    assert said.beats == (1.0, 1.0)
    assert said.stretch == budget / 1000


def test_growing_now_is_best_once_the_best_step_is_past():
    fitted = bea.fit_growth_law("head_start", *runs_of(head_start), draws=3)
    said = fitted.forecast(4000.0, now=1500.0)
    assert said.share.value == pytest.approx(1500 / 4000)
    assert said.grow_now == said.grow_best
    assert said.grow_now.value == pytest.approx(head_start(1500, 2500), rel=1e-3)


def test_intervals_at_four_times_the_length_cover_the_law_and_are_narrow_enough_to_plan():
    covered, widths, trials = 0, [], 12
    for seed in range(trials):
        data = runs_of(head_start, noise=0.003, luck=0.003, seeds=3, seed=seed)
        said = bea.fit_growth_law("head_start", *data, draws=12).forecast(4000.0)
        covered += said.grow_best.low <= head_start(BEST, 4000 - BEST) <= said.grow_best.high
        widths.append(math.log(said.grow_best.high / said.grow_best.low))
    assert covered >= 10
    assert np.median(widths) < 0.1


def test_a_law_that_a_plateau_belies_knows_it_though_its_bootstrap_does_not():
    short, budget = runs_of(plateau, noise=0.002, seeds=3, until=1500), 6000.0
    fitted = bea.fit_growth_law("head_start", *short, draws=12)
    said = fitted.forecast(budget)
    truth = plateau(0, budget)
    drawn = [float(fitted.loss(0, budget, theta)) for theta in fitted.draws]
    assert not min(drawn) <= truth <= max(drawn)
    assert said.scratch.low <= truth <= said.scratch.high
    assert fitted.drift > 0.03
    assert not said.holds
    assert bea.fit_growth_law("head_start", *runs_of(head_start), draws=3).forecast(budget).holds


def test_a_run_that_went_wrong_moves_a_robust_fit_little():
    n1, n2, loss, run = runs_of(head_start, noise=0.002, seeds=2)
    wrong = np.where(run == 2, loss * 1.2, loss)
    fits = [bea.fit_growth_law("head_start", n1, n2, one, run, draws=0) for one in (loss, wrong)]
    right, moved = (float(fit.loss(500.0, 1500.0)) for fit in fits)
    assert abs(math.log(moved / right)) < 0.01


def test_a_law_goes_through_json_and_back():
    fitted = bea.fit_growth_law("curves", *runs_of(curves, noise=0.002, seeds=2), draws=5)
    again = bea.GrowthLaw.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    assert again.forecast(4000.0, 300.0).grow_best == pytest.approx(fitted.forecast(4000.0, 300.0).grow_best, rel=1e-4)
    unknown = bea.GrowthLaw.from_json(json.loads(json.dumps(dataclasses.replace(fitted, drift=math.nan).to_json())))
    assert unknown.predict(500.0, 9000.0).high == math.inf
    with pytest.raises(ValueError, match="there is no law 'cubic'"):
        bea.GrowthLaw.from_json({**fitted.to_json(), "kind": "cubic"})
    with pytest.raises(ValueError, match="it has no field 'draws'"):
        bea.GrowthLaw.from_json({key: value for key, value in fitted.to_json().items() if key != "draws"})


def test_a_law_without_curves_of_the_ends_says_nothing_of_them():
    n1, n2, loss, run = runs_of(two_stage)
    grown = (n1 > 0) & (n2 > 0)
    said = bea.fit_growth_law("two_stage", n1[grown], n2[grown], loss[grown], run[grown], draws=3).forecast(3000.0)
    assert said.scratch is None
    assert said.never is None
    assert np.isnan(said.beats).all()
    best = 3000 * said.share.value
    truth = two_stage(np.array(best), np.array(3000 - best))
    assert said.grow_best.value == pytest.approx(float(truth), rel=0.01)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("cubic", {}, "there is no law 'cubic'; choose one of head_start"),
        (
            "head_start",
            {"steps": (0, 100, 200)},
            "needs runs grown at 3 steps or more, there are 2; grow at more steps",
        ),
        (
            "head_start",
            {"until": 100, "steps": (10, 20, 30)},
            "needs 8 points or more, there are 5; evaluate more often",
        ),
        ("curves", {"steps": (100, 200)}, "needs a curve from scratch and one of the small network; train both"),
        ("curves", {"until": 250, "seeds": 1}, "there are 5 points of scratch, but a fit needs 6; evaluate more often"),
    ],
)
def test_too_few_curves_are_refused(kind, change, words):
    with pytest.raises(ValueError, match=words):
        bea.fit_growth_law(kind, *runs_of(head_start, **change))


def test_curves_that_do_not_fall_and_losses_that_are_none_are_refused():
    n1, n2, loss, run = runs_of(head_start)
    rising = np.where(n1 == 0, 8 - loss, loss)
    with pytest.raises(ValueError, match="curves of scratch do not fall in 1 of 1 runs; train longer"):
        bea.fit_growth_law("head_start", n1, n2, rising, run)
    with pytest.raises(ValueError, match="a loss is not positive and finite; leave out runs that diverged"):
        bea.fit_growth_law("head_start", n1, n2, np.where(n1 == 0, np.nan, loss), run)
    fitted = bea.fit_growth_law("head_start", n1, n2, loss, run, draws=0)
    with pytest.raises(ValueError, match=r"the budget is -1\.0 large steps"):
        fitted.forecast(-1.0)
    with pytest.raises(ValueError, match=r"now is 900\.0, but the small network has between 0 and 800"):
        fitted.forecast(800.0, 900.0)
