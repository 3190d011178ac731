import copy
import dataclasses
import html
import itertools
import json
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest
from rich.console import Console

import deepfusion.demo.run as run_module
import fusion_core as fc
from deepfusion.demo import PRESETS, DemoSettings
from deepfusion.demo.report import NOISE, draw_losses, rows, summary
from deepfusion.demo.run import ARMS, load_settings, stops
from fusion_core.models.t5 import token_loss
from fusion_core.schedule import GrowthDecision, TrialRule, greedy_decision
from fusion_core.text import Tokenizer
from tests.strategies.networks import batch_of
from tests.strategies.texts import documents

ROOT = pathlib.Path(__file__).parent.parent.parent
LIMIT = 600  # seconds; a machine that does other things too must not fail the test


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs lie: their text, and what one run has compiled, for the others to use."""
    path = tmp_path_factory.mktemp("demo")
    (path / "text.txt").write_text("\n\n\n".join(documents(seed=0, n=120)))
    return path


def start(folder, *arguments):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "80",
        # compiling is most of a smoke run: a third faster, for slower steps
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",
    }
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
    code, out, err = finish(start(folder, *smoke(folder, "whole")))
    assert code == 0, err
    return folder / "whole", out, err


@pytest.fixture(scope="module")
def results(whole):
    return json.loads((whole[0] / "results.json").read_text())


def test_a_run_writes_its_report_metrics_results_plan_and_checkpoint(whole):
    names = {path.name for path in whole[0].iterdir()}
    assert {"report.html", "metrics.jsonl", "results.json", "plan.json", "settings.json", "checkpoint"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert load_settings(whole[0]).vocab == PRESETS["smoke"].vocab


def test_the_checkpoint_is_a_t5_with_its_tokenizer_and_a_finite_loss(whole):
    params, config = fc.load_pretrained(whole[0] / "checkpoint")
    tokenizer = Tokenizer.load(whole[0] / "checkpoint")
    assert config == load_settings(whole[0]).large
    assert tokenizer.vocab_size == config.vocab_size
    batch = batch_of(config, 0)
    total, count = jax.jit(token_loss, static_argnums=1)(params, config, batch["encoder_ids"], batch["targets"])
    assert math.isfinite(float(total) / float(count))


def test_every_arm_stays_within_the_budget_and_uses_nearly_all_of_it(results):
    budget = results["flops"]["budget"]
    assert set(results["curves"]) == set(ARMS)
    dispatch = (
        2 * DemoSettings().steps_per_dispatch * max(results["flops"]["large_step"], results["flops"]["small_step"])
    )
    for arm, curve in results["curves"].items():
        flops = [point[0] for point in curve]
        assert flops == sorted(flops), arm
        assert budget - dispatch < flops[-1] <= budget, arm
        assert all(math.isfinite(loss) for _, loss in curve), arm
        assert results["final"][arm] == curve[-1][1]


def test_growth_arms_begin_with_the_cost_of_their_sources(results):
    for arm, step in results["growth_steps"].items():
        lost = results["lost_trials"]["flops"] if arm == "grown" and results["plan"]["step"] is not None else 0
        assert results["curves"][arm][0][0] == pytest.approx(2 * step * results["flops"]["small_step"] + lost)


def test_networks_learn(results):
    for arm in ("scratch", "one_small", "never"):
        assert results["final"][arm] < results["curves"][arm][0][1] - 1


def test_the_loss_at_the_event_is_the_fused_networks_in_the_sources_record(results):
    step = results["growth_steps"]["grown"]
    record = next(r for r in results["theory"] if r["step"] == step)
    assert results["curves"]["grown"][0][1] == pytest.approx(record["validation_fused"], abs=1e-5)


def test_theory_is_measured_for_both_sources_and_their_fusion_at_every_evaluation(whole, results):
    steps = [r["step"] for r in results["theory"]]
    assert set(stops(results["source_steps"], 10)) <= set(steps)
    assert steps == sorted(set(steps))
    # the smoke run can pay for one trial, whose second half is measured along the sources
    trial = TrialRule.load(whole[0] / "online.json").trial_at(70)
    assert {trial.step, trial.small_half, trial.small_end} <= set(steps)
    for record in results["theory"]:
        for term in ("loss", "gradient_norm", "modified_loss", "decrease_per_flop"):
            for network in ("source_0", "source_1", "fused"):
                assert math.isfinite(record[f"{term}_{network}"])
        assert record["modified_loss_source_0"] > record["loss_source_0"]
        assert math.isfinite(record["conflict"])


def test_the_prediction_is_said_before_the_growth_and_follows_from_what_was_known_then(whole, results):
    plan = GrowthDecision.load(whole[0] / "plan.json")
    said = " ".join(whole[2].split())
    assert results["plan"]["step"] == plan.step
    assert " ".join(plan.reason.split()) in said
    assert said.index("The online rule says:") < said.index("Growing at step")
    assert plan.rule == results["plan"]["rule"] == "online"
    if plan.step is not None:
        assert results["growth_steps"]["grown"] == plan.step


def test_the_greedy_rule_is_asked_along_the_same_run_and_followed_by_an_arm_of_its_own(results):
    greedy = greedy_decision(results["theory"], PRESETS["smoke"].small_rate, {})
    assert results["greedy"]["step"] == greedy.step
    assert results["growth_steps"].get("greedy") == greedy.step
    if greedy.step is None:
        assert results["curves"]["greedy"] == results["curves"]["never"]


def test_the_report_holds_everything_inside_itself(whole, results):
    page = (whole[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 2
    assert "<!--" not in re.sub(r"<!--[a-z ].*?-->", "", page)
    text = html.unescape(page)
    for sentence in summary(results):
        assert sentence in text
    for name in ARMS.values():
        assert name in text


def test_the_terminal_shows_the_table_and_the_summary_and_where_things_are(whole, results):
    out = " ".join(whole[1].split())
    assert "Final validation loss at equal FLOPs" in out
    assert f"{results['final']['grown']:.4f}" in out
    assert " ".join(summary(results)[-1].split()) in out
    # on a line of its own, however long: it is to be copied
    assert str(whole[0] / "report.html") in whole[1]
    assert str(whole[0] / "checkpoint") in whole[1]


def interrupt_when(process, ready):
    """Sends Ctrl-C as soon as ``ready()``."""
    deadline = time.monotonic() + LIMIT
    while not ready():
        assert process.poll() is None, f"the run was over too early: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)


def records(run):
    file = run / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_ends_in_the_same_weights_and_numbers(whole, folder):
    """Interrupted while the sources train side by side, in or after a trial, and while a grown network trains."""
    run = folder / "interrupted"
    command = smoke(folder, "interrupted")
    for ready in (
        lambda: len(records(run)) >= 2,
        lambda: any('"trial at step' in line for line in records(run)),
        lambda: any('"grown"' in line for line in records(run)),
    ):
        process = start(folder, *command)
        interrupt_when(process, ready)
        code, _, err = finish(process)
        assert code == 130, err
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if "Interrupted; nothing is lost" in line]
        said = shlex.split(line.split("Go on with:")[1])
        assert said == ["deepfusion", "demo", "--resume", str(run)]
        assert not (run / "checkpoint").exists()
        command = said[2:]
    code, _, err = finish(start(folder, *command))
    assert code == 0, err
    weights = [(path / "checkpoint" / "model.safetensors").read_bytes() for path in (whole[0], run)]
    assert weights[0] == weights[1]
    numbers = [json.loads((path / "results.json").read_text()) for path in (whole[0], run)]
    assert (whole[0] / "online.json").read_bytes() == (run / "online.json").read_bytes()
    for name in ("curves", "final", "plan", "greedy", "lost_trials", "growth_steps", "rate_factors", "theory"):
        assert numbers[0][name] == numbers[1][name], name


# Without a run


@pytest.mark.parametrize(("total", "chunk"), [(220, 10), (3000, 10), (47, 5), (10, 10)])
def test_stops_are_close_and_end_with_the_run(total, chunk):
    found = stops(total, chunk)
    assert found == sorted(set(found))
    assert found[-1] == total
    grid = set(found) - {total}
    assert all(stop % chunk == 0 for stop in grid)
    assert all(after <= 1.5 * stop for stop, after in itertools.pairwise(found))


def test_settings_are_read_back_from_json(tmp_path):
    settings = DemoSettings(text=("a.txt",), packages=("numpy",), seed=3)
    (tmp_path / "settings.json").write_text(json.dumps(settings.__dict__))
    assert load_settings(tmp_path) == settings


def test_both_presets_compare_networks_of_equal_depth_and_twice_the_width():
    for settings in PRESETS.values():
        assert settings.large.d_model == 2 * settings.small.d_model
        assert settings.large.num_layers == settings.small.num_layers
        assert settings.total_flops == settings.budget * settings.flops(settings.large)


FINAL = {"grown": 3.0, "greedy": 3.1, "late": 3.2, "scratch": 3.3, "never": 3.4, "one_small": 3.5}


def made_up(step=40, greedy_step=20, lost=(), **final):
    """Results of a run that never was."""
    final = FINAL | final
    theory = [
        {"step": s, "validation_a": 4.0, "validation_b": 4.2, "conflict": 1e-3 * s, "conflict_se": 1e-4}
        for s in (20, 40, 80)
    ]
    return {
        "settings": PRESETS["smoke"].__dict__,
        "flops": {"budget": 1000.0},
        "plan": {"step": step, "rule": "online", "reason": "Because of the numbers.", "learning_rate": None},
        "greedy": {"step": greedy_step, "rule": "greedy", "reason": "By the present slopes.", "learning_rate": None},
        "lost_trials": {"flops": 45.0 * len(lost), "curves": {str(at): [(100.0, 3.9), (130.0, 3.8)] for at in lost}},
        "growth_steps": {"grown": 40, "late": 80} | ({} if greedy_step is None else {"greedy": greedy_step}),
        "source_steps": 200,
        "final": final,
        "curves": {arm: [(100.0, 3.9), (900.0, loss)] for arm, loss in final.items()},
        "theory": theory,
    }


def sentence(results, words):
    (found,) = [s for s in summary(results) if words in s]
    return found


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("scratch", "the large network trained from scratch"),
        ("never", "two small networks that were fused only at the end"),
        ("one_small", "one small network with the whole budget"),
    ],
)
@pytest.mark.parametrize(("loss", "relation"), [(3.25, "0.250 nats below"), (2.75, "0.250 nats above")])
def test_the_summary_says_below_or_above_as_the_numbers_have_it(other, words, loss, relation):
    said = sentence(made_up(**{other: loss}), words)
    assert f"growing at step 40 ended {relation} {words} (3.000 against {loss:.3f})" in said
    assert said.endswith(").")


def test_the_summary_says_where_a_difference_is_within_the_noise():
    for loss in (3.0 + NOISE / 2, 3.0 - NOISE / 2):
        assert sentence(made_up(scratch=loss), "from scratch (").endswith("which one seed cannot tell from chance.")
    assert "chance" not in sentence(made_up(scratch=3.0 + 2 * NOISE), "trained from scratch (")


@pytest.mark.parametrize(
    ("final", "words"),
    [
        ({}, "step 40, the online rule's, ended best"),
        ({"greedy": 2.9}, "step 20 ended best (2.900 against 3.000 at the online rule's step 40)"),
        ({"late": 2.9}, "step 80 ended best (2.900 against 3.000 at the online rule's step 40)"),
    ],
)
def test_the_summary_says_which_growth_step_was_best(final, words):
    assert words in sentence(made_up(**final), "Of the growth steps tried")


def test_the_summary_says_when_the_rule_did_not_grow():
    said = summary(made_up(step=None))
    assert said[0].startswith("The online rule did not grow within this budget. Because of the numbers.")
    assert "fused after 20% of it" in said[0]
    # it has no step to speak of
    assert not any("online rule's" in s for s in said)
    assert not any("online" in row["name"] for row in rows(made_up(step=None)))
    assert "step 40 ended best" in sentence(made_up(step=None), "Of the growth steps tried")
    assert summary(made_up())[0] == "The online rule grew after 20.0% of the budget. Because of the numbers."


def test_the_summary_says_what_the_greedy_rule_would_have_done():
    said = sentence(made_up(), "The greedy rule would")
    assert said == (
        "The greedy rule would have grown at step 20, after 10.0% of the budget, which ended at 3.100. "
        "By the present slopes."
    )
    said = sentence(made_up(greedy_step=None), "The greedy rule would")
    assert said == "The greedy rule would never have grown, which ended at 3.400. By the present slopes."
    names = {row["arm"]: row["name"] for row in rows(made_up(greedy_step=None))}
    assert names["greedy"] == "grown by the greedy rule: never"


def test_the_summary_says_what_lost_trials_cost():
    assert not any("trial" in s for s in summary(made_up()))
    said = sentence(made_up(lost=(20,)), "A trial of growing")
    assert said.startswith("A trial of growing at step 20 lost; it cost 4.5% of the budget, taken off")
    assert sentence(made_up(step=None, lost=(20,)), "A trial of growing").endswith("it cost 4.5% of the budget.")


@pytest.mark.parametrize(("step", "greedy"), [(40, 20), (40, None), (None, 20)])
def test_the_figure_marks_where_each_rule_grew(step, greedy):
    figure = draw_losses(made_up(step, greedy, lost=(20,)))
    marks = [text.get_text().split(":")[0] for text in figure.axes[0].texts]
    assert marks == ["for comparison" if step is None else "online rule"] + ["greedy rule"] * (greedy is not None)
    assert "a trial that lost" in figure.axes[0].get_legend_handles_labels()[1]
    plt.close(figure)


# The whole run, with networks that learn as told: in seconds, so that every answer of the rules can be had


def pretend(monkeypatch, grown_speed, greedy=True):
    """Networks whose log loss falls linearly in the steps, the grown one's by so much per FLOP of the small ones'."""
    settings = PRESETS["smoke"]
    relative = settings.flops(settings.large) / (2 * settings.flops(settings.small))
    speeds = [1.0, grown_speed * relative]

    class Trainer:
        def __init__(self, *arguments):
            self.speed = speeds.pop(0)

        def advance(self, state, batch, until, on_dispatch=lambda steps: None):
            def moved(leaf):
                return leaf if leaf.ndim != 1 else leaf * 0 + until / 1e3

            params = jax.tree.map(moved, state.params)
            return state._replace(params=params, step=jnp.asarray(until, jnp.int32)), {}

        def evaluate(self, params, batches):
            (norm,) = jax.tree.leaves(params["decoder"]["final_layer_norm"])
            return 5 * math.exp(-self.speed * float(norm.max()))

    class Meter:
        def __init__(self, *arguments):
            pass

        def measure(self, states, updates, probes):
            both = dict.fromkeys(("conflict", "conflict_se", "step_factor_small", "step_factor_grown"), 1.0)
            return both | {"small_rate": 1.0, "grown_rate": 2.0 if greedy else 0.5}

    monkeypatch.setattr(run_module, "Trainer", Trainer)
    monkeypatch.setattr(run_module, "GrowthMeter", Meter)


@pytest.mark.parametrize(
    ("speed", "limit", "share", "step", "lost"),
    [
        (2.0, 0.2, 0.04, 70, []),  # the trial wins
        (0.5, 0.2, 0.04, 140, [70]),  # it loses, and no other can be paid
        (0.5, 1.0, 0.04, None, [70, 140]),  # all that fit lose
        (0.5, 0.01, 0.04, 70, []),  # no trial can be paid
    ],
)
def test_the_run_follows_the_online_rule(folder, tmp_path, monkeypatch, speed, limit, share, step, lost):
    pretend(monkeypatch, speed)
    settings = dataclasses.replace(
        PRESETS["smoke"], text=(str(folder / "text.txt"),), cost_limit=limit, trial_share=share
    )
    results = run_module.run_demo(settings, tmp_path / "run", Console(quiet=True))
    assert results["plan"]["step"] == step
    assert list(results["lost_trials"]["curves"]) == [str(at) for at in lost]
    online = TrialRule.load(tmp_path / "run" / "online.json")
    assert results["lost_trials"]["flops"] == pytest.approx(
        len(lost) * online.state.trial_cost * results["flops"]["budget"]
    )
    grown, charged = results["curves"]["grown"], 0 if step is None else results["lost_trials"]["flops"]
    flops = [point[0] for point in grown]
    small, large, budget = (results["flops"][name] for name in ("small_step", "large_step", "budget"))
    assert flops == sorted(set(flops))
    assert flops[0] == pytest.approx(charged + 2 * results["growth_steps"]["grown"] * small)
    # all of the budget and no more, to a dispatch
    assert budget - 10 * large < flops[-1] <= budget
    if step == 70 and limit == 0.2:
        # kept: the trial's steps are the grown arm's, and are not done twice
        trained = {r["step"] for r in map(json.loads, records(tmp_path / "run")) if r["arm"] == "grown"}
        assert min(trained) == online.kept.grown_end
        assert flops[1] == pytest.approx(flops[0] + (online.kept.grown_half - 70) * large)
    assert results["greedy"]["step"] == results["growth_steps"]["greedy"] == 40
    assert results["growth_steps"]["late"] > results["growth_steps"]["grown"]
    # found finished by a resumed run, which asks nothing and trains nothing again
    before = records(tmp_path / "run")
    pretend(monkeypatch, speed)
    again = run_module.run_demo(settings, tmp_path / "run", Console(quiet=True))
    assert records(tmp_path / "run") == before
    assert again["curves"] == results["curves"]


def test_a_greedy_rule_that_never_grows_has_the_arm_that_never_does(folder, tmp_path, monkeypatch):
    pretend(monkeypatch, 2.0, greedy=False)
    settings = dataclasses.replace(PRESETS["smoke"], text=(str(folder / "text.txt"),))
    results = run_module.run_demo(settings, tmp_path / "run", Console(quiet=True))
    assert results["greedy"]["step"] is None
    assert "greedy" not in results["growth_steps"]
    assert results["curves"]["greedy"] == results["curves"]["never"]
    assert "would never have grown" in " ".join(summary(results))


@pytest.mark.parametrize(("loss", "words"), [(3.9, "0.200 below their mean"), (4.3, "0.200 above their mean")])
def test_the_summary_says_what_the_event_did_to_the_loss(loss, words):
    results = made_up()
    results["curves"]["grown"][0] = (100.0, loss)
    assert sentence(results, "At the event").endswith(f"the fused network's {loss:.3f}: {words}.")


def test_the_summary_says_whether_the_large_size_is_worth_its_cost():
    assert "is worth its cost" in sentence(made_up(), "At this budget the large size")
    assert "is not yet worth its cost" in sentence(made_up(one_small=3.2), "At this budget the large size")


def test_the_table_has_the_best_arm_first_and_every_arms_rate():
    table = rows(made_up(late=1.0))
    assert [row["arm"] for row in table] == ["late", "grown", "greedy", "scratch", "never", "one_small"]
    by_arm = {row["arm"]: row for row in table}
    assert by_arm["grown"]["grown_at"] == 40
    assert by_arm["grown"]["share"] == 0.2
    assert by_arm["grown"]["rate"] == PRESETS["smoke"].small_rate
    assert by_arm["scratch"]["grown_at"] is None
    assert by_arm["scratch"]["rate"] == PRESETS["smoke"].large_rate
    assert by_arm["never"]["rate"] == PRESETS["smoke"].small_rate
    assert {row["flops"] for row in table} == {0.9}


def test_writing_the_summary_changes_no_result():
    results = made_up()
    before = copy.deepcopy(results)
    summary(results)
    rows(results)
    assert results == before
