"""Where curves have left their plateaus: exact for power laws, found for curves that stand still first, refused too early."""

import math

import numpy as np
import pytest

import bea

LENGTHS = np.arange(20.0, 4001.0, 20.0)


def power(n, floor=1.5, scale=6.0, exponent=0.3):
    return floor + scale * n**-exponent


def standing(n, first=800.0):
    """Return losses that hardly fall before a length, then as a power law that began there, then slower and slower."""
    return np.where(n < first, 3.3 - 0.02 * np.log(n / first), 1.8 + 1.5 * (np.maximum(n, first) / first) ** -0.8)


def curve(loss, lengths=LENGTHS, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    return np.column_stack([lengths, loss(lengths) * np.exp(noise * random.standard_normal(len(lengths)))])


def test_slopes_of_a_power_law_without_a_floor_are_its_exponent():
    found = bea.slopes(curve(lambda n: power(n, floor=0.0)))
    assert np.isfinite(found).sum() > 150
    np.testing.assert_allclose(found[np.isfinite(found)], 0.3, rtol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_a_power_law_with_a_floor_has_no_plateau(noise):
    runs = [curve(power, noise=noise, seed=seed) for seed in range(3)]
    assert bea.plateau_end(runs) == (0.0, math.inf)


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_a_plateau_ends_where_the_curve_is_steep(noise):
    runs = [curve(standing, noise=noise, seed=seed) for seed in range(3)]
    length, loss = bea.plateau_end(runs)
    assert 800 <= length <= 1300
    assert loss == pytest.approx(float(standing(length)), rel=0.01)


def test_a_curve_that_has_just_left_its_plateau_is_refused_with_how_far_to_train_it():
    with pytest.raises(
        ValueError, match=r"it leaves its plateau at [\d,]+ steps or later and is known to 900; train it to 1,\d+"
    ):
        bea.plateau_end([curve(standing, LENGTHS[LENGTHS <= 900])])


def test_runs_that_are_too_short_to_have_a_slope_say_nothing():
    assert bea.plateau_end([]) == (0.0, math.inf)
    assert bea.plateau_end([curve(power, LENGTHS[:3])]) == (0.0, math.inf)
