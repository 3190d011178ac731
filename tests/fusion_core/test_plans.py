"""Growth plans: what is wrong with one is said before anything runs; what is right runs, and goes on where it stopped."""

import json
import math
import shutil
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy

import fusion_core as fc
from fusion_core.models.t5.flops import step_flops
from fusion_core.runs import costs, read_plan, resolve, run_plan
from fusion_core.runs.context import DONE
from fusion_core.runs.cost import shapes_of, tree_bytes
from fusion_core.text.span_corruption import window_length
from fusion_core.train import Interrupted, Metrics, adafactor
from fusion_core.train.loop import graceful_interrupt
from tests.strategies.compiled import cached_in
from tests.strategies.plans import HEAD, MODEL
from tests.strategies.texts import documents

SOURCES = f"""
[node.a]
model = {MODEL}
steps = 20
[node.b]
model = {MODEL}
steps = 20
seed = 1
"""
GROWN = """
[node.fused]
sources = ["a", "b"]
[node.m]
from = "fused"
steps = 10
seed = 2
"""


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    return file


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The networks of this file, and of tests/deepfusion/test_train_cli.py, are all alike."""
    with cached_in(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture
def plan_of(text, tmp_path):
    """``plan_of(text of nodes)`` -> a file; ``head`` is what comes before them."""

    def write(nodes, head=HEAD):
        shutil.copy(text, tmp_path / "text.txt")
        file = tmp_path / "plan.toml"
        file.write_text(head + nodes, encoding="utf-8")
        return file

    return write


def refusal(file, devices=None):
    with pytest.raises(fc.InputError) as caught:
        resolve(read_plan(file), devices)
    return str(caught.value)


# What is wrong


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("", "the plan has no nodes"),
        (SOURCES + GROWN.replace('"b"]', '"c"]'), "node fused: its input 'c' is missing; there are a, b, fused, m"),
        (
            SOURCES + '[node.x]\nfrom = "y"\nsteps = 5\n[node.y]\nsources = ["x", "a"]\n',
            "there is a cycle: y → x → y; a node cannot come before itself",
        ),
        (SOURCES.replace("seed = 1", "sead = 1"), "node b has an unknown field 'sead'; did you mean 'seed'?"),
        (SOURCES.replace("d_kv", "kv"), "node a: model has an unknown field 'kv'; did you mean 'd_kv'?"),
        (SOURCES + '[node.f]\nsources = ["a", "b"]\nkind = "mix"', "node f is of kind 'mix'; there are train, fuse, grow"),
        (SOURCES + '[node.f]\nsources = ["a"]', "node f: a fusion has at least two sources; name one twice"),
        (SOURCES + '[node.f]\nsources = ["a", "b"]\nweights = [0.5, 0.6]', "node f: the weights are [0.5, 0.6]; they must"),
        (SOURCES + '[node.f]\nsources = ["a", "b"]\nnoise = 0.1', "node f: noise is 0.1 with off_diagonal = 'zero'"),
        (
            SOURCES + '[node.f]\nsources = ["a", "b"]\nnoise = 0.1\noff_diagonal = "antisymmetric"',
            "node f: antisymmetric noise is for copies of one source",
        ),
        (SOURCES.replace("steps = 20", "steps = 21", 1), "node a: steps is 21, but a dispatch has 5 steps"),
        (SOURCES.replace("steps = 20", "", 1), "node a: how many steps?"),
        (SOURCES.replace("steps = 20", "steps = 0", 1), "node a: steps is 0; it must be a whole number"),
        (SOURCES.replace("steps = 20", "steps = true", 1), "node a: steps is True; it must be a whole number"),
        ("[node.a]\nsteps = 5", "node a: give either a model, for a random start, or from = NODE"),
        ('[node.a]\nsteps = 5\nmodel = "t5-huge"', "node a: no T5 is named 't5-huge'"),
        (SOURCES.replace("seed = 1", "cadence = { log = 7 }"), "node b: log is every 7 steps, but a dispatch has 5"),
        (SOURCES.replace("seed = 1", 'optimizer = { name = "adam" }'), "node b: optimizer.name is 'adam'; it must be"),
        (SOURCES.replace("seed = 1", "schedule = { kind = 'cosine', warmup = 20 }"), "node b: the schedule's warmup of 20"),
        (SOURCES.replace("seed = 1", "schedule = { factor = 2.0 }"), "node b: schedule.factor is for a restart"),
        (SOURCES.replace("seed = 1", "length = 100000"), "node b: a source of 100000 tokens needs more than 100 sentinels"),
        (SOURCES.replace("{ d_model", "{ vocab_size = 50, d_model", 1), "node a: the model's vocab_size is 50, but"),
        (
            SOURCES + '[node.c]\nfrom = "a"\nsteps = 5\noptimizer = { name = "adamw" }',
            "node c: its optimizer, adamw, cannot go on with the state of a, adafactor",
        ),
        (
            SOURCES + '[node.c]\nfrom = "a"\nsteps = 5\noptimizer = { clip = 1.0 }',
            "node c: its optimizer, adafactor with clipping, cannot go on with the state of a, adafactor",
        ),
        (SOURCES.replace("steps = 20", "steps = 'auto'", 1), "node a: steps = 'auto' needs exactly one node with a budget"),
        (
            SOURCES.replace("steps = 20", "steps = 'auto'") + GROWN.replace("steps = 10", "steps = 'auto'"),
            "node m: steps = 'auto' needs a budget",
        ),
        (SOURCES + '[node.f]\nsources = "a"', "node f: sources is 'a'; it must be a list"),
        (SOURCES.replace("seed = 1", "batch = '8'"), "node b: batch is '8'; it must be a whole number"),
        (SOURCES.replace("seed = 1", "optimizer = 3"), "node b: optimizer is 3; it must be a table"),
        (SOURCES.replace("seed = 1", "match_cross_attention = 1"), "node b: match_cross_attention is 1; it must be true or"),
        (SOURCES.replace("seed = 1", "compute = { dtype = 'half' }"), "node b: Compute.dtype is 'half'; it must be"),
        (SOURCES + "[node.'a/b']\nsteps = 5", "node a/b: a name has letters, digits"),
        (SOURCES.replace("steps = 20", "steps = '35%'", 1), "node a: steps is '35%', but the plan has no budget"),
        (SOURCES.replace("steps = 20", "steps = 'half'", 1), "node a: steps is 'half'; it must be a whole number, at"),
        (SOURCES + '[node.g]\nfrom = "a"\noperator = "mitosis"', "node g: operator is 'mitosis'; there are deep_fusion,"),
        (SOURCES + '[node.g]\nfrom = "a"\noperator = "stacking"\nwidth = 4', "node g: stacking got width; give exactly one of"),
        (SOURCES + '[node.g]\noperator = "stacking"\nfactor = 2', "node g: from is missing"),
        (
            SOURCES + '[node.g]\nfrom = "a"\noperator = "aki"\nfactor = 2\nrates = "velocity"',
            "node g: aki has no factors that keep the velocity",
        ),
        (SOURCES.replace("seed = 1", "until_loss = -1.0"), "node b: until_loss is -1.0; it must be at least 0"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_run_is_refused_with_the_reason(plan_of, nodes, message):
    assert message in refusal(plan_of(nodes))


def test_fusing_unequal_depths_or_vocabularies_is_found_from_the_configurations(plan_of):
    deeper = SOURCES.replace(
        "num_layers = 1, num_decoder_layers = 1 }\nsteps = 20\nseed", "num_layers = 3 }\nsteps = 20\nseed"
    )
    said = refusal(plan_of(deeper + GROWN))
    assert said.startswith("node fused: ")
    assert "depth" in said
    other = SOURCES.replace("{ d_model = 8", "{ vocab_size = 500, d_model = 8", 1)
    said = refusal(plan_of(other + GROWN))
    assert "500" in said
    assert "vocab" in said


def test_all_errors_are_said_at_once(plan_of):
    said = refusal(plan_of(SOURCES.replace("seed = 1", "sead = 1").replace("d_kv", "kv", 1)))
    assert "'sead'" in said
    assert "'kv'" in said


def test_every_error_has_its_line(plan_of):
    text = HEAD + SOURCES.replace("seed = 1", "batch = 0\noptimizer = { rat = 1.0 }")
    said = refusal(plan_of(text[len(HEAD) :], HEAD.replace("vocab = 300", "vocab = 'many'")))
    lines = text.splitlines()
    for words, key in (
        ("data.vocab is 'many'; it must be a whole number", "vocab = 300"),
        ("node b: batch is 0; it must be at least 1", "batch = 0"),
        ("node b: optimizer has an unknown field 'rat'; did you mean 'rate'?", "optimizer = { rat = 1.0 }"),
    ):
        assert f"line {lines.index(key) + 1}: {words}" in said


def test_a_batch_that_the_devices_cannot_share_is_found_by_the_plan(plan_of):
    file = plan_of(SOURCES)
    resolve(read_plan(file), 4)
    assert "node a: a batch of 4 cannot be shared evenly by 3 devices; take a multiple of 3" in refusal(file, 3)


def test_missing_text_a_missing_file_and_no_toml_are_refused(plan_of, tmp_path):
    assert "data: there is no file or folder gone.txt" in refusal(
        plan_of(SOURCES, HEAD.replace("text.txt", "gone.txt"))
    )
    assert "there is no plan" in refusal(tmp_path / "none.toml")
    assert "cannot be read as TOML" in refusal(plan_of("[node.a"))


# What follows from a plan


def test_nodes_come_after_their_inputs_and_steps_are_counted_through_them(plan_of):
    file = plan_of(GROWN + SOURCES + '[node.more]\nfrom = "m"\nsteps = 15\n')
    nodes = {r.name: r for r in resolve(read_plan(file))}
    assert list(nodes) == ["a", "b", "fused", "m", "more"]
    assert [(r.start, r.until) for r in nodes.values()] == [(0, 20), (0, 20), (20, 20), (20, 30), (30, 45)]
    assert nodes["more"].config.d_model == 16
    assert nodes["m"].flops == 10 * nodes["m"].step_flops


def test_the_paths_of_a_plan_are_relative_to_it_and_defaults_are_filled_in(plan_of, tmp_path):
    plan = read_plan(plan_of(SOURCES.replace("seed = 1", "optimizer = { clip = 1.0 }")))
    assert plan.data.text == (str(tmp_path / "text.txt"),)
    a, b = plan.nodes
    assert (a.batch, a.optimizer.rate, a.optimizer.clip) == (4, 0.02, 0.0)
    assert (b.optimizer.rate, b.optimizer.clip) == (0.02, 1.0)


def test_the_cost_of_a_plan_is_counted_from_the_shapes(plan_of):
    nodes = resolve(read_plan(plan_of(SOURCES + GROWN)))
    found = {cost.name: cost for cost in costs(nodes, 2, 1e9)}
    a = found["a"]
    config = nodes[0].config
    assert a.flops == pytest.approx(20 * step_flops(config, 4, 16, window_length(16, 0.15, 3.0)[1]))
    assert a.hours == pytest.approx(a.flops / 1e9 / 3600)
    assert a.parameter_bytes == 4 * a.parameters == a.gradient_bytes
    state = jax.eval_shape(adafactor().init, shapes_of(config))
    assert a.optimizer_bytes == tree_bytes(state) < a.parameter_bytes
    assert a.activation_bytes > 0
    assert found["fused"].flops == 0
    assert found["m"].parameters > 2 * a.parameters


BUDGET = HEAD.replace("[data]", 'budget = { node = "m", steps = 100 }\n[data]')
SELF = '[node.fused]\nsources = ["a", "a"]\n'
ARMS = f"""
[node.a]
model = {MODEL}
steps = "35%"
{SELF}
[node.m]
from = "fused"
steps = "rest"
arm = "grown"
[node.alone]
from = "a"
steps = "rest"
[node.large]
model = {MODEL.replace("8", "16").replace("d_ff = 16", "d_ff = 32").replace("heads = 2", "heads = 4")}
steps = "rest"
seed = 3
"""


def test_shares_and_rests_of_a_budget_end_all_arms_at_equal_flops(plan_of):
    nodes = {r.name: r for r in resolve(read_plan(plan_of(ARMS, BUDGET)))}
    budget = 100 * nodes["m"].step_flops
    assert nodes["large"].config == nodes["m"].config
    assert nodes["large"].steps == 100
    assert sum(nodes["a"].spent.values()) == pytest.approx(0.35 * budget, abs=5 * nodes["a"].step_flops)
    for arm in ("m", "alone", "large"):
        assert 0 <= budget - sum(nodes[arm].spent.values()) < 5 * nodes[arm].step_flops, arm


@pytest.mark.parametrize(
    ("nodes", "head", "message"),
    [
        (
            ARMS,
            BUDGET.replace('node = "m"', 'node = "fused"'),
            "the budget is in steps of 'fused', which is not trained",
        ),
        (
            ARMS,
            BUDGET.replace("steps = 100", "steps = 1"),
            "node a: steps is '35%', but that pays for less than a dispatch",
        ),
        (
            ARMS,
            BUDGET.replace(", steps = 100", ""),
            "the budget is a number of FLOPs, or { node = NAME, steps = NUMBER }",
        ),
        (ARMS, BUDGET.replace("[data]", "seeds = [1, 1]\n[data]"), "seeds is [1, 1]; each must be there once"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(plan_of, nodes, head, message):
    assert message in refusal(plan_of(nodes, head))


# Runs


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
    results = run_plan(read_plan(folder / "plan.toml"), folder / "run", note=notes.append)
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


@pytest.mark.parametrize("operator", ["hypercloning", "identity_layers"])
def test_a_network_is_grown_by_an_operator_and_trained_on(plan_of, tmp_path, operator):
    nodes = SOURCES.split("[node.b]")[0] + (
        f'[node.g]\nfrom = "a"\noperator = "{operator}"\nfactor = 2\n[node.m]\nfrom = "g"\nsteps = 5\n'
    )
    results = run_plan(read_plan(plan_of(nodes)), tmp_path / "run")
    a, g, m = (results["nodes"][name] for name in "agm")
    assert (g["kind"], g["step"], m["start"], m["step"]) == ("grow", 20, 20, 25)
    assert g["parameters"] > 1.5 * a["parameters"]
    at_event = m["validation_loss"][0]
    assert at_event == [20, pytest.approx(a["final"], rel=1e-4)]


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
    fused = run_plan(plan, tmp_path / "run")["nodes"]["fused"]
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
