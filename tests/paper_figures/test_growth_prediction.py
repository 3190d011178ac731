"""The figure and the benchmark of growth prediction in their smallest size, from one measurement."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from benchmarks import growth_prediction as benchmark
from paper_figures import growth_prediction
from paper_figures.growth_prediction import FOLLOWED, GREEDY, SHOWN
from paper_figures.style import style
from toy_models.when_to_grow import measure, problems, rules, tables


@pytest.fixture(scope="module")
def record():
    """The smoke problem with two runs, and one with the costate: most of the time is compiling."""
    return measure.measure_problem(problems.random_problem(problems.SMOKE, problems.TUNING), 2, 2, 1)


@pytest.fixture(scope="module")
def results(record):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure_problem", lambda *_: {k: v for k, v in record.items() if k != "costate"})
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


def test_the_smoke_run_judges_every_rule_and_a_second_run_reads_the_records(record, capsys, tmp_path, monkeypatch):
    arguments = [
        "--smoke",
        "--problems",
        "0:1",
        "--runs",
        "2",
        "--truth-runs",
        "2",
        "--costate-runs",
        "1",
        "--folder",
        str(tmp_path),
    ]
    monkeypatch.setattr(measure, "measure_problem", lambda *_: copy.deepcopy(record))
    assert benchmark.main([*arguments, "--json", str(tmp_path / "tables.json")]) == 0
    printed = capsys.readouterr().out
    assert "| look-ahead (lowest forecast) |" in printed
    assert "split-half regret" in printed
    result = json.loads((tmp_path / "tables.json").read_text())
    (problem,) = result["problems"]
    # the truth is of the same two runs, so that no fixed step is below its best
    assert min(problem["regret"][f"fixed at {share:.0%}"] for share in tables.FIXED) > 1 - 1e-6
    assert "look_ahead" in problem["followed_full_methods"]
    assert problem["off_look_ahead"] < 0.2
    monkeypatch.setattr(measure, "measure_problem", lambda *_: pytest.fail("measured again"))
    assert benchmark.main(arguments) == 0
    assert capsys.readouterr().out == printed + ""
