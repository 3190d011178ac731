"""``deepfusion law`` and ``deepfusion plan --law``: a law of finished runs, and what it says of a plan."""

import json

import pytest

from tests.strategies.laws import pretend_run, short_plan


@pytest.fixture
def fitted(run, tmp_path):
    """A plan file, and a law of its runs that the command wrote."""
    file = short_plan(tmp_path, 60, 300, 600)
    folder = pretend_run(file, tmp_path / "run")
    code, out, err = run("law", file, folder, "--out", tmp_path / "law.json", "--longest", 400)
    assert code == 0, err
    assert "The law of curves, fitted to" in out
    assert "of at most 400 large steps" in out
    assert "Shorter fits were off by" in out
    assert (
        "The law is of one recipe of growth (sources 1, copies 2, norm plain, off_diagonal antisymmetric, noise 0.3"
        in out
    )
    return file, tmp_path / "law.json"


def test_a_plan_with_a_law_says_when_to_grow_and_what_it_comes_to(run, fitted, refused, tmp_path):
    file, law = fitted
    longer = tmp_path / "longer.toml"
    longer.write_text('budget = { node = "large", steps = 600 }\n' + file.read_text())
    code, out, err = run("plan", longer, "--tflops", 1, "--law", law, "--now", 90)
    assert code == 0, err
    assert "loss at the budget of 600 large steps, 1.5 times the longest run of the fit" in out
    for row in ("grown as planned", "grown now", "grown at best", "the small one alone", "from scratch"):
        assert row in out
    assert "Best step: " in out
    assert "The law of curves may plan: it knows the loss of growing at best to" in out
    code, out, _ = run("plan", longer, "--tflops", 1, "--law", law, "--json")
    (said,) = json.loads(out)["laws"]
    losses = {row["what"]: row["loss"] for row in said["losses"]}
    assert losses["grown at best"][0] <= losses["from scratch"][0]
    assert all(low <= value <= high for value, low, high in losses.values())
    assert said["may_plan"] is True
    assert 0 < said["best_share"][0] < 1
    refused("--now is for --law", "plan", longer, "--tflops", 1, "--now", 90)
    longer.write_text(longer.read_text().replace("rate = 0.02", "rate = 0.03"))
    refused("another optimizer of the", "plan", longer, "--tflops", 1, "--law", law)


def test_several_laws_answer_for_recipe_and_step_together(run, fitted, tmp_path):
    file, law = fitted
    values = json.loads(law.read_text())
    values["facts"]["growth"]["noise"] = 0.5
    values["law"]["level"] *= 1.1
    (tmp_path / "noisy.json").write_text(json.dumps(values))
    text = file.read_text()
    last = text.rindex("noise = 0.3")
    both = tmp_path / "both.toml"
    both.write_text('budget = { node = "large", steps = 800 }\n' + text[:last] + "noise = 0.5" + text[last + 11 :])
    code, out, err = run("plan", both, "--tflops", 1, "--law", tmp_path / "noisy.json", "--law", law)
    assert code == 0, err
    assert "Recipe and step together: lowest by law.json, grown after" in out


def test_a_law_is_not_written_over_and_needs_finished_runs(fitted, refused, run, tmp_path):
    file, law = fitted
    refused("law.json exists", "law", file, tmp_path / "run", "--out", law)
    refused("holds no finished run", "law", file, tmp_path, "--out", tmp_path / "other.json")
    code, out, _ = run(
        "law", file, tmp_path / "run", "--out", tmp_path / "other.json", "--kind", "head_start", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert (found["kind"], found["runs"]) == ("head_start", 10)
