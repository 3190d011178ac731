"""``deepfusion plan`` and ``deepfusion train``, and the examples that come with them."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest

from deepfusion.pages.report import rows
from fusion_core.runs import costs, data, read_plan, resolve
from fusion_core.text import prepared
from fusion_core.timings import COMPILING
from fusion_core.train import training
from tests.strategies.plans import HEAD, MODEL
from tests.strategies.runs import environment
from tests.strategies.texts import documents

EXAMPLES = sorted((pathlib.Path(__file__).parent.parent.parent / "examples" / "plans").glob("*.toml"))
TIMED = [
    "loading JAX and reading the plan",
    "looking for the text in the cache",
    "reading the text",
    "training the tokenizer",
    "tokenizing",
    "loading tokens and tokenizer",
    "first evaluation",
    "first steps",
]
PLAN = f"""
name = "small"{HEAD}
[node.a]
model = {MODEL}
steps = 10
[node.twice]
sources = ["a", "a"]
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    (tmp_path / "plan.toml").write_text(PLAN, encoding="utf-8")
    return tmp_path / "plan.toml"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_plan_can_run_and_has_a_price(file):
    nodes = resolve(read_plan(file), 8)
    assert sum(cost.flops for cost in costs(nodes, 8, 1e14)) > 0


def test_there_are_the_examples_that_the_documentation_names():
    text = (pathlib.Path(__file__).parent.parent.parent / "docs" / "train.md").read_text(encoding="utf-8")
    assert all(file.name in text for file in EXAMPLES if not file.name.startswith("paper"))


def test_plan_prints_the_graph_and_its_cost_and_runs_nothing(run, plan):
    code, out, _ = run("plan", plan, "--devices", 2, "--tflops", 100, "--mfu", 0.5)
    assert code == 0
    assert "a + a" in out
    assert "on 2 devices, each of 100 TFLOP/s (assumed), of which training is taken to reach 50%" in out
    code, out, _ = run("plan", plan, "--json")
    found = json.loads(out)
    assert found["speed"] == "measured"
    assert found["peak_flops"] > 0
    a, twice = found["nodes"]
    assert (a["name"], a["kind"], a["steps"], twice["inputs"]) == ("a", "train", 10, ["a"])
    assert a["memory"] == sum(a[f"{what}_bytes"] for what in ("parameter", "optimizer", "gradient", "activation"))
    assert found["flops"] == a["flops"] > 0
    assert sorted(p.name for p in plan.parent.iterdir()) == ["plan.toml", "text.txt"]


