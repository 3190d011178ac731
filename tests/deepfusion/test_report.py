"""The page of a run, and what it says in sentences."""

import copy
import json

import numpy as np
import pytest
from matplotlib.text import Text

from deepfusion.pages.drawing import draw_losses, draw_theory, look, spread_labels
from deepfusion.pages.report import write_report
from deepfusion.pages.summary import arm_rows, lines, pair_rows, percent, reference_of
from fusion_core.runs.compare import compare_arms
from tests.strategies.results import SENTENCE, STEP, one_seed, results


def labels_of(axes):
    return [text for text in axes.texts if text.get_text()]


def test_the_lines_say_what_growing_cost_and_saved():
    said = "\n".join(lines(results()))
    assert said.startswith("3 arms at 300 GFLOP each, sources included: the lowest final loss is 2.9")
    assert "“grown” grew after 80 GFLOP, 28 % of its cost, from a and b, and ended at 2.9" in said
    assert "Against “scratch” (" in said
    assert "Against “one small” (" in said
    assert " % fewer FLOPs (" in said
    assert " if the sources are given) and " in said
    assert SENTENCE in said
    assert "One seed cannot tell small differences from chance" in said
    assert len(lines(results())) <= len(lines(results(extra=9))) <= 10


def test_several_seeds_have_standard_errors_and_say_what_may_be_chance():
    said = "\n".join(lines(results(3)))
    assert "3 seeds" in said
    assert " ± " in said
    assert "One seed" not in said
    assert "chance" not in said
    found = results(3)
    saving = next(s for s in found["comparison"]["savings"] if (s["arm"], s["other"]) == ("grown", "scratch"))
    for key in ("flops_paid", "flops_given", "wall_paid", "wall_given"):
        saving[key] = {"mean": -0.2, "standard_error": 0.1, "values": [-0.3, None, -0.1]}
    assert "its loss was reached in 2 of 3 seeds, with 20 ± 10 % more FLOPs (20 ± 10 % more" in "\n".join(lines(found))
    for saving in found["comparison"]["savings"]:
        saving["difference"] = {"mean": -0.01, "standard_error": 0.02, "values": [-0.03, 0.01, -0.01]}
    assert "0.010 ± 0.020 below, which 3 seeds cannot tell from chance" in "\n".join(lines(found))


def test_an_arm_that_ends_above_another_says_what_the_other_needed():
    nodes = one_seed(0)
    shift = lambda points: [(step, loss + 1.0) for step, loss in points]
    nodes["grown"]["validation_loss"] = shift(nodes["grown"]["validation_loss"])
    found = results() | {"nodes": nodes, "comparison": compare_arms([nodes], 300 * STEP)}
    said = "\n".join(lines(found))
    assert " above; its loss was not reached, and it reached the loss of “grown” with " in said
    assert "not reached" in next(row for row in pair_rows(found) if row[:2] == ("grown", "scratch"))


def test_the_tables_compare_with_the_largest_network_that_did_not_grow():
    found = results(3)
    assert reference_of(found) == "scratch"
    table = arm_rows(found)
    assert [row[0] for row in table] == ["grown", "scratch", "one small"]
    assert table[0][3] == "80 GFLOP"
    assert table[1][4] == "300 GFLOP (100%)"
    assert len(pair_rows(found)) == 6
    assert {row[:2] for row in pair_rows(found, "scratch")} == {("grown", "scratch"), ("one small", "scratch")}


def test_a_share_says_how_many_seeds_have_it():
    assert percent({"mean": 0.5, "standard_error": None, "values": [0.5]}) == "50 %"
    assert percent({"mean": 0.5, "standard_error": 0.01, "values": [0.5, None, 0.5]}) == "50 ± 1 % (2/3)"
    assert percent({"mean": None, "standard_error": None, "values": [None]}) == "not reached"


@pytest.mark.parametrize("extra", [0, 9, 40])
def test_every_arm_is_named_at_its_end_without_overlaps(extra):
    figure = draw_losses(results(extra=extra))
    whole, last = figure.axes
    assert whole.get_xscale() == "log"
    names = labels_of(last)
    assert len(names) == 3 + extra
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in names]  # without the line to the curve
    for i, one in enumerate(boxes):
        assert not any(one.y0 < other.y1 - 1 and other.y0 < one.y1 - 1 for other in boxes[:i])


def test_looks_are_told_apart_beyond_the_colours_and_a_growth_is_marked():
    looks = [tuple(look(i).values()) for i in range(28)]
    assert len(set(looks)) == 28
    whole = draw_losses(results()).axes[0]
    marks = [line for line in whole.lines if line.get_marker() == "v"]
    (curve,) = (line for line in whole.lines if line.get_color() == marks[0].get_color() and line.get_marker() == ".")
    assert len(marks) == 1
    assert marks[0].get_xdata()[0] == curve.get_xdata()[0] == 80 * STEP


def test_sources_have_the_colour_of_what_grew_from_them():
    found = results()
    whole = draw_losses(found).axes[0]
    first = {line.get_xdata()[0]: line for line in whole.lines if line.get_marker() == "None"}
    (source,) = first.values()  # node b: node a is the beginning of the small network's arm
    assert source.get_color() == look([arm["name"] for arm in found["comparison"]["arms"]].index("grown"))["color"]


def test_arms_that_end_far_apart_share_one_panel():
    nodes = one_seed(0)
    nodes["scratch"]["validation_loss"] = nodes["scratch"]["validation_loss"][:3]
    found = results() | {"nodes": nodes, "comparison": compare_arms([nodes], None)}
    assert len(draw_losses(found).axes) == 1


@pytest.mark.parametrize("sizes", [[0.1] * 5, [0.05, 0.2, 0.1, 0.1, 0.1]])
def test_labels_are_spread_in_order_and_inside(sizes):
    wanted = [0.5, 0.52, 0.51, 0.02, 0.99]
    found = spread_labels(wanted, sizes)
    order = np.argsort(wanted)
    low = [found[i] - sizes[i] / 2 for i in order]
    high = [found[i] + sizes[i] / 2 for i in order]
    assert all(a <= b + 1e-9 for a, b in zip(high[:-1], low[1:], strict=True))
    assert low[0] >= -1e-9
    assert high[-1] <= 1 + 1e-9
    assert spread_labels([0.2, 0.8], [0.1, 0.1]) == [0.2, 0.8]


def test_the_page_has_everything_inside(tmp_path):
    plain, measured = results(3), results(theory=True)
    page = write_report(measured, tmp_path).read_text(encoding="utf-8")
    assert "<!--" not in page
    assert page.count("data:image/png;base64,") == 2
    assert "The greedy rule, which was not followed: It would have grown at step 20." in page
    assert 'href="nodes/grown/model"' in page
    page = write_report(plain, tmp_path).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert "Theory" not in page
    assert "href" not in page


def test_a_run_without_evaluations_has_a_page_too(tmp_path):
    nodes = copy.deepcopy(one_seed(0))
    for node in nodes.values():
        node["validation_loss"], node["final"] = [], None
    found = json.loads(json.dumps(results() | {"nodes": nodes, "comparison": compare_arms([nodes], None)}))
    assert lines(found) == ["No arm of this plan ends with a network that was trained and evaluated."]
    assert "<!--" not in write_report(found, tmp_path).read_text(encoding="utf-8")


def test_theory_is_drawn_for_every_source():
    figure = draw_theory(results(theory=True))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b", "the grown one"]
