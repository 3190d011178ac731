import dataclasses

import numpy as np
import pytest

from paper_figures import growth_prediction
from paper_figures.growth_prediction import FOLLOWED, GREEDY, SHOWN
from paper_figures.style import style
from tests.strategies.growth import measure_smoke
from toy_models.when_to_grow import measure, rules


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure", measure_smoke)
        return growth_prediction.compute("smoke")


def changed(results, **arrays):
    return dataclasses.replace(results, arrays=results.arrays | arrays)


def with_regret(results, name, value):
    regrets = results.arrays["regrets"].copy()
    regrets[:, list(SHOWN).index(name)] = value
    return changed(results, regrets=regrets)


def test_forecasts_of_the_smoke_problem_are_close_and_everything_shown_is_measured(results):
    arrays = results.arrays
    assert arrays["regrets"].shape == (1, len(SHOWN))
    assert arrays["curve"].min() == 1
    assert np.isfinite(np.concatenate([np.ravel(values) for values in arrays.values()])).all()
    np.testing.assert_allclose(
        arrays["forecast"][:, -1], arrays["curve"][:, -1], rtol=1e-4
    )  # no step is left to forecast
    assert arrays["off"] < 0.2
    assert (arrays["error"] >= 0).all()


def test_the_finding_says_what_is_seen_and_what_is_not(results):
    good = with_regret(with_regret(changed(results, off=np.array([0.02])), FOLLOWED, 1.01), GREEDY, 1.2)
    text = growth_prediction.finding(good)
    assert "forecasts follow the truth: off by 2.0%" in text
    assert "is near the minimum: median regret 1.010" in text
    assert "NOT" not in text
    assert "do NOT follow" in growth_prediction.finding(changed(good, off=np.array([0.4])))
    assert "is NOT near the minimum" in growth_prediction.finding(with_regret(good, FOLLOWED, 1.1))
    assert "1.000), NOT above it" in growth_prediction.finding(with_regret(good, GREEDY, 1.0))


def test_the_truth_the_forecasts_and_every_run_of_the_rules_are_drawn(results):
    with style():
        figure = growth_prediction.draw(results)
    problem, regrets = figure.axes
    drawn = {tuple(np.ravel(line.get_ydata())) for line in problem.lines}
    for name in ("curve", "forecast", "followed_losses", "greedy_losses"):
        assert tuple(results.arrays[name][0]) in drawn
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 6
    assert len(regrets.get_xticklabels()) == len(SHOWN)


def test_only_diverged_problems_are_refused():
    record = {"final": [[np.nan] * 17] * 2, "look_ahead": [[1.0] * 17] * 2}
    with pytest.raises(ValueError, match="in all 1 problems a run diverged"):
        growth_prediction.arrays_of([record])


def test_the_rules_that_are_shown_exist():
    assert set(SHOWN) <= {*rules.RULES, *rules.FOLLOWED}
