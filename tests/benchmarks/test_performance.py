"""The page of speed and memory: written from the committed results, goals judged as they say."""

import pytest

from benchmarks import performance


def test_the_page_is_what_the_committed_results_give():
    assert performance.PAGE.read_text(encoding="utf-8") == performance.markdown(performance.measured()), (
        "renew it: python -m benchmarks.performance --write"
    )


def test_every_figure_of_a_result_at_hand_has_a_value():
    results = performance.measured()
    shown = [figure for figure in performance.FIGURES if figure.benchmark in results]
    assert {figure.benchmark for figure in shown} == set(results) - {"data_pipeline"}
    page = performance.PAGE.read_text(encoding="utf-8")
    for figure in shown:
        value = figure.of(results[figure.benchmark])
        assert value is None or (value > 0 and f"| {figure.what} | {figure.form.format(value)} |" in page)


@pytest.mark.parametrize(
    ("limits", "reached"), [({}, None), ({"at_most": 2}, True), ({"at_most": 1}, False), ({"at_least": 2}, False)]
)
def test_a_goal_is_a_bound_on_one_side(limits, reached):
    assert performance.Figure("x", "x", lambda found: 1.5, "", **limits).reached(1.5) is reached
