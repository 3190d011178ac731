"""Growth plans: what is wrong with one is said before anything runs; what is right runs, and goes on where it stopped."""

import jax
import pytest

import fusion_core as fc
from fusion_core.models.t5 import parameter_shapes
from fusion_core.models.t5.flops import step_flops
from fusion_core.runs import costs, read_plan, resolve
from fusion_core.runs.cost import tree_bytes
from fusion_core.text.span_corruption import window_length
from fusion_core.train import adafactor
from tests.strategies.plans import ARMS, BUDGET, GROWN, HEAD, SOURCES


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
        (
            SOURCES + '[node.g]\nfrom = "a"\noperator = "aki"\nfactor = 2\nrates = "relax"',
            "node g: aki has no factors that keep the velocity",
        ),
        (
            SOURCES + '[node.g]\nfrom = "a"\noperator = "shrink_perturb"\nwidth = { d_ff = 32 }',
            "node g: rates = 'width' is for a d_model that is a multiple of the small one, but it grows from 8 to 8; take",
        ),
        (SOURCES + '[node.f]\nsources = ["a", "b"]\nrewarm = 5', "node f: rewarm is 5 with rates = 'velocity', which change"),
        (SOURCES + '[node.f]\nsources = ["a", "b"]\nrates = "warm"', "node f: rates is 'warm'; it must be one of 'velocity',"),
        (SOURCES + '[node.f]\nsources = ["a", "a"]\noff_diagonal = "random"', "node f: noise is 0.0 with off_diagonal = 'ra"),
        (SOURCES + '[node.c]\nfrom = "a"\nsteps = 5\nbase_width = 4', "node c: base_width is for a random start"),
        (SOURCES.replace("seed = 1", "base_width = 3"), "node b: base_width is 3, but d_model is 8; take a width"),
        (SOURCES.replace("seed = 1", "base_width = 8"), "node b: base_width is 8, but d_model is 8; take a width"),
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
    state = jax.eval_shape(adafactor().init, parameter_shapes(config))
    assert a.optimizer_bytes == tree_bytes(state) < a.parameter_bytes
    assert a.activation_bytes > 0
    assert found["fused"].flops == 0
    assert found["m"].parameters > 2 * a.parameters


def test_shares_and_rests_of_a_budget_end_all_arms_at_equal_flops(plan_of):
    nodes = {r.name: r for r in resolve(read_plan(plan_of(ARMS, BUDGET)))}
    budget = 100 * nodes["m"].step_flops
    assert nodes["large"].config == nodes["m"].config
    assert nodes["large"].steps == 100
    assert sum(nodes["a"].spent.values()) == pytest.approx(0.35 * budget, abs=5 * nodes["a"].step_flops)
    for arm in ("m", "alone", "large"):
        assert 0 <= budget - sum(nodes[arm].spent.values()) < 5 * nodes[arm].step_flops, arm


@pytest.mark.parametrize("operator", fc.GROWTH_OPERATORS)
def test_every_growth_operator_is_a_node(plan_of, operator):
    known = fc.GROWTH_OPERATORS[operator]
    state = 'optimizer_state = "fresh"\n' if operator == "random_init" else ""
    two = SOURCES.replace("layers = 1", "layers = 2")  # aki copies from the layer above
    file = plan_of(two + f'[node.g]\nfrom = "a"\noperator = "{operator}"\nfactor = 2\nseed = 3\n{state}')
    if operator == "net2net_depth":
        assert "node g: net2net_depth does not take a T5Config" in refusal(file)
        return
    small, grown = (next(r.config for r in resolve(read_plan(file)) if r.name == name) for name in "ag")
    assert (grown.d_model == 2 * small.d_model) == ("width" in known.grows)
    assert (grown.num_layers == 2 * small.num_layers) == (known.grows == "depth")


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
