import dataclasses

import numpy as np
import pytest

from fusion_core.errors import InputError
from paper_figures import separation
from paper_figures.experiments.delays import curve_shift, measured_delays, steps_to
from paper_figures.style import style


@pytest.fixture(scope="module")
def results():
    return separation.compute("smoke")


def test_small_differences_and_orders_are_as_predicted(results):
    assert separation.worst_in_linear_range(results) < 0.05
    for name, order in separation.ORDERS.items():
        np.testing.assert_allclose(results.arrays[f"{name}_slopes"], order, atol=0.15)
    assert separation.finding(results).startswith("As predicted")


def test_the_finding_says_when_a_prediction_fails(results):
    changed = lambda **arrays: dataclasses.replace(results, arrays=results.arrays | arrays)
    assert separation.finding(changed(modified_slopes=np.array([1.0, 1.1]))).startswith("NOT as predicted")
    assert separation.finding(changed(predicted=1.2 * results.arrays["predicted"])).startswith("NOT as predicted")


def test_noise_and_pushes_are_compared_from_the_same_loss(results):
    losses = results.arrays["losses"]
    names = list(separation.VARIANTS)
    assert losses.shape == (2, len(names), len(separation.PRESETS["smoke"].marks))
    for i, name in enumerate(names):
        if not separation.VARIANTS[name][1]:  # noise keeps the function
            np.testing.assert_allclose(losses[:, i, 0], losses[:, 0, 0], rtol=1e-9)
    np.testing.assert_array_equal(separation.ratios(results)[:, 0], 1)


def test_every_measured_point_is_drawn(results):
    with style():
        left, middle, right = separation.draw(results).axes
    drawn = [tuple(line.get_ydata()) for line in (*left.lines, *middle.lines)]
    expected = [*results.arrays["measured"], *results.arrays["predicted"], *results.arrays["plain_errors"]]
    assert {tuple(row) for row in expected} <= set(drawn)
    assert [text.get_text() for text in right.get_legend().get_texts()] == list(separation.VARIANTS)


def test_a_curve_that_is_moved_is_behind_by_as_much():
    steps = np.arange(0, 1000, 50.0)
    loss = lambda n: 2 + np.exp(-n / 300)
    one, other = np.stack([steps, loss(steps - 120)], 1), np.stack([steps, loss(steps)], 1)
    found = curve_shift(one[3:], other)
    np.testing.assert_allclose(found.steps[1:], 120, atol=5)
    assert found.median == pytest.approx(120, abs=5)
    seeds = {
        "0": {"a": {"validation_loss": one[3:].tolist()}, "b": {"validation_loss": other.tolist()}},
        "1": {"a": {}},
    }
    assert measured_delays(seeds, "a", "b")["0"].median == found.median
    assert list(measured_delays(seeds, "a", "b")) == ["0"]


def test_a_loss_counts_as_reached_once_even_if_the_curve_rises_again():
    curve = [(0, 3.0), (10, 2.0), (20, 2.5), (30, 1.0)]
    np.testing.assert_allclose(steps_to(curve, np.array([2.5, 2.0, 1.5])), [5, 10, 20])
    assert np.isnan(steps_to(curve, np.array([0.5]))).all()
    with pytest.raises(InputError, match="no losses in common"):
        curve_shift([(0, 1.0), (1, 0.9)], [(0, 0.5), (1, 0.4)])
    with pytest.raises(InputError, match="fewer than two points"):
        curve_shift([(0, 1.0)], curve)
