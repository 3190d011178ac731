"""The page of speed and memory: written from the committed results, goals judged as they say."""

import pytest

from benchmarks import performance


def test_the_page_is_what_the_committed_results_give():
    assert performance.PAGE.read_text(encoding="utf-8") == performance.markdown(performance.measured()), (
        "renew it: python -m benchmarks.performance --write"
    )


def test_every_figure_with_a_goal_is_on_the_page():
    results = performance.measured()
    assert set(results) == set(performance.RUNS)
    for figure in performance.FIGURES:
        value = figure.of(results[figure.benchmark])
        assert figure.reached(value) is None if figure.at_most is figure.at_least is None else value > 0


@pytest.mark.parametrize(
    ("limits", "reached"), [({}, None), ({"at_most": 2}, True), ({"at_most": 1}, False), ({"at_least": 2}, False)]
)
def test_a_goal_is_a_bound_on_one_side(limits, reached):
    assert performance.Figure("x", "x", lambda found: 1.5, "", **limits).reached(1.5) is reached
