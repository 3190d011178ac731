import json

import pytest

from benchmarks import scaling


@pytest.mark.slow
def test_the_smoke_size_runs_two_processes(capsys):
    assert scaling.main(["--smoke", "--json", "-"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["processes"], row["devices"]) == (2, 1)
    assert row["tokens_per_second"] > 0
    assert row["overhead"] > 0


def test_the_table_compares_with_one_device():
    rows = [
        {
            "processes": 1,
            "devices": n,
            "step": 0.1,
            "tokens_per_second": 1e3 * n,
            "overhead": 1e-3,
            "overhead_alone": 2e-3,
        }
        for n in (1, 2)
    ]
    lines = scaling.markdown({"rows": rows, "cores": 2, "batch": 16, "dispatch": 10}).splitlines()
    assert lines[-1] == "| 1 × 2 | 100.0 | 2,000 | 2.00 | 1.00 | 2.00 |"
