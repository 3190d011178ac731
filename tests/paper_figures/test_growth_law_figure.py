"""The figure of laws of growth: from curves of a known law, from records, and from what the toys' benchmark wrote."""

import json

import numpy as np
import pytest

from paper_figures import growth_law
from paper_figures.experiments import laws
from paper_figures.results import Results
from paper_figures.style import style


@pytest.fixture(scope="module")
def results():
    return growth_law.compute("smoke")


def test_laws_of_known_curves_have_the_best_step_and_the_loss(results, tmp_path):
    assert results.config["laws"] == list(growth_law.LAWS)
    assert set(results.arrays["stretch"]) == {2.0}
    assert results.arrays["error"].max() < 0.03
    results.save(tmp_path / "r.json")
    loaded = Results.load(tmp_path / "r.json")
    with style():
        left, right = growth_law.draw(loaded).axes
    marks = [line for line in left.lines if line.get_marker() not in ("None", None)]
    assert [line.get_ydata()[0] for line in marks] == pytest.approx(results.arrays["share"])
    filled = [line.get_markerfacecolor() != "white" for line in marks]
    assert filled == [bool(one) for one in results.arrays["holds"]]
    assert len([line for line in right.lines if line.get_marker() not in ("None", None)]) == len(marks)
    assert "Of 3 fits 0 were refused; of " in growth_law.finding(loaded)


def test_the_toys_numbers_are_drawn_where_they_are_there(results, tmp_path, monkeypatch):
    monkeypatch.setattr(laws, "JUDGED", ("absent",))
    rule = {"share": 0.3, "holds": [True, True, False], "off": 0.02, "regret": 1.01}
    rules = {"law of curves (10 times)": rule, "law of curves (4 times)": {"refused": 2}, "never": rule}
    problem = {"best_share": 0.25, "free": rules}
    file = tmp_path / "toys.json"
    file.write_text(json.dumps({"problems": {"held-out": [problem]}}))
    monkeypatch.setattr(growth_law, "TOYS", file)
    found = growth_law.compute("full")
    assert (found.config["laws"], found.config["problems"]) == (["curves"], ["toys, held-out"])
    expected = {"share": 0.3, "measured_share": 0.25, "error": 0.02, "stretch": 10, "holds": 1}
    assert {name: found.arrays[name].item() for name in expected} == pytest.approx(expected)
    assert "of 1 that said they may plan the loss of growing at best was off by 2.0%" in growth_law.finding(found)
    monkeypatch.setattr(growth_law, "TOYS", tmp_path / "absent.json")
    nothing = growth_law.compute("full")
    assert growth_law.finding(nothing) == "Of 0 fits 0 were refused; no law was left."
    assert np.isfinite(results.arrays["error"]).all()
