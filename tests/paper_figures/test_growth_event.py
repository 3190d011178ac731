import dataclasses

import numpy as np
import pytest

from paper_figures import growth_event
from paper_figures.style import style
from toy_models import growth_event as event


@pytest.fixture(scope="module")
def results():
    return growth_event.compute("smoke")


def test_slopes_and_jumps_are_as_predicted(results):
    for name, order in event.GAPS.items():
        np.testing.assert_allclose(results.arrays[f"{growth_event.KEYS[name]}_slopes"], order, atol=0.15)
    found = growth_event.finding(results)
    assert "NOT" not in found
    assert "(as predicted, to 0.15)" in found


@pytest.mark.parametrize(
    ("key", "values", "says"),
    [
        ("gap1_slopes", [2.0, 2.1], "Measured slopes (NOT as predicted"),
        ("jump_adam_2_hidden_weights_with", [1e-3, 0.0], "DOES jump, NOT as predicted"),
        ("jump_sgd_2_last_weights_without", [0.9, 1.0], ", NOT as predicted (off by 1e-01"),
    ],
)
def test_the_finding_says_what_is_not_as_predicted(results, key, values, says):
    assert key in results.arrays
    broken = dataclasses.replace(results, arrays=results.arrays | {key: np.asarray(values)})
    assert says in growth_event.finding(broken)


def test_every_run_is_drawn_and_the_legends_state_the_slopes(results):
    with style():
        left, middle, right = growth_event.draw(results).axes
    texts = [t.get_text() for axes in (left, middle) for t in axes.get_legend().get_texts()]
    for text, name in zip(texts, event.GAPS, strict=True):
        assert f"slope {results.arrays[f'{growth_event.KEYS[name]}_slopes'].mean():.2f} ±" in text
    drawn = {tuple(line.get_ydata()) for axes in (left, middle) for line in axes.lines}
    assert {tuple(run) for key in growth_event.KEYS.values() for run in results.arrays[f"{key}_errors"]} <= drawn
    jumps = {tuple(line.get_xdata()) for line in right.lines}
    assert tuple(results.arrays["jump_adam_2_all_arrays_without"]) in jumps
