"""Plans that run: each node trained, fused or grown once, interrupted and resumed, over seeds."""

import json
import math
import re
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
import safetensors.numpy

import fusion_core as fc
from fusion_core.models.registry import parameter_shapes
from fusion_core.models.units import by_name
from fusion_core.runs import context, read_plan, resolve, run_plan
from fusion_core.runs.node_files import DONE, write_node
from fusion_core.train import Interrupted, Metrics
from fusion_core.train.ahead import Ahead, _key
from fusion_core.train.loop import graceful_interrupt
from tests.strategies.plans import ARMS, BUDGET, GROWN, HEAD, SOURCES

# of the run at once: its trainers; and of each of their functions, whether calls took what was compiled ahead
TRAINERS, CALLS = {}, {}


def numbers(folder, name):
    """Of a node: its weights, and what it measured but for the clock."""
    done = json.loads((folder / "nodes" / name / DONE).read_text())
    file = folder / "nodes" / name / done["work"] / "checkpoints" / f"step-{done['step']}.safetensors"
    kept = ("step", "loss", "accuracy", "gradient_norm", "learning_rate", "validation_loss")
    records = Metrics(folder / "nodes" / name / done["work"] / "metrics.jsonl").records
    return safetensors.numpy.load_file(file), [{k: r[k] for k in kept if k in r} for r in records]


def same(one, other, name):
    (weights, records), (other_weights, other_records) = numbers(one, name), numbers(other, name)
    assert weights.keys() == other_weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(array, other_weights[key], err_msg=f"{name}: {key}")
    assert records == other_records


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """(plan file, folder) of S + S → M, run at once."""
    folder = tmp_path_factory.mktemp("plan")
    shutil.copy(text, folder / "text.txt")
    (folder / "plan.toml").write_text(HEAD + SOURCES + GROWN, encoding="utf-8")
    notes = []
    call = Ahead.__call__

    def noted(self, *arguments):
        made = self._made.get(_key(arguments))
        CALLS.setdefault(self, set()).add(made is not None and made.result() is not None)
        return call(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ahead, "__call__", noted)
        results = run_plan(read_plan(folder / "plan.toml"), folder / "run", note=notes.append, trainers=TRAINERS)
    assert "fused: from a, b at step 20" in notes
    return folder / "plan.toml", folder / "run", results


def test_a_plan_trains_fuses_and_trains_on(whole):
    _, folder, results = whole
    nodes = results["nodes"]
    assert [nodes[n]["step"] for n in ("a", "b", "fused", "m")] == [20, 20, 20, 30]
    assert nodes["m"]["total_flops"] == sum(nodes[n]["flops"] for n in ("a", "b", "m"))
    assert all(math.isfinite(nodes[n]["final"]) for n in ("a", "b", "m"))
    assert numbers(folder, "a")[1] != numbers(folder, "b")[1]
    networks = {n: fc.load_pretrained(folder / "nodes" / n / "model") for n in nodes}
    fused, config = fc.fuse([networks["a"], networks["b"]])
    assert config == networks["fused"][1] == networks["m"][1]
    jax.tree.map(np.testing.assert_array_equal, fused, networks["fused"][0])
    assert (folder / "nodes" / "m" / "model" / "tokenizer.json").exists()


def test_the_grown_step_and_its_evaluation_are_compiled_while_the_small_ones_train(whole):
    small, grown = sorted(TRAINERS.values(), key=lambda trainer: len(trainer._steps._made))
    for function in (grown._steps, grown._evaluate):
        assert len(function._made) == 1
        assert CALLS[function] == {True}
    assert CALLS[small._steps] == CALLS[small._evaluate] == {False}
    (carries,) = set(CALLS) - {f for t in TRAINERS.values() for f in (t._steps, t._evaluate)}
    assert CALLS[carries] == {True}


def test_a_growth_s_files_are_written_while_what_is_grown_trains_and_in_order(whole, tmp_path, monkeypatch):
    file, folder, _ = whole
    shutil.copytree(folder.parent, tmp_path / "copy")
    for name in ("fused", "m"):
        shutil.rmtree(tmp_path / "copy" / "run" / "nodes" / name)
    trains, written, place = threading.Event(), [], tmp_path / "copy" / "run"

    def late(folder, *arguments):
        assert trains.wait(60)
        assert bool(list((place / "nodes" / "m").glob("checkpoints/*"))) == (folder.name == "m")
        write_node(folder, *arguments)
        written.append(folder.name)

    monkeypatch.setattr(context, "write_node", late)
    show = lambda record: trains.set() if record["node"] == "m" else None
    run_plan(read_plan(file), place, show=show, trainers=TRAINERS)
    assert written == ["fused", "m"]
    same(place, folder, "m")