@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_the_table_of_a_plan_cuts_no_number(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    (largest,) = (file for file in EXAMPLES if file.stem == "paper_l4_s_s_m_m_l")
    code, out, _ = run("plan", largest, "--tflops", 312)
    assert code == 0
    assert "…" not in out
    for whole in ("76.9 M", "1,000,000", "13.6 E", "1.3 days", "48.1 GB", "836 M", "181 E", "16.8 days", "186 GB"):
        assert f" {whole}" in out


def test_a_bad_plan_is_one_clear_error(refused, plan):
    plan.write_text(PLAN.replace('["a", "a"]', '["a", "b"]'))
    for command in (("plan", plan), ("train", plan, "--out", plan.parent / "run")):
        assert refused("node twice: its input 'b' is missing", *command).startswith("Error: ")
    assert not (plan.parent / "run").exists()


def test_train_runs_a_plan_resumes_it_and_reports(run, plan, monkeypatch):
    monkeypatch.setenv("DEEPFUSION_CACHE", str(plan.parent / "cache"))  # that nothing is taken from others
    given_back = []
    for module in (prepared, data, training):
        monkeypatch.setattr(module, "give_back", lambda name=module.__name__: given_back.append(name.split(".")[-1]))
    folder = plan.parent / "run"
    code, out, err = run("train", plan, "--out", folder, "--node", "a", "--json", "--timings")
    assert code == 0, err
    # before and after the text is tokenized, after the evaluation and the step were compiled
    assert given_back == ["prepared", "data", "training", "training"]
    found = json.loads(out)
    timings = found.pop("timings")
    assert found == {"folder": str(folder), "finished": False}
    assert list(timings["seconds"]) == TIMED
    assert list(timings["processor_seconds"]) == TIMED
    assert set(timings["of_these_compiling"]) == set(COMPILING.values())
    assert timings.pop("peak") >= timings["peak_bytes"][TIMED[-1]] >= timings["peak_bytes"][TIMED[0]] >= 0
    assert all(value >= 0 for part in timings.values() for value in part.values())
    assert "a: step 10/10, loss" in err
    code, _, err = run("train", plan, "--out", folder)
    assert code == 2
    assert "holds a run; go on with it by --resume" in err
    folder = folder.rename(plan.parent / "moved")  # nothing in it names its place
    code, out, err = run("train", plan, "--out", folder, "--resume", "--json")
    assert code == 0, err
    assert "a: step" not in err  # it was finished
    found = json.loads(out)
    page = pathlib.Path(found["report"]).read_text(encoding="utf-8")
    assert "<!--" not in page
    assert "data:image/png;base64," in page
    assert [row["node"] for row in found["nodes"]] == ["a", "twice"]
    results = json.loads((folder / "results.json").read_text())
    assert json.loads(json.dumps(rows(results))) == found["nodes"]
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = run("train", plan, "--out", folder, "--resume", "--timings")
    assert code == 0
    assert out.index("loading JAX and reading the plan") < out.index("\nall ") < out.index("Report:")
    assert "Report:" in out
    assert "…" not in out
    assert f" {results['nodes']['a']['final']:.4f}" in out


def test_train_refuses_a_folder_with_other_things_and_a_node_that_is_not_there(refused, plan):
    refused("is not an empty folder; choose another", "train", plan, "--out", plan.parent)
    refused("there is no node 'c'; there are a, twice", "train", plan, "--out", plan.parent / "run", "--node", "c")


def test_a_diverging_run_says_so_and_keeps_what_was_good(run, plan):
    plan.write_text(PLAN.replace("rate = 0.02", "rate = 1e30"))
    code, _, err = run("train", plan, "--out", plan.parent / "run")
    assert code == 1
    assert "Training diverged: a: " in err
    assert "lower the learning rate" in err
    assert not list((plan.parent / "run" / "nodes").rglob("done.json"))


def test_tensorboard_without_its_extra_is_refused_before_anything_is_trained(refused, plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refused("pip install 'deepfusion[tensorboard]'", "train", plan, "--out", plan.parent / "run", "--tensorboard")
    assert not (plan.parent / "run").exists()


def test_a_partner_that_never_starts_is_one_line_in_the_time_that_was_said(plan, tmp_path):
    """Also if it is the coordinator. JAX alone would wait longer, and then abort with a stack trace."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deepfusion", "train", str(plan), "--out", str(tmp_path / "run")]
    where = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--start-timeout", "2"]
    for number in (1, 0):  # one after the other: the second is gone before the first is there
        done = subprocess.run(
            [*command, *where, "--process", str(number)], env=environment(), capture_output=True, text=True, timeout=200
        )
        lines = [line for line in done.stderr.splitlines() if "loading JAX" not in line]
        who = f"process {number} of 2, with the coordinator 127.0.0.1:{port},"
        assert lines[0] == f"{who}: waiting for the others, at most 2 s"
        assert lines[1].startswith(f"Error: {who} has not found the others within 2 s; start all of them")
        assert (len(lines), done.returncode, done.stdout) == (2, 2, "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        ("a few words", {}, "the text supports 266 pieces"),
        (None, {"batch = 4": "batch = 40000"}, "node a: the training text has"),
        ("\n\n\n".join(documents(0, 60)).encode("utf-16"), {}, "text.txt is not UTF-8: it is UTF-16"),
        ("\n\n\n".join(documents(0, 60)).encode("utf-16"), {'text = ["text.txt"]': 'text = ["text.txt"]\nstream = true'},
         "text.txt is not UTF-8: it is UTF-16"),
    ],
)  # fmt: skip
def test_plan_refuses_what_training_would(run, plan, text, change, message):
    for old, new in change.items():
        plan.write_text(plan.read_text().replace(old, new))
    if text is not None:
        (plan.parent / "text.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = [run("plan", plan, "--tflops", 1), run("train", plan, "--out", plan.parent / "run")]
    assert [code for code, _, _ in found] == [2, 2]
    for _, _, err in found:
        assert message in err.splitlines()[-1]


def test_text_that_is_too_short_for_a_later_node_is_found_before_the_first_is_trained(run, plan):
    plan.write_text(PLAN + '[node.long]\nfrom = "twice"\nsteps = 10\nbatch = 40000\n')
    for command in (("plan", plan, "--tflops", 1), ("train", plan, "--out", plan.parent / "run")):
        code, _, err = run(*command)
        assert code == 2
        assert "node long: the training text has" in err
    assert not (plan.parent / "run" / "nodes").exists()
