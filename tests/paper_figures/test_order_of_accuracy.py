import dataclasses

import jax
import numpy as np
import pytest

from paper_figures import order_of_accuracy
from paper_figures.style import style


@pytest.fixture(scope="module")
def results():
    return order_of_accuracy.compute("smoke")


def test_slopes_are_two_without_and_three_with_the_conflict_term(results):
    for name, order in (("first_order", 2), ("self_terms", 2), ("composite", 3)):
        np.testing.assert_allclose(results.arrays[f"{name}_slopes"], order, atol=0.15)
    assert "as predicted" in order_of_accuracy.finding(results)


def test_the_finding_says_when_a_slope_is_not_as_predicted(results):
    broken = dataclasses.replace(results, arrays=results.arrays | {"composite_slopes": np.array([2.0, 2.1])})
    assert "NOT as predicted" in order_of_accuracy.finding(broken)


def test_the_legend_states_the_measured_slopes_and_every_run_is_drawn(results):
    with style():
        (axes,) = order_of_accuracy.draw(results).axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.split(":")[0] for text in texts] == list(order_of_accuracy.LABELS.values())
    for text, name in zip(texts, order_of_accuracy.LABELS, strict=True):
        assert f"slope {results.arrays[f'{name}_slopes'].mean():.2f} ±" in text
    drawn = {tuple(line.get_ydata()) for line in axes.lines}
    assert {tuple(run) for name in order_of_accuracy.LABELS for run in results.arrays[f"{name}_errors"]} <= drawn


def test_computing_in_float64_does_not_leak(results):
    assert jax.numpy.ones(1).dtype == np.float32
