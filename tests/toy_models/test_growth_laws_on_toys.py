"""Rules for long runs from short curves, judged on curves whose law is known, and the runs that give such curves."""

import json

import numpy as np
import pytest

from benchmarks import growth_law_toys
from toy_models.when_to_grow import law_rules as rules
from toy_models.when_to_grow import law_tables, long_runs

BUDGET, POINTS = 20_000.0, 200
FLOOR, EXPONENT = 0.1, 0.5


def large(n):
    return FLOOR + 20 * n**-EXPONENT


def small(n):
    return FLOOR + 0.16 + 30 * n**-0.75


@pytest.fixture(scope="module")
def known():
    """Curves of three equal runs whose head start is kept: growing is best where the lead is largest."""
    times = np.linspace(0, BUDGET, POINTS + 1)
    safe = np.maximum(times, 20.0)
    curve = lambda losses: np.tile(losses, (3, 1))
    age = lambda n1: ((small(max(n1, 20.0)) - FLOOR) / 20) ** (-1 / EXPONENT)
    grown = {}
    for percent in long_runs.GROWTHS[:-1]:
        n1 = percent / 100 * BUDGET
        losses = large(times + age(n1))
        grown[n1] = curve(np.where(times <= BUDGET - n1, losses, np.nan))
    states = {n1: np.zeros((3, 1)) for n1 in grown}
    return long_runs.LongCurves(times, curve(small(safe)), curve(large(safe)), grown, states)


@pytest.fixture(scope="module")
def answers(known):
    return rules.answers(known, 0)


def test_rules_from_short_curves_of_a_kept_head_start_find_the_best_step(answers):
    leads = {n1: ((small(max(n1, 20.0)) - FLOOR) / 20) ** (-1 / EXPONENT) - n1 for n1 in np.linspace(20, BUDGET, 2000)}
    best = max(leads, key=leads.get)
    found = answers["free"]
    for name in ("curves alone", "law of curves"):
        choice = found[rules.at(name, 0.25)]
        assert abs(choice.step - best) < 0.02 * BUDGET, name
    # scratch did not come to the loss of the best step, so that the lead still rises where the rule's knowledge ends
    assert found[rules.at(rules.HEAD_START, 0.25)].step == 5000


def test_short_runs_are_paid_and_a_fit_that_leaves_nothing_ends_with_its_own_runs(known, answers):
    charged = answers["charged"]
    alone = charged["curves alone (4 times)"]
    assert alone.cost == pytest.approx(5000 + max(0, 5000 - alone.step))
    law = charged["head-start law (4 times)"]
    assert law.cost > BUDGET - 5000
    own = [rules.final_log(known, [0], n1, 5000.0)[0] for n1 in (0.0, *rules.growths_of(known, 5000.0))]
    assert law_tables.end_of(known, 0, law) == pytest.approx(min(own), abs=0.02)
    assert charged["fixed at 25%"].cost == 0


def test_between_two_growth_steps_the_end_is_interpolated_and_a_smaller_budget_ends_higher(known):
    low, high = (rules.final_log(known, [0], n1, BUDGET)[0] for n1 in (2000.0, 3000.0))
    assert rules.final_log(known, [0], 2500.0, BUDGET)[0] == pytest.approx((low + high) / 2)
    assert rules.final_log(known, [0], 2000.0, BUDGET / 2)[0] > low
    assert rules.final_log(known, [0], BUDGET, BUDGET)[0] == pytest.approx(np.log(known.small[0, -5:]).mean())


def test_a_problem_is_judged_against_its_best_step(known, answers):
    given = {how: {name: [choice] for name, choice in found.items()} for how, found in answers.items()}
    judged = law_tables.judge(known, given)
    assert judged["resolved"] == pytest.approx(1)  # three equal runs
    assert min(judged["curve"].values()) == 1
    assert judged["free"]["never"]["regret"] > 1.05
    assert judged["free"]["curves alone (4 times)"]["regret"] < judged["free"]["fixed at 65%"]["regret"]
    assert law_tables.payable(rules.Choice(1.0, 2 * BUDGET), BUDGET) == "it costs 2.0 budgets"


def test_the_benchmark_measures_and_keeps_what_it_measured(tmp_path, capsys, monkeypatch):
    folder, numbers = tmp_path / "kept", tmp_path / "numbers.json"
    assert growth_law_toys.main(["--smoke", "--folder", str(folder), "--json", str(numbers)]) == 0
    printed = capsys.readouterr().out
    assert "| curves alone (10 times) |" in printed
    assert "features frozen" in printed
    result = json.loads(numbers.read_text(encoding="utf-8"))
    (problem,) = result["problems"]["smoke"]
    assert {"charged", "free"} <= problem.keys()
    frozen = next(row for row in result["flows"] if row["case"] == "frozen")
    np.testing.assert_allclose(
        frozen["forecast"]["losses"], frozen["ends"], rtol=1e-3
    )  # a quadratic model is exact there
    curves = long_runs.LongCurves.load(next(folder.glob("*.npz")))
    for n1, losses in curves.grown.items():  # two sources fused: the loss does not jump
        at = round(n1 / curves.times[1])
        np.testing.assert_allclose(losses[:, 0], curves.small[:, at], rtol=1e-4)
    monkeypatch.setattr(long_runs.LongRuns, "curves", None)  # nothing is trained again
    assert growth_law_toys.main(["--smoke", "--folder", str(folder), "--json", "-"]) == 0
