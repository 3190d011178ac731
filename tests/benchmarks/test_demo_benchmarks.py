"""The demo's benchmarks at their smoke size, and their tables from fabricated runs."""

import json

import pytest

from benchmarks import demo_rates, demo_seeds
from deepfusion.demo.run import ARMS

LOSSES = {"grown": 3.0, "greedy": 3.2, "late": 2.9, "scratch": 3.1, "never": 3.3, "one_small": 3.4}


def finished_run(folder, seed, shift):
    folder.mkdir(parents=True)
    steps = {"grown": 80, "greedy": 40, "late": 160}
    results = {
        "settings": {"seed": seed},
        "final": {arm: LOSSES[arm] + (shift if arm == "scratch" else 0.0) for arm in ARMS},
        "growth_steps": steps,
        "curves": {arm: [[10.0, 4.0], [99.0, 3.0]] for arm in ARMS},
        "flops": {"budget": 100.0},
        "source_steps": 400,
        "plan": {"step": 80},
        "greedy": {"step": 40},
        "lost_trials": {"flops": 0.0, "curves": {}},
        "seconds": 60.0,
        "provenance": {"commit": None},
    }
    (folder / "results.json").write_text(json.dumps(results))


def test_the_table_of_seeds_has_means_and_standard_errors_of_differences(tmp_path, capsys):
    for seed, shift in ((0, 0.0), (1, 0.2)):
        finished_run(tmp_path / f"seed-{seed}", seed, shift)
    result = demo_seeds.main(["--seeds", "2", "--out", str(tmp_path)])
    rows = {row["arm"]: row for row in result["rows"]}
    assert [row["mean"] for row in result["rows"]] == sorted(row["mean"] for row in result["rows"])
    assert rows["scratch"]["mean"] == pytest.approx(3.2)
    assert rows["scratch"]["above_grown"] == pytest.approx(0.2)
    assert rows["scratch"]["above_grown_se"] == pytest.approx(0.1)
    assert rows["late"]["above_grown_se"] == pytest.approx(0.0)
    assert "| large from scratch | 3.100 | 3.300 | 3.200 | +0.200 ± 0.100 |" in capsys.readouterr().out
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "table.json").read_text())["seeds"] == [0, 1]


def test_learning_rates_are_compared_at_the_smoke_size(tmp_path, capsys):
    result = demo_rates.main(["--preset", "smoke", "--rates", "0.02", "--out", str(tmp_path)])
    assert result["best"] == {"small": 0.02, "large": 0.02}
    # better than knowing nothing: the vocabulary has 612 ids
    assert 2.0 < result["losses"]["small"][0.02] < 6.0
    assert "| large from scratch |" in capsys.readouterr().out
