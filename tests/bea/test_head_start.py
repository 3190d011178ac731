"""The head-start rule on curves whose lead is known in closed form, and whether the head start is kept."""

import numpy as np
import pytest

import bea

GRID = np.arange(20.0, 4001.0, 20.0)
LARGE = lambda n: 2.0 + 8.0 * np.asarray(n, float) ** -0.3
AGE = lambda n: 20.0 * np.asarray(n, float) ** 0.6  # steps that scratch takes to the small network's loss
SMALL = lambda n: LARGE(AGE(n))
BEST = 12.0**2.5  # where AGE has the slope 1


def curve(law, until=4000.0, factor=1.0, noise=0.0, seed=0):
    grid = GRID[until >= GRID]
    return np.stack([grid, factor * law(grid) + noise * np.random.default_rng(seed).normal(size=len(grid))], axis=1)


@pytest.mark.parametrize("budget", [1000.0, 2500.0])
def test_it_grows_where_the_lead_is_largest_whatever_the_budget(budget):
    said = bea.head_start_step([curve(SMALL)], [curve(LARGE)], budget, draws=2)
    assert said.step.value == pytest.approx(BEST, rel=0.05)
    assert said.lead.value == pytest.approx(AGE(BEST) - BEST, rel=0.01)
    assert not said.rising
    assert said.scratch.value == pytest.approx(LARGE(budget), rel=1e-3)
    assert said.never.value == pytest.approx(SMALL(budget), rel=1e-3)
    assert said.grown.value == pytest.approx(LARGE(budget + AGE(BEST) - BEST), rel=1e-3)


def test_a_lead_that_still_rises_where_scratch_ends_is_said_to_rise():
    said = bea.head_start_step([curve(SMALL)], [curve(LARGE, until=500)], 3000.0, draws=2)
    assert said.rising
    assert said.known == pytest.approx((500 / 20) ** (1 / 0.6), rel=0.05)
    assert np.isnan(said.grown.value)
    assert np.isnan(said.scratch.value)


def test_a_small_network_that_never_leads_is_not_to_be_grown():
    said = bea.head_start_step([curve(lambda n: LARGE(0.9 * n))], [curve(LARGE)], 1000.0, draws=2)
    assert said.step.value == said.lead.value == 0.0


def test_a_share_of_the_head_start_that_is_lost_makes_growing_earlier():
    whole, part = (bea.head_start_step([curve(SMALL)], [curve(LARGE)], 2000.0, kept=k, draws=2) for k in (1.0, 0.8))
    assert part.step.value == pytest.approx((12 * 0.8) ** 2.5, rel=0.05)
    assert part.lead.value < whole.lead.value


def test_the_interval_over_noisy_seeds_covers_the_best_step():
    seeds = lambda law, first: [curve(law, noise=0.01, factor=1 + 0.002 * s, seed=first + s) for s in range(4)]
    pairs = seeds(SMALL, 0), seeds(LARGE, 10)
    said = bea.head_start_step(*pairs, 2000.0, draws=100)
    assert said.step.low <= BEST <= said.step.high
    assert said.lead.low < said.lead.high < 1.3 * (AGE(BEST) - BEST)


@pytest.mark.parametrize("kept", [1.0, 0.7])
def test_the_share_of_the_head_start_that_is_kept_is_measured(kept):
    age, n2 = float(AGE(400)), np.arange(0.0, 1501.0, 50.0)
    grown = np.stack([n2, np.where(n2 == 0, LARGE(age), LARGE(n2 + kept * age))], axis=1)
    share = bea.kept_share([grown, grown], [curve(LARGE)], since=500.0, until=1000.0, draws=3)
    assert share.value == pytest.approx(kept, rel=0.02)
    assert np.isnan(bea.kept_share([grown], [curve(LARGE, until=500)], since=500.0, until=1000.0, draws=3).value)
    starts = bea.head_starts(grown[1:], bea.falling_mean([curve(LARGE)]))
    np.testing.assert_allclose(starts[:, 1], kept * age, rtol=0.02)


@pytest.mark.parametrize(
    ("small", "words"),
    [
        ([], "there is no run"),
        ([curve(SMALL)[:5]], "a curve has 5 points, but needs 6"),
        ([np.stack([GRID, GRID], axis=1)], "a curve does not fall"),
        ([curve(SMALL)[::-1]], "its lengths do not ascend"),
        ([curve(SMALL), curve(SMALL) + np.array([9000, 0])], "no range of lengths in common"),
        (
            [curve(SMALL, factor=0.2)],
            "the curves have no losses in common; train the large network from scratch for longer",
        ),
    ],
)
def test_curves_that_say_nothing_are_refused(small, words):
    with pytest.raises(ValueError, match=words):
        bea.head_start_step(small, [curve(LARGE)], 1000.0, draws=2)


def test_a_grown_curve_has_to_begin_at_the_growth():
    with pytest.raises(ValueError, match="has to begin at the growth"):
        bea.kept_share([curve(LARGE)], [curve(LARGE)], since=0.0, until=100.0)
