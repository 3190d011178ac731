"""The benchmark of the growth event in its smallest size."""

import json

import pytest

from benchmarks import growth_event


def test_the_event_benchmark_prints_slopes_and_jumps_as_predicted(capsys, tmp_path):
    path = tmp_path / "event.json"
    assert growth_event.main(["--smoke", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "| self, loss | 3 | " in printed
    assert "| adam | 2 | hidden weights | 0.500 | 1.000 | 1.000 |" in printed
    result = json.loads(path.read_text())
    for row in result["slopes"]:
        assert row["mean"] == pytest.approx(row["expected"], abs=0.15)
    assert len(result["jumps"]) == 18
    for row in result["jumps"]:
        assert row["worst_with"] < 1e-6
        assert row["without"] == pytest.approx(row["predicted"], abs=1e-6)


def test_no_task_at_all_is_refused(capsys):
    with pytest.raises(SystemExit):
        growth_event.main(["--runs", "0"])
    assert "at least one task" in capsys.readouterr().err
