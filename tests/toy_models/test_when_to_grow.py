"""The growth benchmark in its smallest size: it measures, resumes, judges and prints; its noise keeps the function."""

import json

import numpy as np
import pytest

from benchmarks import growth_prediction
from tests.strategies.growth import measure_smoke
from toy_models.when_to_grow import measure, problems, tables
from toy_models.when_to_grow.follower import Follower


def test_the_smoke_run_judges_every_rule_and_a_second_run_reads_the_records(capsys, tmp_path, monkeypatch):
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
    monkeypatch.setattr(growth_prediction.measure, "measure", measure_smoke)
    assert growth_prediction.main([*arguments, "--json", str(tmp_path / "tables.json")]) == 0
    printed = capsys.readouterr().out
    assert "| look-ahead (lowest forecast) |" in printed
    assert "split-half regret" in printed
    result = json.loads((tmp_path / "tables.json").read_text())
    (problem,) = result["problems"]
    # the truth is of the same two runs, so that no fixed step is below its best
    assert min(problem["regret"][f"fixed at {share:.0%}"] for share in tables.FIXED) > 1 - 1e-6
    assert "look_ahead" in problem["followed_full_methods"]
    assert problem["off_look_ahead"] < 0.2
    monkeypatch.setattr(growth_prediction.measure, "measure", lambda *_: pytest.fail("measured again"))
    assert growth_prediction.main(arguments) == 0
    assert capsys.readouterr().out == printed + ""


def test_problems_come_from_their_seed_and_alternate_the_operators():
    drawn = [problems.draw(problems.STANDARD, problems.HELD_OUT + i) for i in range(4)]
    assert [p.operator for p in drawn] == ["fuse", "self"] * 2
    assert drawn[0] == problems.draw(problems.STANDARD, problems.HELD_OUT)
    assert all(500 <= p.steps <= 2000 and p.samples == 512 for p in drawn)
    short = [problems.draw(problems.SHORT, problems.HELD_OUT + i) for i in range(4)]
    assert all(60 <= p.steps <= 200 and min(p.sizes[1:-1]) >= 10 for p in short)


def test_self_fusion_with_noise_keeps_the_function_and_separates_the_copies():
    prepared = problems.PreparedProblem(problems.draw(problems.SMOKE, 1))
    (source,) = prepared.start(0)
    grown = prepared.grow((source,))
    np.testing.assert_allclose(prepared.predict(grown), prepared.predict(source), atol=2e-6)
    weight = np.asarray(grown["layers"][1]["weight"])
    rows, columns = source["layers"][1]["weight"].shape
    assert not np.allclose(weight[:rows, :columns], weight[rows:, columns:])


@pytest.mark.parametrize(("text", "message"), [("3", "no range"), ("4:4", "empty or negative")])
def test_a_range_of_problems_that_is_none_is_refused(text, message, capsys):
    with pytest.raises(SystemExit):
        growth_prediction.main(["--problems", text])
    assert message in capsys.readouterr().err


def test_a_charged_rule_stays_within_its_limit_and_its_budget_pays_for_it():
    problem = problems.draw(problems.SMOKE, 0)
    prepared = problems.PreparedProblem(problem)
    follower = Follower(prepared, 0.1, measure.LOOKS["short"])
    charged = follower.run(0, charge=True)
    # a look costs more than this whole run; one lost trial of 4 % fits into 5 %
    assert charged["looks"] == 0
    assert charged["lost_trials"] <= 1
    assert charged["gradients"] == pytest.approx(0.04 * problem.steps * charged["lost_trials"])
    free = follower.run(0)
    assert free["method"] == "look_ahead"
    assert free["gradients"] == pytest.approx(free["looks"] * follower.look_gradients)
    # the run as the record says, by hand
    sources = tuple(prepared.advance(p, free["step"], 0.1, prepared.ones) for p in prepared.start(0))
    steps = round((1 - free["step"] / prepared.small_steps(1.0)) * problem.steps)
    end = prepared.advance(prepared.grow(sources), steps, 0.1, prepared.factors)
    assert float(prepared.loss(end)) == pytest.approx(free["final"], rel=1e-5)
