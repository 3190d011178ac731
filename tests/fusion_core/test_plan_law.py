"""Laws of plans: what in a plan a law is about, laws of finished runs, and runs whose growth a law decides."""

import dataclasses
import json

import pytest

from fusion_core.errors import InputError
from fusion_core.runs import fit_runs, law_cases, plan_forecast, read_plan, resolve, run_plan, text_of
from fusion_core.schedule import SavedLaw
from tests.strategies.laws import LARGE, SCHEDULED, law, pretend_run, short_plan, write_plan
from tests.strategies.plans import MODEL

AUTO = f"""
[node.small]
model = {MODEL}
steps = "auto"
[node.twice]
sources = ["small", "small"]
noise = 0.3
[node.grown]
from = "twice"
steps = "auto"
budget = """

RARELY = SCHEDULED.replace("evaluate = 10, checkpoint = 10", "evaluate = 50, checkpoint = 50")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A plan file with its law."""
    folder = tmp_path_factory.mktemp("short")
    file = short_plan(folder, 60, 300, 600)
    fit_runs(read_plan(file), [pretend_run(file, folder / "run")], kind="head_start", draws=4).save(folder / "law.json")
    return file


@pytest.fixture(scope="module")
def compiled():
    """Compiled steps that all runs of this file share."""
    return {}


def shrunk(saved, **changes):
    """Return a law by which all takes a fifteenth of the steps, so that a run that follows it is short."""
    return dataclasses.replace(saved, law=dataclasses.replace(saved.law, unit=saved.law.unit / 15, **changes))


def case(file):
    plan = read_plan(file)
    (found,) = law_cases(plan, resolve(plan))
    return found


def test_growths_of_one_recipe_and_pair_are_one_case(tmp_path):
    found = case(short_plan(tmp_path, 60, 300, 600))
    assert found.growths == ("twice_60", "twice_300", "twice_600")
    assert found.grown == ("grown_60", "grown_300", "grown_600")
    assert (found.small, found.scratch) == (("small",), ("large",))
    assert found.facts.growth["noise"] == 0.3
    assert found.facts.small["d_model"] == 8
    assert found.facts.large["d_model"] == 16
    assert found.facts.training["scratch"]["schedule"]["kind"] == "constant"
    small = found.small_flops
    assert found.planned == pytest.approx((60 * small, 300 * small, 600 * small))


def test_another_noise_is_another_case_and_two_growths_in_a_row_are_none(tmp_path):
    file = short_plan(tmp_path, 60, 300)
    text = file.read_text()
    same = 'sources = ["source_300", "source_300"]\nnoise = 0.3'
    file.write_text(text.replace(same, same.replace("0.3", "0.5")))
    plan = read_plan(file)
    assert [one.growths for one in law_cases(plan, resolve(plan))] == [("twice_60",), ("twice_300",)]
    with pytest.raises(
        InputError, match=r"growths of 2 recipes or pairs of networks \(twice_60; twice_300\).*name a growth"
    ):
        fit_runs(plan, [])
    file.write_text(text + '[node.more]\nsources = ["grown_60", "grown_60"]\n[node.last]\nfrom = "more"\nsteps = 20\n')
    plan = read_plan(file)
    assert all("more" not in one.growths for one in law_cases(plan, resolve(plan)))


def test_the_law_of_finished_runs_foretells_a_longer_plan_of_the_same_settings(short, tmp_path):
    saved = SavedLaw.load(short.parent / "law.json")
    file = write_plan(tmp_path, (AUTO + "2000\n"))
    plan = read_plan(file)
    said = plan_forecast(plan, resolve(plan), saved, text_of(plan))
    assert said.forecast.budget == pytest.approx(2000)
    assert said.forecast.scratch.value == pytest.approx(law(0, 2000), rel=0.005)
    assert said.forecast.never.value == pytest.approx(law(2000, 0), rel=0.005)
    assert said.forecast.grow_best.value == pytest.approx(law(499, 1501), rel=0.005)
    now = plan_forecast(plan, resolve(plan), saved, now=300)
    n1 = 300 * now.case.small_flops / now.case.large_flops
    assert now.forecast.grow_now.value == pytest.approx(law(n1, 2000 - n1), rel=0.005)
    assert not said.planned
    (planned, *_) = plan_forecast(read_plan(short), resolve(read_plan(short)), saved).planned
    assert planned[0] == pytest.approx(60 * now.case.small_flops)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("vocab = 300", "vocab = 290", "another text or tokenizer"),
        ("rate = 0.02", "rate = 0.01", r"another optimizer of the .* \(rate 0.02, here rate 0.01\)"),
        ('"constant", warmup = 0', '"rsqrt", warmup = 100', "another schedule of the"),
        ("batch = 4", "batch = 8", r"another batch \(4, here 8\)"),
        ("noise = 0.3", "noise = 0.5", r"another recipe of growth \(noise 0.3, here noise 0.5\)"),
        ("d_ff = 16", "d_ff = 8", "another small network"),
    ],
)
def test_a_law_of_other_settings_is_refused_with_what_to_run(short, tmp_path, old, new, words):
    saved = SavedLaw.load(short.parent / "law.json")
    body = AUTO + "2000\n"
    plan = read_plan(write_plan(tmp_path, body.replace(old, new), head=SCHEDULED.replace(old, new)))
    with pytest.raises(InputError, match=words) as error:
        plan_forecast(plan, resolve(plan), saved, text_of(plan))
    assert "train short runs with these settings" in str(error.value)
    assert "\n" not in str(error.value)


def test_runs_that_no_law_can_be_fitted_to_are_refused(tmp_path):
    file = short_plan(tmp_path, 60, 300, 600)
    plan = read_plan(file)
    with pytest.raises(InputError, match="none holds no finished run"):
        fit_runs(plan, [tmp_path / "none"])
    run = pretend_run(file, tmp_path / "run")
    other = read_plan(short_plan(tmp_path, 60, 300, name="other.toml"))
    with pytest.raises(InputError, match="run is of another plan: nodes differ"):
        fit_runs(other, [run])
    with pytest.raises(InputError, match=r"no law can be fitted: there are \d points of scratch, but a fit needs 6"):
        fit_runs(plan, [run], longest=50.0)
    results = json.loads((run / "results.json").read_text())
    for nodes in results["seeds"].values():
        nodes["large"]["validation_loss"] = [[at, 3.0 + at / 1e4] for at, _ in nodes["large"]["validation_loss"]]
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="curves of scratch do not fall in 2 of 2 runs; train longer"):
        fit_runs(plan, [run])
    (run / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json is not JSON"):
        fit_runs(plan, [run])


def test_a_law_in_the_plan_decides_when_a_run_grows_and_the_run_says_why(short, tmp_path, compiled):
    law_file = tmp_path / "law.json"
    saved = shrunk(SavedLaw.load(short.parent / "law.json"))
    saved.save(law_file)
    rule = RARELY.replace("[data]", '[rule]\nlaw = "law.json"\n[data]', 1)
    plan = read_plan(write_plan(tmp_path, AUTO + "70\n", head=rule))
    notes = []
    results = run_plan(plan, tmp_path / "run", note=notes.append, trainers=compiled)
    decided = results["nodes"]["grown"]["rule"]
    (found,) = law_cases(plan, resolve(plan))
    expected = saved.plan(
        70 * found.large_flops, found.small_flops, 5, facts=dataclasses.replace(found.facts, text=None)
    )
    assert decided["rule"] == "law"
    assert decided["step"] == expected.step == results["nodes"]["small"]["step"]
    assert decided["lost_trials"] == 0
    assert decided["reason"].startswith(f"Grow at step {expected.step}: the law of head_start puts the best step at")
    assert any(decided["reason"] in line for line in notes)
    spent = results["nodes"]["grown"]["total_flops"]
    assert 70 * found.large_flops * 0.9 < spent <= 70 * found.large_flops
    law_file.unlink()  # what was decided stays decided
    assert json.loads((tmp_path / "run" / "nodes" / "grown" / "online.json").read_text())["by_other"]


def test_a_law_that_is_not_sure_leaves_it_to_the_online_rule(short, tmp_path, compiled):
    saved = SavedLaw.load(short.parent / "law.json")
    shrunk(saved, drift=0.5).save(tmp_path / "law.json")
    rule = RARELY.replace("[data]", '[rule]\nlaw = "law.json"\n[data]', 1)
    file = write_plan(tmp_path, AUTO + "100\ncost_limit = 0.0\n", head=rule)
    decided = run_plan(read_plan(file), tmp_path / "run", trainers=compiled)["nodes"]["grown"]["rule"]
    assert decided["rule"] == "online"
    assert decided["reason"].startswith("The law of head_start does not plan: it knows the loss of growing at best to")
    assert "The online rule decides. Grow at step" in decided["reason"]


def test_a_law_of_other_settings_stops_a_run_before_it_trains(short, tmp_path):
    SavedLaw.load(short.parent / "law.json").save(tmp_path / "law.json")
    rule = RARELY.replace("[data]", '[rule]\nlaw = "law.json"\n[data]', 1)
    file = write_plan(tmp_path, (AUTO + "600\n").replace("noise = 0.3", "noise = 0.4"), head=rule)
    with pytest.raises(InputError, match="another recipe of growth"):
        run_plan(read_plan(file), tmp_path / "run")
    assert not (tmp_path / "run" / "nodes").exists()
    file.write_text(file.read_text().replace("law.json", "absent.json"))
    with pytest.raises(InputError, match=r"line \d+: rule.law: there is no file absent.json; fit a law first"):
        read_plan(file)


def test_two_sources_have_no_law_of_curves(tmp_path):
    body = f"""
[node.large]
model = {LARGE}
steps = 600
[node.a]
model = {MODEL}
steps = 100
[node.b]
model = {MODEL}
steps = 100
seed = 1
[node.both]
sources = ["a", "b"]
[node.grown]
from = "both"
steps = 400
"""
    file = write_plan(tmp_path, body)
    plan, run = read_plan(file), pretend_run(file, tmp_path / "run")
    with pytest.raises(InputError, match="the law of curves is of growths of one source; take the law head_start"):
        fit_runs(plan, [run], kind="curves")
    with pytest.raises(InputError, match="needs runs grown at 3 steps or more, there are 1"):
        fit_runs(plan, [run])
