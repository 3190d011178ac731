"""Groups with ``steps = "auto"``: what a run trains follows from what the rule's trials measure."""

import math

import numpy as np
import pytest

from fusion_core.runs import read_plan, run_plan
from fusion_core.runs.auto import AutoGrowth
from fusion_core.train import Metrics
from tests.strategies.plans import HEAD, MODEL
from tests.strategies.texts import documents

PLAN = f"""
[node.a]
model = {MODEL}
steps = "auto"
[node.b]
model = {MODEL}
steps = "auto"
seed = 1
[node.fused]
sources = ["a", "b"]
[node.m]
from = "fused"
steps = "auto"
budget = 150
"""


@pytest.fixture(scope="module")
def compiled():
    """Compiled steps that all runs of this file share."""
    return {}


@pytest.mark.parametrize(
    ("speed", "limit", "lost", "never"),
    [
        (2.0, 0.2, 0, False),  # the trial wins
        (0.5, 0.2, 1, False),  # it loses, and no other can be paid
        (0.5, 1.0, 1, True),  # all that fit lose
        (0.5, 0.01, 0, False),  # no trial can be paid
    ],
)
def test_a_run_follows_the_rule(tmp_path, monkeypatch, compiled, speed, limit, lost, never):
    """Log losses fall linearly in FLOPs, the grown network's ``speed`` times as fast as the sources'."""

    def pretended(flops, speed):
        return [5 * math.exp(-speed * flops / 1e9)] * 16

    def source_losses(self, trial, step):
        return [pretended(step * self.rule.sources * self.rule.small_flops, 1.0)] * 2

    def grown_losses(self, trial):
        true(self, trial)  # it is trained all the same
        flops = [(at - trial.step) * self.rule.grown_flops for at in (trial.grown_half, trial.grown_end)]
        return np.asarray([pretended(f, speed) for f in flops])

    true = AutoGrowth.grown_losses
    monkeypatch.setattr(AutoGrowth, "source_losses", source_losses)
    monkeypatch.setattr(AutoGrowth, "grown_losses", grown_losses)
    (tmp_path / "text.txt").write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    file = tmp_path / "plan.toml"
    file.write_text(HEAD + PLAN + f"cost_limit = {limit}\n", encoding="utf-8")
    results = run_plan(read_plan(file), tmp_path / "run", trainers=compiled)
    grown, budget = results["nodes"]["m"], 150 * results["nodes"]["m"]["step_flops"]
    assert grown["rule"]["lost_trials"] == lost
    assert (grown["rule"]["step"] is None) == never
    assert results["nodes"]["fused"]["step"] == results["nodes"]["a"]["step"] == grown["start"]
    # all of the budget and no more, to a dispatch, with the trials that were lost; never growing leaves them out of the sources
    assert grown["total_flops"] - (grown["lost_flops"] if never else 0) <= budget * (1 + 1e-9)
    assert grown["total_flops"] > budget - 5 * grown["step_flops"]
    kept = speed > 1
    assert grown["work"] == (f"trial-{grown['start']}" if kept else ".")
    if kept:
        # the trial's steps are the grown network's, and are not trained twice
        steps = [r["step"] for r in Metrics(tmp_path / "run" / "nodes" / "m" / grown["work"] / "metrics.jsonl").records]
        assert steps == sorted(steps)
        assert steps[0] == grown["start"]
    again = run_plan(read_plan(file), tmp_path / "run", trainers=compiled)
    assert again["nodes"] == results["nodes"]
