"""``deepfusion demo``: a run of its plan in processes of its own, interrupted and resumed; and how its budget is set."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

import fusion_core as fc
from deepfusion.commands import demo
from deepfusion.commands.demo import DemoSettings
from fusion_core.runs import arm_flops, resolve
from tests.strategies.texts import documents

ROOT = pathlib.Path(__file__).parent.parent.parent
LIMIT = 600  # seconds; a machine that does other things too must not fail the test


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs lie, with their text."""
    path = tmp_path_factory.mktemp("demo")
    (path / "text.txt").write_text("\n\n\n".join(documents(seed=0, n=120)))
    return path


def start(*arguments):
    environment = os.environ | {"DEEPFUSION_CACHE": "", "COLUMNS": "80"}
    command = [sys.executable, "-m", "deepfusion", "demo", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def smoke(folder, out):
    return ("--preset", "smoke", "--text", folder / "text.txt", "--out", folder / out)


@pytest.fixture(scope="module")
def whole(folder):
    """A run without an interruption: (its folder, stdout, stderr)."""
    code, out, err = finish(start(*smoke(folder, "whole")))
    assert code == 0, err
    return folder / "whole", out, err


def test_a_run_compares_three_arms_at_equal_flops_and_says_where_things_are(whole):
    run, out, _ = whole
    results = json.loads((run / "results.json").read_text())
    arms = {arm["name"]: arm for arm in results["comparison"]["arms"]}
    assert arms.keys() == {"grown by the rule", "from scratch", "one small network"}
    for arm in arms.values():
        assert 0.9 < arm["share"]["mean"] <= 1 + 1e-9, arm
        assert arm["loss"]["mean"] < 0.9 * arm["curve"][0][1] or arm["grown_at"], arm  # networks learn
        assert arm["name"] in out
    for file in (run / "report.html", run / "nodes" / "grown" / "model"):
        assert str(file) in out
        assert file.exists()
    params, config = fc.load_pretrained(run / "nodes" / "grown" / "model")
    assert config.d_model == 32
    assert params["shared"]["weight"].shape[1] == 32
    assert (run / "nodes" / "grown" / "model" / "tokenizer.json").exists()


def interrupt_when(process, ready):
    """Send Ctrl-C as soon as ``ready()``."""
    deadline = time.monotonic() + LIMIT
    while not ready():
        assert process.poll() is None, f"the run was over too early: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_ends_in_the_same_weights_and_numbers(whole, folder):
    """Interrupted while the source trains, and while the large network trains."""
    run = folder / "interrupted"
    lines = lambda node: (run / "nodes" / node / "metrics.jsonl").exists()
    command = smoke(folder, "interrupted")
    for ready in (lambda: lines("small"), lambda: lines("large")):
        process = start(*command)
        interrupt_when(process, ready)
        code, _, err = finish(process)
        assert code == 130, err
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if "Interrupted; nothing is lost" in line]
        said = shlex.split(line.split("Go on with:")[1])
        assert said == ["deepfusion", "demo", "--resume", str(run)]
        assert not (run / "results.json").exists()
        command = said[2:]
    code, _, err = finish(start(*command))
    assert code == 0, err
    for node in ("small", "fused", "grown", "large", "alone"):
        weights = [(path / "nodes" / node / "model" / "model.safetensors").read_bytes() for path in (whole[0], run)]
        assert weights[0] == weights[1], node
    numbers = [json.loads((path / "results.json").read_text())["comparison"]["arms"] for path in (whole[0], run)]
    for one, other in zip(*numbers, strict=True):
        assert (one["curve"], one["loss"]) == (other["curve"], other["loss"])


# Without a run


@pytest.mark.parametrize(
    "settings", [DemoSettings(budget=1500), DemoSettings("smoke"), DemoSettings("smoke", budget=400)]
)
def test_the_plan_has_a_source_at_a_third_of_the_cost_and_arms_at_equal_flops(settings):
    plan = settings.plan()
    nodes = {node.name: node for node in resolve(plan)}
    assert nodes["fused"].config == nodes["large"].config
    assert nodes["small"].step_flops < (0.35 if settings.preset == "default" else 0.4) * nodes["large"].step_flops
    flops = arm_flops(plan, list(nodes.values()))
    assert flops.keys() == {"grown by the rule", "from scratch", "one small network"}
    budget = plan.budget.steps * nodes["large"].step_flops
    assert all(0.98 * budget < value <= budget for value in flops.values())
    if settings.budget is not None:
        assert plan.budget.steps == settings.budget


@pytest.mark.parametrize("slowness", [1.0, 10.0])
def test_the_budget_fits_the_minutes_on_a_fast_and_on_a_slow_machine(tmp_path, monkeypatch, slowness):
    """The arms' steps and evaluations at the measured pace take no more than what is left of the minutes."""
    paces = {24: (0.004 * slowness, 0.02 * slowness), 48: (0.01 * slowness, 0.05 * slowness)}
    monkeypatch.setattr(demo, "pace", lambda plan, resolved, trainers: paces[resolved.config.d_model])
    monkeypatch.setattr("fusion_core.runs.data.RunData", lambda *arguments: None)
    plan = DemoSettings().plan()
    budget = demo.fitting(plan, tmp_path, 1200.0, time.perf_counter(), {})
    nodes = {node.name: node for node in resolve(plan)}
    ratio = nodes["large"].step_flops / nodes["small"].step_flops
    training = budget * (demo.LARGE * paces[48][0] + demo.SMALL * ratio * paces[24][0])
    evaluations = demo.EVALUATIONS * (2 * paces[48][1] + ratio * paces[24][1])
    assert 0.6 * 1200 < training + evaluations < 1200
    assert budget % (5 * plan.steps_per_dispatch) == 0
    assert DemoSettings(budget=budget).plan().budget.steps == budget


def test_settings_are_read_back_from_json(tmp_path):
    with pytest.raises(fc.InputError, match="holds no demo run"):
        demo.load_settings(tmp_path)
    (tmp_path / "settings.json").write_text('{"preset": "smoke", "text": ["a"], "budget": 200}')
    assert demo.load_settings(tmp_path) == DemoSettings("smoke", ("a",), budget=200)
    (tmp_path / "settings.json").write_text('{"preset": "smoke", "width": 3}')
    with pytest.raises(fc.InputError, match=r"settings\.json cannot be read"):
        demo.load_settings(tmp_path)
