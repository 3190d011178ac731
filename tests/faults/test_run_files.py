"""Files of runs whose values are of other types: every reader answers in one line, or with what the file means."""

import contextlib
import copy as copies
import json

import pytest

from fusion_core import checkpoints
from fusion_core.checkpoints.growth_file import read_growth
from fusion_core.errors import InputError
from fusion_core.runs.results import check_nodes, read_results
from fusion_core.schedule.curves import run_curves
from fusion_core.schedule.decision import GrowthDecision
from fusion_core.schedule.law import SavedLaw, fit_law
from fusion_core.schedule.trials import TrialRule
from paper_figures.experiments.record import read_record
from paper_figures.results import Results, ResultsError
from tests.faults.conftest import PLAN
from tests.fusion_core.test_growth_law import ALL, FACTS, seeds
from tests.strategies.checkpoints import saved_t5

VALUES = [None, True, -1, 1.5, 10**40, "x", "", [], [[]], {}, {"a": "b"}]
FEW = [None, True, "x", [], {}]


def places(value, path=()):
    """The paths of all values in JSON; of a list those of its first entry."""
    yield path
    parts = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(values, path, value):
    if not path:
        return value
    new = copies.deepcopy(values)
    at = new
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return new


def survives(file, use, errors=InputError, values=VALUES):
    """``use`` of the file with every value replaced by others, or left out, ends or raises an error of one line."""
    known = json.loads(file.read_text())
    use(file)
    variants = [(path, changed(known, path, value)) for path in places(known) for value in values]
    for path in places(known):
        if path and isinstance(path[-1], str):
            parent = known
            for key in path[:-1]:
                parent = parent[key]
            variants.append((path, changed(known, path[:-1], {k: v for k, v in parent.items() if k != path[-1]})))
    refused = 0
    for path, variant in variants:
        file.write_text(json.dumps(variant))
        try:
            use(file)
        except errors as error:
            refused, said = refused + 1, str(error)
        else:
            said = ""
        assert "\n" not in said, path
        assert len(said) < 1500, path
    file.write_text(json.dumps(known))
    assert refused > len(variants) / 4


def test_a_decision_and_a_state_of_the_rule_of_trials(tmp_path):
    file = tmp_path / "a.json"
    GrowthDecision(3, 0.1, {"q": 2.0}, "why", "online").save(file)
    survives(file, GrowthDecision.load)
    TrialRule.start(sources=2, small_flops=1.0, grown_flops=4.0, total_flops=1e4, batches=3).save(file)
    survives(file, TrialRule.load)


def test_a_law(tmp_path):
    law = fit_law("head_start", run_curves(seeds(), **ALL), FACTS, draws=3)
    law.save(tmp_path / "law.json")

    def use(file):
        read = SavedLaw.load(file)
        read.plan(1200 * read.unit, read.unit / 4, 20, facts=read.facts)
        return read.recipe

    survives(tmp_path / "law.json", use, values=[None, "x", -1, 10**40, []])


def test_results_and_what_is_made_of_them(finished):
    file = finished[1] / "results.json"
    survives(file, read_results, values=FEW)
    values = json.loads(file.read_text())
    nodes = values["nodes"]
    for name, inputs in (("a", ["a"]), ("a", ["b"])):
        with pytest.raises(ValueError, match=r"in a circle|which is not there"):
            check_nodes(nodes | {name: nodes["a"] | {"inputs": inputs}}, whole=True)
    check_nodes(nodes | {"a": nodes["a"] | {"inputs": ["b"]}}, whole=False)


def test_a_record_and_results_of_a_figure(finished, tmp_path):
    nodes = json.loads((finished[1] / "results.json").read_text())["nodes"]
    record = {"format": 1, "name": "a", "plan": PLAN, "text": None, "provenance": [{}], "seeds": {"0": nodes}}
    (tmp_path / "a.json").write_text(json.dumps(record))
    survives(tmp_path / "a.json", read_record, values=FEW)
    Results.of("a", "smoke", 0, {"x": 1}, {"y": [1.0, float("nan")]}, 0.0).save(tmp_path / "b.json")
    survives(tmp_path / "b.json", Results.load, ResultsError)


def test_the_facts_of_a_node_and_the_files_of_a_run(copy, refused):
    plan, folder = copy
    file = folder / "nodes" / "a" / "done.json"
    known = json.loads(file.read_text())
    del known["sha256"]  # else the sum is noticed first
    for name, value in (
        ("step", "20"),
        ("step", -1),
        ("work", "../../a"),
        ("work", "/etc"),
        ("flops", "many"),
        ("start", [0]),
    ):
        file.write_text(json.dumps(known | {name: value}))
        refused(f"done.json holds no facts of a node ({name} is", "train", plan, "--out", folder, "--resume")


def test_a_growth(tmp_path):
    saved_t5(tmp_path / "a")
    checkpoints.write_recipe(checkpoints.fusion_recipe([tmp_path / "a"] * 2, noise=0.1), tmp_path / "out", probe=False)
    file = tmp_path / "out" / "growth.json"
    known = json.loads(file.read_text())
    name = "shared.weight"
    small = known | {"tensors": {name: known["tensors"][name]}}
    file.write_text(json.dumps(small))
    survives(file, read_growth, values=FEW)
    for path in places(known["event"]):
        for value in (None, -1, "x", [], {}):
            file.write_text(json.dumps(known | {"event": changed(known["event"], path, value)}))
            with contextlib.suppress(InputError):
                read_growth(file).mapping()
