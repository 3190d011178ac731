"""The figure of the switching function in its smallest size, and the numbers that it is drawn from."""

import dataclasses

import numpy as np
import pytest

from paper_figures import switching_function
from paper_figures.style import style
from toy_models.when_to_grow import derivative


@pytest.fixture(scope="module")
def measured():
    config = switching_function.PRESETS["smoke"]
    return derivative.compute(config.largest, config.halvings, switching_function.SEED)


@pytest.fixture(scope="module")
def results(measured):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derivative, "compute", lambda *arguments: measured)
        return switching_function.compute("smoke")


def test_the_error_of_the_switching_function_is_within_twice_its_uncertainty(measured):
    for row in measured["rows"]:
        for error, claimed in zip(row["errors"], row["claimed"], strict=True):
            assert error < 2 * claimed < 0.1


def test_slopes_are_the_orders_of_the_fields(results):
    for order in switching_function.LABELS:
        np.testing.assert_allclose(results.arrays[f"order{order}_slopes"], order, atol=0.15)
    assert "(as predicted, to 0.15)" in switching_function.finding(results)


def test_the_finding_says_when_a_slope_is_not_as_predicted(results):
    broken = dataclasses.replace(results, arrays=results.arrays | {"order3_slopes": np.array([2.0])})
    assert "NOT as predicted" in switching_function.finding(broken)


def test_the_legend_states_the_slopes_and_every_task_is_drawn(results):
    with style():
        (axes,) = switching_function.draw(results).axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    for text, order in zip(texts, switching_function.LABELS, strict=True):
        assert text.endswith(f"slope {results.arrays[f'order{order}_slopes'].mean():.2f}")
    drawn = {tuple(line.get_ydata()) for line in axes.lines}
    assert {
        tuple(run) for order in switching_function.LABELS for run in results.arrays[f"order{order}_errors"]
    } <= drawn
