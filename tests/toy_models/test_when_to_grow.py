"""The problems on which growth is tried, the runs that follow the forecast rule, and the benchmark's options."""

import numpy as np
import pytest

from benchmarks import growth_prediction
from toy_models.when_to_grow import measure, problems
from toy_models.when_to_grow.follower import Follower


def test_problems_come_from_their_seed_and_alternate_the_operators():
    drawn = [problems.random_problem(problems.STANDARD, problems.HELD_OUT + i) for i in range(4)]
    assert [p.operator for p in drawn] == ["fuse", "self"] * 2
    assert drawn[0] == problems.random_problem(problems.STANDARD, problems.HELD_OUT)
    assert all(500 <= p.steps <= 2000 and p.samples == 512 for p in drawn)
    short = [problems.random_problem(problems.SHORT, problems.HELD_OUT + i) for i in range(4)]
    assert all(60 <= p.steps <= 200 and min(p.sizes[1:-1]) >= 10 for p in short)


def test_self_fusion_with_noise_keeps_the_function_and_separates_the_copies():
    prepared = problems.PreparedProblem(problems.random_problem(problems.SMOKE, 1))
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
    problem = problems.random_problem(problems.SMOKE, 0)
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