def test_what_fails_while_a_growth_is_written_ends_the_run_and_nothing_after_it_is_kept(whole, tmp_path, monkeypatch):
    file, folder, _ = whole
    place = tmp_path / "copy" / "run"
    shutil.copytree(folder.parent, tmp_path / "copy")
    for name in ("fused", "m"):
        shutil.rmtree(place / "nodes" / name)

    def fails(folder, *arguments):
        raise OSError(f"{folder.name} cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(context, "write_node", fails)
        with pytest.raises(OSError, match="fused cannot be written"):
            run_plan(read_plan(file), place, trainers=TRAINERS)
    assert not list((place / "nodes" / "m").glob("checkpoints/*"))
    assert not (place / "nodes" / "fused" / DONE).exists()
    run_plan(read_plan(file), place, trainers=TRAINERS)
    same(place, folder, "m")


def test_a_network_that_is_trained_in_pieces_is_the_one_that_is_trained_at_once(whole, text, tmp_path):
    shutil.copy(text, tmp_path / "text.txt")
    pieces = SOURCES.split("[node.b]")[0].replace("steps = 20", "steps = 10")
    assert pieces.count("steps = 10") == 1
    seed = re.search(r"seed = \d+", pieces)
    pieces += f'[node.again]\nfrom = "a"\nsteps = 10\n{seed[0] if seed else ""}\n'
    (tmp_path / "plan.toml").write_text(HEAD + pieces, encoding="utf-8")
    run_plan(read_plan(tmp_path / "plan.toml"), tmp_path / "run")
    weights, records = numbers(tmp_path / "run", "again")
    whole_weights, whole_records = numbers(whole[1], "a")
    jax.tree.map(np.testing.assert_array_equal, weights, whole_weights)
    assert records[-1] == whole_records[-1]


def test_nodes_may_run_apart_and_be_joined_by_their_checkpoints(whole, tmp_path):
    file, folder, _ = whole
    plan = read_plan(file)
    # two machines: each trains a source, with text of its own copy
    for machine, node in (("one", "a"), ("two", "b")):
        assert run_plan(plan, tmp_path / machine, only=node) is None
    with pytest.raises(fc.InputError, match=r"node b is not finished: .*copy its folder from the machine"):
        run_plan(plan, tmp_path / "one", only="fused")
    shutil.copytree(tmp_path / "two" / "nodes" / "b", tmp_path / "one" / "nodes" / "b")
    results = run_plan(plan, tmp_path / "one")
    assert results is not None
    for name in ("a", "b", "fused", "m"):
        same(tmp_path / "one", folder, name)


def test_a_run_that_is_interrupted_goes_on_bit_for_bit(whole, tmp_path):
    file, folder, _ = whole
    plan, seen = read_plan(file), []

    def interrupt(record):
        seen.append((record["node"], record["step"]))
        if seen[-1] in (("b", 5), ("m", 25)) and seen.count(seen[-1]) == 1:
            signal.raise_signal(signal.SIGINT)

    stops = 0
    for _ in range(3):
        try:
            with graceful_interrupt():
                run_plan(plan, tmp_path / "run", show=interrupt)
            break
        except Interrupted:
            stops += 1
    assert stops >= 1
    for name in ("a", "b", "fused", "m"):
        same(tmp_path / "run", folder, name)


def test_another_plan_in_the_same_folder_is_refused(whole):
    file, folder, _ = whole
    other = file.with_name("other.toml")
    other.write_text(file.read_text().replace("steps = 10", "steps = 15"))
    with pytest.raises(fc.InputError, match="is of another plan: name, nodes differ"):
        run_plan(read_plan(other), folder)


def test_text_that_is_too_short_for_a_batch_is_refused(plan_of, tmp_path):
    file = plan_of(SOURCES, HEAD.replace("batch = 4", "batch = 4000"))
    with pytest.raises(
        fc.InputError, match=r"the training text has \d+ windows of 16 source tokens, but a batch needs 4000"
    ):
        run_plan(read_plan(file), tmp_path / "run")


def test_self_fusion_with_noise_and_a_restarted_schedule_keeps_the_loss(plan_of, tmp_path):
    """The fused network begins where its source ended, up to noise that changes no output."""
    nodes = SOURCES.split("[node.b]")[0] + (
        '[node.twice]\nsources = ["a", "a"]\noff_diagonal = "antisymmetric"\nnoise = 0.3\n'
        '[node.m]\nfrom = "twice"\nsteps = 5\ncadence = { log = 5, evaluate = 5 }\n'
        'optimizer = { rate = 1e-9 }\nschedule = { kind = "constant", warmup = 2, restart = true }\n'
    )
    results = run_plan(read_plan(plan_of(nodes)), tmp_path / "run")
    assert results["nodes"]["m"]["final"] == pytest.approx(results["nodes"]["a"]["final"], rel=1e-4)
    rates = [r["learning_rate"] for r in numbers(tmp_path / "run", "m")[1] if "learning_rate" in r]
    assert rates == pytest.approx([1e-9])


@pytest.mark.parametrize("operator", ["hypercloning", "sparkling", "identity_layers", "shrink_perturb", "random_init"])
def test_a_network_is_grown_by_an_operator_and_trained_on(plan_of, tmp_path, operator):
    state = 'optimizer_state = "fresh"\n' if operator == "random_init" else ""
    nodes = SOURCES.split("[node.b]")[0] + (
        f'[node.g]\nfrom = "a"\noperator = "{operator}"\nfactor = 2\n{state}[node.m]\nfrom = "g"\nsteps = 5\n'
    )
    file = plan_of(nodes)
    results = run_plan(read_plan(file), tmp_path / "run")
    a, g, m = (results["nodes"][name] for name in "agm")
    assert (g["kind"], g["step"], m["start"], m["step"]) == ("grow", 20, 20, 25)
    assert g["parameters"] > 1.2 * a["parameters"]
    at, loss = m["validation_loss"][0]
    assert at == 20
    assert (loss == pytest.approx(a["final"], rel=1e-4)) == fc.GROWTH_OPERATORS[operator].properties.function_preserving
    # the plan's defaults: Adafactor's factors are by width for shrink_perturb, and 1 for all others, hypercloning's too
    config = resolve(read_plan(file))[0].config
    factors = by_name(fc.rate_factors(parameter_shapes(config), config, 2, "adafactor"))
    assert min(factors.values()) < 0.8 < max(factors.values()) == 1
    rates = {
        k.removeprefix("rates."): v for k, v in numbers(tmp_path / "run", "m")[0].items() if k.startswith("rates.")
    }
    assert rates
    for name, rate in rates.items():
        wanted = factors[name] if operator == "shrink_perturb" else 1.0
        assert rate / max(rates.values()) == pytest.approx(wanted, rel=1e-5), name


def test_seeds_share_their_text_and_their_compiled_steps_and_are_compared(plan_of, tmp_path):
    file = plan_of(ARMS, BUDGET.replace("steps = 100", "steps = 30").replace("[data]", "seeds = [0, 4]\n[data]"))
    trainers = {}
    results = run_plan(read_plan(file), tmp_path / "run", trainers=trainers)
    assert len(trainers) == 2  # one for each shape
    assert results["seeds"].keys() == {"0", "4"}
    arms = {arm["name"]: arm for arm in results["comparison"]["arms"]}
    assert arms.keys() == {"grown", "alone", "large"}
    for name, node in (("grown", "m"), ("alone", "alone"), ("large", "large")):
        losses = [nodes[node]["final"] for nodes in results["seeds"].values()]
        assert losses[0] != losses[1]
        assert arms[name]["loss"]["values"] == losses
        assert arms[name]["loss"]["mean"] == pytest.approx(np.mean(losses))
        assert arms[name]["loss"]["standard_error"] == pytest.approx(abs(losses[0] - losses[1]) / 2)
    saving = next(s for s in results["comparison"]["savings"] if (s["arm"], s["other"]) == ("grown", "large"))
    pairs = [nodes["m"]["final"] - nodes["large"]["final"] for nodes in results["seeds"].values()]
    assert saving["difference"]["values"] == pytest.approx(pairs)
    for seed in ("0", "4"):
        assert (tmp_path / "run" / f"seed-{seed}" / "nodes" / "m" / "model").is_dir()
    # one seed alone gives the same numbers
    alone = read_plan(
        plan_of(ARMS, file.read_text().split("[data]")[0].replace("[0, 4]", "[4]") + HEAD[HEAD.index("[data]") :])
    )
    again = run_plan(alone, tmp_path / "alone", trainers=trainers)
    assert again["nodes"]["m"]["final"] == results["seeds"]["4"]["m"]["final"]


def test_a_node_stops_at_a_loss_and_the_rest_of_the_budget_goes_on_from_there(plan_of, tmp_path):
    whole = run_plan(read_plan(plan_of(SOURCES.split("[node.b]")[0])), tmp_path / "whole")["nodes"]["a"]
    losses = dict(map(tuple, whole["validation_loss"]))
    nodes = (
        ARMS.split("[node.large]")[0]
        .replace("steps = '35%'", "steps = 20")
        .replace('steps = "35%"', f"steps = 20\nuntil_loss = {losses[10]!r}", 1)
    )
    plan = read_plan(plan_of(nodes, BUDGET.replace("steps = 100", "steps = 20")))
    results = run_plan(plan, tmp_path / "run")["nodes"]
    assert results["a"]["step"] == 10
    assert results["a"]["flops"] == 10 * results["a"]["step_flops"]
    budget = 20 * results["m"]["step_flops"]
    for name in ("m", "alone"):
        assert 0 <= budget - results[name]["total_flops"] < 5 * results[name]["step_flops"]


def test_the_terms_of_the_theory_are_estimated_at_the_checkpoints(plan_of, tmp_path):
    plan = read_plan(plan_of(SOURCES + GROWN, HEAD.replace("[data]", "measure = true\n[data]")))
    nodes = run_plan(plan, tmp_path / "run")["nodes"]
    assert [record["step"] for record in nodes["m"]["theory"]] == [30]
    assert nodes["m"]["theory"][0]["modified_loss"] > nodes["m"]["theory"][0]["loss"]
    assert nodes["a"]["theory"] == []  # with its growth
    fused = nodes["fused"]
    assert [record["step"] for record in fused["theory"]] == [10, 20]
    for record in fused["theory"]:
        assert {"conflict", "conflict_se", "small_rate", "grown_rate", "modified_loss_fused"} <= record.keys()
        assert record["modified_loss_fused"] > record["loss_fused"]
    assert fused["greedy"]["reason"]


def test_streamed_and_packed_text_with_dropout_goes_on_bit_for_bit(plan_of, tmp_path):
    head = HEAD.replace("vocab = 300", "vocab = 300\nstream = true\npacked = true")
    nodes = SOURCES.split("[node.b]")[0].replace("d_model = 8", "dropout_rate = 0.2, d_model = 8")
    plan = read_plan(plan_of(nodes + "compute = { z_loss = 1e-4 }\n", head))
    run_plan(plan, tmp_path / "whole")

    def interrupt(record):
        if record["step"] == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted), graceful_interrupt():
        run_plan(plan, tmp_path / "run", show=interrupt)
    assert run_plan(plan, tmp_path / "run") is not None
    same(tmp_path / "run", tmp_path / "whole", "a")
    assert not (tmp_path / "run" / "data" / "tokens.npz").exists()


def test_the_online_rule_decides_when_steps_are_auto(plan_of, tmp_path):
    nodes = SOURCES.replace("steps = 20", "steps = 'auto'") + GROWN.replace("steps = 10", "steps = 'auto'\nbudget = 60")
    file = plan_of(nodes + "cost_limit = 0.4\n")
    plan, notes = read_plan(file), []
    results = run_plan(plan, tmp_path / "run", note=notes.append)
    grown = results["nodes"]["m"]
    rule = grown["rule"]
    budget = 60 * grown["step_flops"]
    assert grown["total_flops"] <= budget * (1 + 1e-9)
    assert grown["total_flops"] > 0.8 * budget
    assert rule["lost_share"] <= 0.4
    assert results["nodes"]["fused"]["step"] == results["nodes"]["a"]["step"] == grown["start"]
    # what is finished is not done again, and says the same
    again = run_plan(plan, tmp_path / "run")
    assert json.dumps(again["nodes"]) == json.dumps(results["nodes"])
