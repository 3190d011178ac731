"""The benchmark of how copies part in its smallest size."""

import json

from benchmarks import parting
from fusion_core.runs import read_plan, run_plan
from tests.strategies.plans import HEAD, MODEL
from tests.strategies.texts import documents


def test_the_benchmark_measures_rate_growth_and_noise(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    file = tmp_path / "plan.toml"
    file.write_text(f"{HEAD}\n[node.a]\nmodel = {MODEL}\nsteps = 20\n", encoding="utf-8")
    run_plan(read_plan(file), tmp_path / "run")
    options = ["--batches", "1", "--lanczos", "3", "--steps", "3", "--json", str(tmp_path / "found.json")]
    assert parting.main([str(file), str(tmp_path / "run"), "a", *options]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rate"]["rates"] == sorted(found["rate"]["rates"], reverse=True)
    norms = found["growth"]["norms"]
    assert norms["0.01"][0] > 10 * norms["0.0001"][0] > 10 * norms["0.0"][0]
    losses = [row["before"] for row in found["noise"]]
    assert max(losses) - min(losses) < 1e-3
    assert found["noise"][0]["noise"] == 0
    printed = capsys.readouterr().out
    assert "predicted gain on noise 0.1" in printed
    assert "| noise | curvature |" in printed
