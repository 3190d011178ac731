"""Plans at a toy's size, run by the engine, kept as records, merged and compared."""

import dataclasses
import json
import re
import shutil

import pytest

from fusion_core.errors import InputError
from fusion_core.runs import compare_arms, read_plan
from paper_figures.experiments import comparison, record, smoke, tables
from paper_figures.experiments.__main__ import main
from paper_figures.experiments.record import facts_of, read_record, record_of, rounded
from paper_figures.results import Results

PLAN = """
seeds = [0]
budget = { node = "scratch_0.1", steps = 4000 }
[defaults]
optimizer = { rate = 0.1 }
model = { d_model = 32, num_heads = 2, num_layers = 2 }
[node."scratch_0.1"]
model = { d_model = 64, num_heads = 4, num_layers = 2 }
steps = "rest"
[node.s15]
steps = "15%"
[node.f]
sources = ["s15", "s15"]
[node.grown]
from = "f"
steps = "rest"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of a small plan, by the command, in seed 0 and again in seed 1."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "plan.toml").write_text(PLAN)
    for seed in "01":
        run = ["tiny", "--plan", str(folder / "plan.toml"), "--out", str(folder / seed), "--smoke", "--seeds", seed]
        assert main(run) == 0
    return folder


@pytest.fixture
def merged(folder):
    return record_of("tiny", folder / "0" / "plan.toml", [folder / seed / "results.json" for seed in "10"])


def test_a_tiny_copy_keeps_the_graph_and_its_proportions(folder):
    plan = read_plan(folder / "0" / "plan.toml")
    large, small, fused, grown = plan.nodes
    assert [node.name for node in plan.nodes] == ["scratch_0.1", "s15", "f", "grown"]
    assert (large.model.d_model, small.model.d_model, large.model.num_heads) == (16, 8, 4)
    assert (plan.budget.steps, small.steps, grown.steps) == (smoke.STEPS, "15%", "rest")
    assert large.optimizer.rate == 0.1
    assert fused.sources == ("s15", "s15")


def test_runs_of_different_seeds_are_one_record_that_comes_back_as_it_was_saved(folder, merged, tmp_path):
    assert list(merged.seeds) == ["0", "1"]
    assert merged.text
    merged.save(tmp_path / "tiny.json")
    assert read_record(tmp_path / "tiny.json") == merged
    again = record_of("tiny", folder / "0" / "plan.toml", [tmp_path / "tiny.json"])
    assert again.seeds == merged.seeds


def test_a_record_is_compared_as_its_runs_are(folder, merged):
    runs = [json.loads((folder / seed / "results.json").read_text())["seeds"][seed] for seed in "01"]
    ours, theirs = (compare_arms(seeds, None) for seeds in (list(merged.seeds.values()), runs))
    for one, other in zip(ours["arms"], theirs["arms"], strict=True):
        assert one["name"] == other["name"]
        for key in ("loss", "flops", "seconds"):
            assert one[key]["values"] == pytest.approx(other[key]["values"], rel=1e-4)
    assert [s["arm"] for s in ours["savings"]] == [s["arm"] for s in theirs["savings"]]


def test_the_command_merges_and_says_where(folder, tmp_path, capsys):
    files = [str(folder / seed / "results.json") for seed in "01"]
    to = tmp_path / "tiny.json"
    assert main(["tiny", "--plan", str(folder / "0" / "plan.toml"), "--record", *files, "--to", str(to)]) == 0
    assert capsys.readouterr().out.strip() == str(to)
    assert set(read_record(to).seeds) == {"0", "1"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda v: {"nodes": {"x": next(iter(v["seeds"]["0"].values()))}},
            r"is of another plan: the plan has no x; give the plan file",
        ),
        (lambda v: {"nodes": {"x": {}}}, r"no results that can be read \(node x: kind is missing"),
        (lambda v: {"x": 1}, "has no nodes; give the results.json of a finished run"),
        (lambda v: [v], "holds no JSON object"),
        (lambda v: {"format": 9}, "has the record format 9, but this version reads 1"),
        (lambda v: {"format": 1, "name": "x"}, "is no record: it has no plan, seeds, text, provenance"),
        (lambda v: without(v, "s15"), "nodes that go on from s15, but not s15 itself"),
        (
            lambda v: without(v, "grown", "scratch_0.1"),
            "no arm of .* that is finished; its arms are scratch_0.1, grown",
        ),
    ],
)
def test_what_is_no_run_of_the_plan_is_refused(folder, tmp_path, spoil, message):
    values = json.loads((folder / "0" / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(spoil(values)))
    with pytest.raises(InputError, match=message):
        record_of("tiny", folder / "0" / "plan.toml", [tmp_path / "results.json"])


def without(values, *names):
    kept = {seed: {n: f for n, f in nodes.items() if n not in names} for seed, nodes in values["seeds"].items()}
    return values | {"seeds": kept}


def test_runs_of_different_nodes_are_one_record_and_what_leads_nowhere_is_left_out(folder, merged, tmp_path):
    values = json.loads((folder / "0" / "results.json").read_text())
    parts = {
        "a.json": without(values, "scratch_0.1"),
        "b.json": without(values, "grown"),
        "c.json": without(values, "grown"),
    }
    for name, part in parts.items():
        (tmp_path / name).write_text(json.dumps(part))
    plan = folder / "0" / "plan.toml"
    assert record_of("tiny", plan, [tmp_path / "b.json", tmp_path / "a.json"]).seeds["0"] == merged.seeds["0"]
    assert list(record_of("tiny", plan, [tmp_path / "c.json"]).seeds["0"]) == ["scratch_0.1"]
    found = comparison.compare([dataclasses.replace(merged, seeds=merged.seeds | {"2": {}})])[0]
    assert found["seeds"] == ["0", "1"]


def test_other_losses_of_a_node_and_a_plan_with_other_settings_are_refused(folder, merged, tmp_path):
    file, plan = folder / "0" / "results.json", folder / "0" / "plan.toml"
    assert record_of("tiny", plan, [file, file]).seeds["0"] == merged.seeds["0"]
    values = json.loads(file.read_text())
    values["seeds"]["0"]["grown"]["validation_loss"][-1][1] += 0.1
    (tmp_path / "other.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="has grown of seed 0 with other losses than a file before it"):
        record_of("tiny", plan, [file, tmp_path / "other.json"])
    for name in ("plan.toml", "text.txt"):
        shutil.copy(folder / "0" / name, tmp_path / name)
    text = (tmp_path / "plan.toml").read_text()
    (tmp_path / "plan.toml").write_text(text.replace('"15%"', '"20%"'))
    with pytest.raises(InputError, match="is of another plan: nodes differ"):
        record_of("tiny", tmp_path / "plan.toml", [file])
    merged.save(tmp_path / "tiny.json")
    with pytest.raises(InputError, match="is of another plan: node s15 differ"):
        record_of("tiny", tmp_path / "plan.toml", [tmp_path / "tiny.json"])


def test_a_missing_record_names_the_command_that_makes_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(record, "HERE", tmp_path)
    (tmp_path / "t.toml").write_text(PLAN)
    with pytest.raises(
        InputError, match=r"make it with: python -m paper_figures.experiments t --out runs/t --seeds 0,1,2"
    ):
        record.load_record("t")
    assert main([]) == 0
    assert "t  no record; make it with" in capsys.readouterr().out
    assert main(["nope", "--out", str(tmp_path / "x")]) == 2
    assert "there is no plan" in capsys.readouterr().err


def test_numbers_are_rounded_and_what_takes_room_is_left_out():
    assert rounded({"a": [1.23456789e9, 7, float("nan"), True, "x"]}) == {"a": [1.2346e9, 7, None, True, "x"]}
    node = {
        "step": 30,
        "loss": [[1, 2.0]],
        "final": None,
        "greedy": None,
        "theory": [{"step": 1}, {"step": 2, "conflict": 0.1}],
    }
    node["steps_per_second"] = [[10, 0.01], [20, 2.0], [30, 4.0]]
    kept = facts_of(node)
    assert kept == {"step": 30, "final": None, "theory": {"step": 2, "conflict": 0.1}, "steps_per_second": [[30, 3.0]]}
    assert facts_of(kept) == kept


def test_the_tables_have_every_arm_and_say_which_scratch_network_is_the_tuned_one(merged):
    config, arrays = comparison.compare([merged])
    found = comparison.Comparison(Results.of("tiny", "smoke", 0, config, arrays, 0.0))
    text = tables.markdown_of(found)
    assert re.search(r"\| grown \| [89] \|", text)
    assert "scratch 0.1." in text
    losses = [nodes["scratch_0.1"]["final"] for nodes in merged.seeds.values()]
    assert found.loss("scratch_0.1").mean <= sum(losses) / 2
    assert found.difference("grown", "scratch_0.1").mean == pytest.approx(
        found.loss("grown").mean - found.loss("scratch_0.1").mean
    )


@pytest.mark.parametrize(("device", "wanted"), [("gpu: one", comparison.REFERENCE), ("cpu: cpu", comparison.FLOAT32)])
def test_the_reference_is_of_the_same_kind_of_device_and_of_the_same_text(merged, monkeypatch, device, wanted):
    of_device = {s: {n: f | {"device": device} for n, f in nodes.items()} for s, nodes in merged.seeds.items()}
    bare = {seed: {n: f for n, f in nodes.items() if n != "scratch_0.1"} for seed, nodes in of_device.items()}
    records = {"other": dataclasses.replace(merged, name="other", seeds=bare), wanted: merged}
    monkeypatch.setattr(comparison, "load_record", records.__getitem__)
    one, reference = comparison.records_of("other", "full")
    assert set(comparison.arms_of_records([one, reference])) == {"grown", "scratch_0.1"}
    records[wanted] = dataclasses.replace(merged, text="another")
    with pytest.raises(InputError, match=f"other and {wanted} are of different texts"):
        comparison.records_of("other", "full")


@pytest.mark.parametrize("name", sorted(name for name in record.names() if record.path_of(name, "json").exists()))
def test_a_committed_record_is_of_its_plan_and_small(name):
    path = record.path_of(name, "json")
    again = record_of(name, record.path_of(name, "toml"), [path])
    assert again.seeds == record.load_record(name).seeds
    assert path.stat().st_size < 500_000
    nodes = next(iter(again.seeds.values()))
    measured = [node for node in nodes.values() if node["kind"] != "train" and "theory" in node]
    assert compare_arms([nodes], None)["arms"] or len(measured) > 1  # arms that end, or events that were measured
